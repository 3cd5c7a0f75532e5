import { z } from "zod";
import type { Immutable } from "../../immutable.js";
import { DEVICE_TRACKERS, POLICY_ORDERS } from "../../tracking/choice.js";

/*
 * A recommendation, field by field: its file, its JSON and its types. recommend.ts makes it, recommendation.ts reads it.
 */

/** Raised when the file changes so that a reader of the old could misread it. */
export const RECOMMENDATION_VERSION = 1;

/** By what a tracker was preferred. `order`: by nothing that was measured. */
export const CRITERIA = ["converges", "downtime", "total", "dma", "round", "order"] as const;
/** By what a tracker was preferred. */
export type Criterion = (typeof CRITERIA)[number];

const amount = z.number().min(0);
const ms = amount.nullable();
const name = z.string().min(1).max(256);
const text = z.string().max(4096);
/** Below 0, the device gained. */
const loss = z.number().max(1).nullable();

const judgedFigures = z
  .object({
    converges: z.boolean().nullable().describe("the machine can be stopped within the downtime limit"),
    rounds: z.int().min(0).nullable(),
    totalMs: ms,
    downtimeMs: ms,
    totalAtLeastMs: ms.describe("had nothing disturbed the reads"),
    downtimeAtLeastMs: ms.describe("had nothing disturbed the reads"),
    dmaLoss: loss.describe("share of its DMA writes that the device loses while it is tracked; below 0, it gained"),
    dmaLossRange: z
      .tuple([z.number(), z.number()])
      .nullable()
      .describe("the loss lies between these with 95 % confidence"),
    dmaLossAtLeast: loss.describe(
      "what is certain of it; 0: the measurement does not tell whether it is a loss at all",
    ),
    readMs: ms.describe("of a read at the device's work"),
    roundMs: ms.describe("the same, with the time of sending what the read names though nobody wrote it"),
    roundAtLeastMs: ms.describe("the same, had nothing disturbed the read"),
    precision: amount.nullable().describe("pages named over pages written"),
  })
  .describe("the figures that a tracker is judged by; null: it was not, or could not be, measured");

const trackerAt = z.object({
  tracker: z.enum(DEVICE_TRACKERS),
  granule: z.int().min(1).nullable().describe("bytes per dirty bit; null: the tracker's own choice, or no bits"),
});

const margin = z
  .object({
    over: trackerAt,
    by: z.enum(CRITERIA).describe("the first criterion by which the two can be told apart"),
    figure: z
      .number()
      .nullable()
      .describe("what is certain by that criterion, in ms or, for `dma`, as a share; null for `order`, or not known"),
    overFigure: z.number().nullable().describe("the same of the other"),
    text: text.describe("what speaks against the other, as a clause whose subject it is"),
  })
  .describe("what is recommended, against another tracker of the device");

const recommendedDevice = z
  .object({
    id: name,
    model: name,
    ...trackerAt.shape,
    domain: z.enum(["per-device", "shared"]).nullable().describe("null: the tracker needs no domain"),
    figures: judgedFigures,
    margin: margin.nullable().describe("against the second best; null: there is no other tracker"),
    alternatives: z
      .array(margin.extend({ figures: judgedFigures }))
      .max(1024)
      .describe("against all others, the nearest first, with the figures of each"),
    reason: text,
  })
  .describe("what is recommended for one device");

const link = z.object({ bandwidth: amount.describe("bytes per second"), downtimeLimitMs: amount });

export const recommendationSchema = z
  .object({
    schemaVersion: z.literal(RECOMMENDATION_VERSION),
    kind: z.literal("recommendation"),
    takenAt: z.iso.datetime().describe("when the benchmark was taken: ISO 8601, UTC"),
    host: name,
    scenario: name.nullable(),
    link: link.describe("the migration that it is for"),
    order: z.enum(POLICY_ORDERS).describe("whom ties went to"),
    devices: z.array(recommendedDevice).max(1024),
  })
  .describe("what `dirtmap recommend --output FILE` writes");

/** What a policy needs of a recommendation; the figures beside it are for people, who may leave them out of a file. */
export const followedSchema = recommendationSchema.pick({ schemaVersion: true, kind: true }).extend({
  devices: z
    .array(recommendedDevice.pick({ id: true, model: true, tracker: true, granule: true, domain: true, reason: true }))
    .max(1024),
});

/** A recommendation, as `dirtmap recommend --output FILE` writes it. */
export type Recommendation = Immutable<z.output<typeof recommendationSchema>>;

/** The recommendation for one device. */
export type RecommendedDevice = Immutable<z.output<typeof recommendedDevice>>;

/** The comparison of the recommended tracker with another tracker of the device. */
export type Margin = Immutable<z.output<typeof margin>>;

/** A tracker at a granule. */
export type TrackerAt = Immutable<z.output<typeof trackerAt>>;

/** The figures that a tracker is judged by. null: it was not, or could not be, measured. */
export type JudgedFigures = Immutable<z.output<typeof judgedFigures>>;
