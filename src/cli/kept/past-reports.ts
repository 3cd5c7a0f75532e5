import { UsageError } from "../../errors.js";
import type { MigrationReport } from "../../migration/report.js";
import { migrationReportSchema } from "../../migration/report-schema.js";
import { readTextInput } from "../../sys/input-file.js";
import type { StoreOption } from "../input/options/places.js";
import { openStoreOf } from "./store.js";

/** A report is a few kilobytes; what is much longer is another kind of file. */
const MAX_REPORT_BYTES = 1 << 24;

/** What is used of a report. */
const schema = migrationReportSchema.pick({
  schemaVersion: true,
  result: true,
  downtimeMs: true,
  phases: true,
  rounds: true,
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
      json = JSON.parse(readTextInput(file, MAX_REPORT_BYTES));
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

/** Runs that are looked through, and reports that are used of them: conditions change, and the newest know. */
const LOOKED_THROUGH = 50;
const USED = 5;

/**
 * The last migrations in the store that completed: of the scenario, or of any where there is none of it. A default store
 * that can't be used is as good as an empty one.
 * @throws UsageError of a store that was asked for
 */
export function pastReports(option: StoreOption, scenario: string | null): PastReport[] {
  try {
    using store = openStoreOf(option);
    if (store === null) return [];
    const completed = store
      .runs({ limit: LOOKED_THROUGH })
      // What QEMU's migration cost says nothing about Dirtmap's own.
      .filter(({ kind, host, result }) => kind === "migration" && host !== "qemu" && result === "completed");
    const same = completed.filter((run) => run.scenario === scenario);
    return (same.length > 0 ? same : completed).slice(0, USED).flatMap(({ id }) => {
      const { data } = schema.safeParse(store.run(id).report);
      return data === undefined ? [] : [data];
    });
  } catch (error) {
    if (option.store !== undefined) throw error;
    return [];
  }
}

function notOne(file: string, why: string, cause?: unknown): UsageError {
  return new UsageError(`${file} is not the report of a migration: ${why}`, {
    code: "BAD_REPORT",
    remedy: "give a file that `dirtmap migrate --json` wrote",
    cause,
  });
}
