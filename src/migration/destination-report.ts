import { DirtmapError } from "../errors.js";
import type { DestinationReport } from "./report.js";
import { destinationReportSchema } from "./report-schema.js";

/*
 * What the destination tells after the workload has run on: it comes from outside, so it is checked.
 */

const auditSchema = destinationReportSchema.omit({ resumeMs: true });

/** The findings of {@link ReceiveOptions.audit} at the destination: stamps, and the amount written there. */
export type Audit = Omit<DestinationReport, "resumeMs">;

/** @throws DirtmapError `BAD_REPORT` */
export function parseDestinationReport(report: unknown, resumeMs: number): DestinationReport {
  const parsed = auditSchema.safeParse(report);
  if (parsed.success) return { resumeMs, ...parsed.data };
  throw new DirtmapError("the destination's report can't be understood", { code: "BAD_REPORT", cause: parsed.error });
}
