/*
 * What the dashboard shows of the past. Whoever starts it says where that is kept; the command line gives it the store.
 */

/** A list's entry of a run that is over. */
export interface PastRunSummary {
  readonly id: number;
  readonly kind: string;
  /** How it was called while it ran. */
  readonly name: string;
  readonly scenario: string;
  readonly host: string;
  readonly startedAt: string;
  readonly result: string;
  readonly totalMs: number | null;
  readonly downtimeMs: number | null;
}

/** A run that is over, with what it reported. */
export interface PastRun extends PastRunSummary {
  readonly header: unknown;
  readonly report: unknown;
  readonly reads: unknown;
  readonly conditions: unknown;
}

export interface BenchmarkEntry {
  readonly id: number;
  readonly kind: string;
  readonly host: string;
  readonly scenario: string;
  readonly takenAt: string;
}

export interface BenchmarkRecord extends BenchmarkEntry {
  readonly machine: unknown;
  readonly result: unknown;
}

/** Where evidence is kept. Its methods throw a DirtmapError: `NO_SUCH_RUN`, `NO_SUCH_BENCHMARK`, `STORE_BUSY` … */
export interface EvidenceSource {
  runs(query: { limit: number; before?: number }): readonly PastRunSummary[];
  run(id: number): PastRun;
  benchmarks(query: { limit: number; kind?: string }): readonly BenchmarkEntry[];
  benchmark(id: number): BenchmarkRecord;
}
