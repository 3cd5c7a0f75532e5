import { z } from "zod";
import { FEED_VERSION, feedEventSchema, feedHeaderSchema } from "../feed/schema.js";
import { conditionsSchema } from "./conditions-schema.js";

/*
 * What the API answers. The document at /api is made from these schemas, and tests hold the answers against them.
 */

/** Raised when an answer changes so that a reader of the old could misread it. */
export const API_VERSION = 1;

const schemaVersion = z
  .literal(API_VERSION)
  .describe("raised when an answer changes so that an old reader misreads it");
const time = z.string().describe("ISO 8601, UTC");
const ms = z.number().nullable().describe("milliseconds; null: it never came to that");

const runSummary = z.object({
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

const benchmarkSummary = z.object({
  id: z.int().describe("of the store"),
  kind: z.string().describe("trackers, designs …"),
  host: z.string(),
  scenario: z.string(),
  takenAt: time,
});

/** The answers, by name. */
export const API_SCHEMAS = {
  Error: z
    .object({
      schemaVersion,
      error: z.object({ code: z.string(), message: z.string(), remedy: z.string().optional() }),
    })
    .describe("What is wrong, and what would work"),
  LiveRuns: z
    .object({ schemaVersion, runs: z.array(feedHeaderSchema).describe("the newest first") })
    .describe("Runs in progress"),
  LiveRun: z
    .object({ schemaVersion, run: feedHeaderSchema, events: z.array(feedEventSchema).describe("told so far") })
    .describe(`A run in progress; its events are of feed version ${FEED_VERSION}`),
  Runs: z
    .object({ schemaVersion, runs: z.array(runSummary).describe("the newest first") })
    .describe("Runs that are over"),
  Run: z
    .object({
      schemaVersion,
      run: runSummary.extend({
        header: z.unknown().describe("as its live feed described it"),
        report: z.unknown().describe("what `dirtmap migrate --json` printed, without the conditions"),
        reads: z.unknown().describe("its reads of the trackers: events of type `read`"),
        conditions: conditionsSchema.nullable(),
      }),
    })
    .describe("A run that is over"),
  Benchmarks: z
    .object({ schemaVersion, benchmarks: z.array(benchmarkSummary).describe("the newest first") })
    .describe("Saved benchmarks"),
  Benchmark: z
    .object({
      schemaVersion,
      benchmark: benchmarkSummary.extend({
        machine: z.unknown().describe("where it was taken"),
        result: z.unknown().describe("the benchmark's own JSON"),
      }),
    })
    .describe("A saved benchmark"),
  Recommendation: z
    .object({
      schemaVersion,
      recommendation: z.unknown().describe("what `dirtmap recommend --json` prints; null: no benchmark"),
    })
    .describe("The tracker, granule and domain per device that the newest benchmark of trackers speaks for"),
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
