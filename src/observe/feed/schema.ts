import { z } from "zod";
import type { Immutable } from "../../immutable.js";
import { migrationEventSchema } from "../../migration/events-schema.js";

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
const count = z.int().min(0);

/** What a run is, and of which devices: the header of its feed, and of what is kept of it. */
export const runHeaderSchema = z.object({
  run: runIdSchema,
  kind: z
    .string()
    .regex(/^[a-z][a-z-]{0,31}$/)
    .describe("`migration`, `watch` …"),
  scenario: name,
  host: name,
  startedAt: z.iso.datetime().describe("ISO 8601, UTC"),
  devices: z
    .array(
      z.object({
        id: name,
        model: z.string().max(64),
        tracker: z.string().max(32),
        granule: count
          .nullable()
          .describe("bytes per dirty bit, as asked for; null: the tracker's own choice, or none"),
        domain: z
          .string()
          .max(16_384)
          .nullable()
          .describe("devices of one key are to share an HWPT; null: it needs none"),
        suspended: z.boolean().exactOptional().describe("stopped for the length of the migration; absent: it runs"),
      }),
    )
    .max(256),
  memoryBytes: count,
  downtimeLimitMs: z.number().min(0).exactOptional(),
});

export const feedHeaderSchema = z.object({ schemaVersion: z.literal(FEED_VERSION), ...runHeaderSchema.shape });

export const feedEventSchema = z.discriminatedUnion("type", [
  migrationEventSchema,
  z
    .object({ type: z.literal("lost"), events: z.int().min(1) })
    .describe("the reader was too slow: so many events were left out here"),
]);

/** What a run is, and of which devices. */
export type RunHeader = Immutable<z.output<typeof runHeaderSchema>>;
export type FeedHeader = Immutable<z.output<typeof feedHeaderSchema>>;
export type FeedEvent = Immutable<z.output<typeof feedEventSchema>>;
