import type { PageRuns } from "../../bitmap/ram-runs.js";

/** The pages that each owner dirtied between two reads. Predictions and traces are made of them. */
export interface TraceInterval {
  /** Milliseconds from the previous read, above 0. */
  readonly elapsedMs: number;
  /** Pages by the ledger's keys. Owners that reported nothing are absent. */
  readonly owners: ReadonlyMap<string, PageRuns>;
}
