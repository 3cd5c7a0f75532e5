import type { PageRuns } from "../../bitmap/ram-runs.js";

/** What each tracker owner's pages were between two reads: the input of a prediction, and what a trace holds. */
export interface TraceInterval {
  /** Above 0. */
  readonly elapsedMs: number;
  /** With the ledger's keys. Owners that reported nothing are absent. */
  readonly owners: ReadonlyMap<string, PageRuns>;
}
