import type { z } from "zod";
import type { Immutable } from "../immutable.js";
import type {
  destinationReportSchema,
  deviceReportSchema,
  findingsSchema,
  memoryComparisonSchema,
  migrationReportSchema,
  predictedOutcomeSchema,
  roundReportSchema,
  watchedSchema,
} from "./report-schema.js";

/*
 * A migration's report as types, made of its schema (report-schema.ts, where each field is described). Nothing is loaded for them.
 */

/** The report of a migration, as `dirtmap migrate --json` prints it. */
export type MigrationReport = Immutable<z.output<typeof migrationReportSchema>>;

/** The result of a migration. "Handover" in docs/architecture.md explains `indeterminate`. */
export type MigrationResult = MigrationReport["result"];

/** What of a migration was seen that Dirtmap only watched. */
export type WatchedReport = Immutable<z.output<typeof watchedSchema>>;

/** One device in a report. If devices share an HWPT, there is no share per device, and the counts are null. */
export type DeviceReport = Immutable<z.output<typeof deviceReportSchema>>;

/** The time, pages and bytes of one round. Times are milliseconds. */
export type RoundReport = Immutable<z.output<typeof roundReportSchema>>;

/** How many were looked at, and what is wrong with some. */
export type Findings = Immutable<z.output<typeof findingsSchema>>;

/** The destination's findings after the workload had run on there. */
export type DestinationReport = Immutable<z.output<typeof destinationReportSchema>>;

/** The comparison of the two memories, page by page. */
export type MemoryComparison = Immutable<z.output<typeof memoryComparisonSchema>>;

/** The outcome predicted before a migration began. The report shows it beside the actual outcome. */
export type PredictedOutcome = Immutable<z.output<typeof predictedOutcomeSchema>>;

/** The error's code of a migration that is `indeterminate` because the operator said `abort`. */
export const GIVEN_UP = "GIVEN_UP";

/** The code of an error: the watch of a migration was ended, and the migration went on. */
export const WATCH_ENDED = "WATCH_ENDED";

/** The phases in which a migration moves the machine: from the first page sent until the destination runs. */
const MOVING: readonly string[] = ["pre-copy", "pausing", "stop-copy", "handover"];

/** Milliseconds from the first page sent until the destination ran, or the migration ended. */
export function movingMs({ phases }: Pick<MigrationReport, "phases">): number {
  return phases.reduce((sum, { phase, ms }) => sum + (MOVING.includes(phase) ? ms : 0), 0);
}
