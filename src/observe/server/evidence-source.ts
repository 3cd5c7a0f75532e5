import type { BenchmarkSummary, EvidenceSchemas, PastRun, PastRunSummary } from "./api-schema.js";

/*
 * What the dashboard shows of the past. Whoever starts it says where that is kept, and what form it has; the command line gives
 * it the store.
 */

/** What is kept, as it was kept: the server checks it. */
type Kept<Document, Field extends keyof Document> = Omit<Document, Field> & { readonly [Name in Field]: unknown };

/** A run that is over, with what it reported. */
export type KeptRun = Kept<PastRun, "header" | "report" | "reads" | "conditions">;

/** A benchmark, with what it found. */
export type KeptBenchmark = BenchmarkSummary & { readonly machine: unknown; readonly result: unknown };

/** Where evidence is kept. Its methods throw a DirtmapError: `NO_SUCH_RUN`, `NO_SUCH_BENCHMARK`, `STORE_BUSY` … */
export interface EvidenceSource {
  readonly schemas: EvidenceSchemas;
  runs(query: { limit: number; before?: number }): readonly PastRunSummary[];
  run(id: number): KeptRun;
  benchmarks(query: { limit: number; kind?: string }): readonly BenchmarkSummary[];
  benchmark(id: number): KeptBenchmark;
  /** What the newest benchmark speaks for, of the form that {@link schemas} has; null: there is none. */
  recommendation(): object | null;
}
