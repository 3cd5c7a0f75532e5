import { readFileSync, statSync } from "node:fs";
import { z } from "zod";
import { UsageError } from "../errors.js";
import type { MigrationReport } from "../migration/report.js";

/** A report is a few kilobytes; what is much longer is another kind of file. */
const MAX_REPORT_BYTES = 1 << 24;

const ms = z.number().min(0).max(1e9);
const count = z.int().min(0);

/** What is used of a report. */
const schema = z.looseObject({
  schemaVersion: z.literal(1),
  result: z.enum(["completed", "cancelled", "failed", "indeterminate"]),
  downtimeMs: ms.nullable(),
  phases: z.array(z.looseObject({ phase: z.string(), ms })).max(64),
  rounds: z
    .array(
      z.looseObject({
        round: count,
        phase: z.enum(["pre-copy", "stop-copy"]),
        pages: count,
        zeroPages: count,
        bytes: count,
        ms,
        remaining: count,
        byDevice: z.record(z.string(), z.looseObject({ reported: count, exclusive: count, readMs: ms })),
      }),
    )
    .max(100_000),
});

type PastReport = Pick<MigrationReport, "result" | "rounds" | "phases" | "downtimeMs">;

/**
 * Reads reports that `migrate --json` printed.
 * @throws UsageError `BAD_REPORT` for a file that is none
 */
export function readReports(files: readonly string[]): PastReport[] {
  return files.map((file) => {
    let json: unknown;
    try {
      const { size } = statSync(file);
      if (size > MAX_REPORT_BYTES) throw new Error(`it has ${size} bytes`);
      json = JSON.parse(readFileSync(file, "utf8"));
    } catch (cause) {
      throw notOne(file, (cause as Error).message, cause);
    }
    const parsed = schema.safeParse(json);
    if (!parsed.success) {
      const [{ path, message }] = parsed.error.issues;
      throw notOne(file, `${path.join(".")}: ${message}`);
    }
    return parsed.data;
  });
}

function notOne(file: string, why: string, cause?: unknown): UsageError {
  return new UsageError(`${file} is no migration's report: ${why}`, {
    code: "BAD_REPORT",
    remedy: "give a file that `dirtmap migrate --json` wrote",
    cause,
  });
}
