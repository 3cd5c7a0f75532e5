import { z } from "zod";

/*
 * What travels over a feed, a line of JSON each: first the header, then events. Both ends check with this schema what
 * comes from the other, and bound it: a feed is a socket that any process of the same user may have made.
 */

/** Raised when a reader of the old could misread the new. */
export const FEED_VERSION = 1;

/** The longest line: 256 owners with 256 numbers each, and room. */
export const MAX_LINE_BYTES = 4 * 2 ** 20;

/** What a run may be called: part of a socket's path, and of a URL. */
export const runIdSchema = z.string().regex(/^[0-9a-z][0-9a-z-]{0,63}$/, "digits, lower-case letters and '-'");

const name = z.string().min(1).max(256);
/** A tracker's owner: a device, `cpu`, `container`, or `domain:` and the devices that share it. */
const owner = z.string().min(1).max(16_384);
const count = z.int().min(0);
const amount = z.number().min(0);

export const feedHeaderSchema = z.object({
  schemaVersion: z.literal(FEED_VERSION),
  run: runIdSchema,
  /** `migration`, `watch` … */
  kind: z.string().regex(/^[a-z][a-z-]{0,31}$/),
  scenario: name,
  host: name,
  /** ISO 8601, UTC. */
  startedAt: z.iso.datetime(),
  devices: z
    .array(
      z.object({
        id: name,
        model: z.string().max(64),
        tracker: z.string().max(32),
        /** Bytes per dirty bit, as asked for; null: the tracker's own choice, or none. */
        granule: count.nullable(),
        /** The devices on its HWPT; null: it has none of its own that tracks. */
        domain: z.string().max(16_384).nullable(),
        /** It is stopped for the length of the migration; absent: it runs. */
        suspended: z.boolean().exactOptional(),
      }),
    )
    .max(256),
  memoryBytes: count,
  downtimeLimitMs: amount.exactOptional(),
});

const read = z.object({
  type: z.literal("read"),
  atMs: amount,
  round: count.nullable(),
  elapsedMs: amount,
  owners: z.record(
    owner,
    z.object({ reported: count, exclusive: count, readMs: amount, heat: z.array(count).max(4096) }),
  ),
});

const round = z.object({
  type: z.literal("round"),
  round: z.object({
    round: count,
    phase: z.enum(["pre-copy", "stop-copy"]),
    pages: count,
    zeroPages: count,
    bytes: amount,
    ms: amount,
    remaining: amount,
    byDevice: z.record(owner, z.object({ reported: count, exclusive: count, readMs: amount })),
  }),
});

export const feedEventSchema = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("phase"),
    phase: z.enum([
      "connecting",
      "suspending",
      "tracking",
      "pre-copy",
      "pausing",
      "stop-copy",
      "verifying",
      "handover",
      "running-at-destination",
      "auditing",
      "completed",
      "failed",
      "cancelled",
      "indeterminate",
    ]),
    atMs: amount,
    text: z.string().max(16_384).exactOptional(),
  }),
  round,
  z.object({
    type: z.literal("progress"),
    atMs: amount,
    round: count,
    sentBytes: amount,
    remainingBytes: amount,
    bytesPerSecond: amount,
    expectedDowntimeMs: amount.nullable(),
    dirtyBytesPerSecond: z.record(owner, amount),
  }),
  read,
  /** The reader was too slow: so many events were left out here. */
  z.object({ type: z.literal("lost"), events: z.int().min(1) }),
]);

export type FeedHeader = z.output<typeof feedHeaderSchema>;
export type FeedEvent = z.output<typeof feedEventSchema>;
