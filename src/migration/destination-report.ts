import { z } from "zod";
import { DirtmapError } from "../errors.js";
import type { DestinationReport } from "./report.js";

/*
 * What the destination tells after the workload has run on: it comes from outside, so it is checked.
 */

const owner = z.string().max(64);
const count = z.int().min(0);

const findings = z.strictObject({
  checked: count,
  problems: z.array(z.strictObject({ owner, kind: z.string().max(64), count })).max(4096),
});

const auditSchema = z.strictObject({
  stamps: findings.nullable(),
  requests: findings.optional(),
  written: z.record(owner, count),
});

/** What {@link ReceiveOptions.audit} finds at the destination: stamps, and how much was written there. */
export type Audit = Omit<DestinationReport, "resumeMs">;

/** @throws DirtmapError `BAD_REPORT` */
export function parseDestinationReport(report: unknown, resumeMs: number): DestinationReport {
  const parsed = auditSchema.safeParse(report);
  if (parsed.success) return { resumeMs, ...parsed.data };
  throw new DirtmapError("the destination's report can't be understood", { code: "BAD_REPORT", cause: parsed.error });
}
