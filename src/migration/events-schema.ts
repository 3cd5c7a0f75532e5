import { z } from "zod";
import { MIGRATION_PHASES } from "./events.js";
import { ownerCountsSchema, ownerNameSchema, roundReportSchema, slowReasonSchema } from "./report-schema.js";

/*
 * The events of a run, field by field: their types (events.ts), live feeds and the dashboard's API are made of these.
 */

const count = z.int().min(0);
const amount = z.number().min(0);
const atMs = amount.describe("milliseconds since the run began");

const phase = z
  .object({
    type: z.literal("phase"),
    phase: z.enum(MIGRATION_PHASES),
    atMs,
    text: z.string().max(16_384).exactOptional(),
  })
  .describe("a phase of the migration began, or how it ended");

const round = z.object({ type: z.literal("round"), round: roundReportSchema }).describe("a round is over");

const progress = z
  .object({
    type: z.literal("progress"),
    atMs,
    round: count,
    sentBytes: amount.describe("in this round"),
    remainingBytes: amount.describe("of this round"),
    bytesPerSecond: amount,
    expectedDowntimeMs: amount.nullable().describe("if the machine were stopped now; null: not known yet"),
    dirtyBytesPerSecond: z
      .record(ownerNameSchema, amount)
      .describe("per tracker's owner, bytes dirtied per second between its last two reads"),
  })
  .describe("how a round goes on, a few times a second");

const MAX_BUCKETS = 4096;

/** Checked by a loop: a run that is over may have millions, and zod takes up to half a microsecond for each. */
const heat = z
  .custom<number[]>(
    (value) =>
      Array.isArray(value) &&
      value.length <= MAX_BUCKETS &&
      value.every((pages) => Number.isSafeInteger(pages) && pages >= 0),
    `at most ${MAX_BUCKETS} counts of pages`,
  )
  .meta({
    type: "array",
    items: { type: "integer", minimum: 0 },
    maxItems: MAX_BUCKETS,
    description: "pages reported per stretch of RAM, in the order of addresses; their sum is `reported`",
  });

export const ownerReadSchema = ownerCountsSchema.extend({ heat });

export const readEventSchema = z
  .object({
    type: z.literal("read"),
    atMs,
    round: count.nullable().describe("the round that it ended; null: nothing is being migrated"),
    elapsedMs: amount.describe("since the read before, or since tracking was switched on"),
    owners: z
      .record(ownerNameSchema, ownerReadSchema)
      .describe("by the owners' names; those whose log could not be read yet are absent"),
  })
  .describe("one read of all trackers");

const deviceState = z
  .object({
    type: z.literal("device"),
    atMs,
    device: z.string().min(1).max(256),
    state: z.string().max(64).describe("as its VMM calls it: `pre-copy`, `stop-copy`, `running` …"),
  })
  .describe("a device's migration state changed");

export const rangeSchema = z.object({ low: amount, high: amount });

const diagnosis = z
  .object({
    type: z.literal("diagnosis"),
    atMs,
    converging: z.boolean().nullable().describe("null: can't be told yet"),
    stalled: z.boolean(),
    reasons: z.array(slowReasonSchema).max(512).describe("empty: it converges, or nothing is known"),
    leftMs: z
      .object({ low: amount, high: amount.nullable().describe("null: no bound") })
      .nullable()
      .describe("until the machine is stopped; null: not known, or never"),
    downtimeMs: rangeSchema.nullable(),
    sentBytesPerSecond: amount.nullable().describe("null, as of the next: not known yet"),
    dirtiedBytesPerSecond: amount.nullable().describe("by vCPUs and devices together"),
    passBytes: amount.nullable().describe("what the newest pass had to send"),
  })
  .describe("whether a migration that is watched will end, and why not");

export const migrationEventSchema = z.discriminatedUnion("type", [
  phase,
  round,
  progress,
  readEventSchema,
  deviceState,
  diagnosis,
]);
