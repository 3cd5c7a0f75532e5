import { z } from "zod";
import type { Immutable } from "../../immutable.js";
import { machineReportSchema } from "../../machine-report.js";
import { readEventSchema } from "../../migration/events-schema.js";
import { deviceReportSchema, migrationReportSchema, roundReportSchema } from "../../migration/report-schema.js";
import { runConditionsSchema } from "../conditions-schema.js";
import { FEED_VERSION, feedEventSchema, feedHeaderSchema, runHeaderSchema } from "../feed/schema.js";

/*
 * What the API answers, made of the documents' own schemas. The document at /api is made from these, tests hold the answers
 * against them, and the page has its types from them.
 */

/** Raised when an answer changes so that a reader of the old could misread it. */
export const API_VERSION = 1;

const schemaVersion = z
  .literal(API_VERSION)
  .describe("raised when an answer changes so that an old reader misreads it");
const time = z.string().describe("ISO 8601, UTC");
const ms = z.number().nullable().describe("milliseconds; null: it never came to that");

export const runSummarySchema = z.object({
  id: z.int().describe("of the store"),
  kind: z.string().describe("migration, watch …"),
  name: z.string().describe("how it was called while it ran: a migration's id"),
  scenario: z.string(),
  host: z.string(),
  startedAt: time,
  result: z.string().describe("completed, failed, cancelled, indeterminate …"),
  totalMs: ms,
  downtimeMs: ms,
});

const keptReportSchema = migrationReportSchema
  .partial()
  .describe("what `dirtmap migrate --json` printed, without the conditions; an older Dirtmap's may lack fields");

/** A run with what is kept of it. A part of another form than today's is as good as none. */
export const pastRunSchema = runSummarySchema.extend({
  header: runHeaderSchema.nullable().describe("as its live feed described it; null: kept in another form"),
  report: keptReportSchema.nullable().describe("null: kept in another form"),
  reads: z.array(readEventSchema).describe("its reads of the trackers; of a long run some are left out"),
  conditions: runConditionsSchema.nullable(),
});

export const benchmarkSummarySchema = z.object({
  id: z.int().describe("of the store"),
  kind: z.string().describe("trackers, designs …"),
  host: z.string(),
  scenario: z.string(),
  takenAt: time,
});

/** The schemas of documents that are no run's; whoever serves them has them. */
export interface EvidenceSchemas<
  Benchmark extends z.ZodType = z.ZodType,
  Recommendation extends z.ZodType = z.ZodType,
> {
  /** A benchmark's own JSON. */
  readonly benchmark: Benchmark;
  readonly recommendation: Recommendation;
}

export const errorSchema = z
  .object({
    schemaVersion,
    error: z.object({ code: z.string(), message: z.string(), remedy: z.string().optional() }),
  })
  .describe("What is wrong, and what would work");

/** The answers, by name. */
export function apiSchemas<Benchmark extends z.ZodType, Recommendation extends z.ZodType>({
  benchmark,
  recommendation,
}: EvidenceSchemas<Benchmark, Recommendation>) {
  return {
    Error: errorSchema,
    LiveRuns: z
      .object({ schemaVersion, runs: z.array(feedHeaderSchema).describe("the newest first") })
      .describe("Runs in progress"),
    LiveRun: z
      .object({ schemaVersion, run: feedHeaderSchema, events: z.array(feedEventSchema).describe("told so far") })
      .describe(`A run in progress; its events are of feed version ${FEED_VERSION}`),
    Runs: z
      .object({ schemaVersion, runs: z.array(runSummarySchema).describe("the newest first") })
      .describe("Runs that are over"),
    Run: z.object({ schemaVersion, run: pastRunSchema }).describe("A run that is over"),
    Benchmarks: z
      .object({ schemaVersion, benchmarks: z.array(benchmarkSummarySchema).describe("the newest first") })
      .describe("Saved benchmarks"),
    Benchmark: z
      .object({
        schemaVersion,
        benchmark: benchmarkSummarySchema.extend({
          machine: machineReportSchema.nullable(),
          result: benchmark.nullable().describe("the benchmark's own JSON; null: kept in another form"),
        }),
      })
      .describe("A saved benchmark"),
    Recommendation: z
      .object({
        schemaVersion,
        recommendation: recommendation
          .nullable()
          .describe("what `dirtmap recommend --json` prints; null: no benchmark"),
      })
      .describe("The tracker, granule and domain per device that the newest benchmark of trackers speaks for"),
  } as const;
}

export type ApiSchemas = ReturnType<typeof apiSchemas>;

/** A list's entry of a run that is over. */
export type PastRunSummary = Immutable<z.output<typeof runSummarySchema>>;

/** A run that is over, with what is kept of it. */
export type PastRun = Immutable<z.output<typeof pastRunSchema>>;

/** A list's entry of a benchmark. */
export type BenchmarkSummary = Immutable<z.output<typeof benchmarkSummarySchema>>;

/** The documents within answers, by the names that the OpenAPI document gives them. */
export const API_DOCUMENTS = {
  RunHeader: runHeaderSchema,
  RunEvent: feedEventSchema,
  ReadEvent: readEventSchema,
  MigrationReport: keptReportSchema,
  RoundReport: roundReportSchema,
  DeviceReport: deviceReportSchema,
  RunConditions: runConditionsSchema,
  MachineReport: machineReportSchema,
} as const;

const listLimit = z.coerce.number().int().min(1).max(1000);

/** What lists take as a query. */
export const runsQuery = z.strictObject({
  limit: listLimit.default(100).describe("at most so many"),
  before: z.coerce.number().int().min(1).optional().describe("only those with a smaller id"),
});

export const benchmarksQuery = z.strictObject({
  limit: listLimit.default(100).describe("at most so many"),
  kind: z.string().max(64).optional().describe("of this kind only"),
});

export const eventsQuery = z.strictObject({
  run: z.string().max(64).optional().describe("of this run only"),
});
