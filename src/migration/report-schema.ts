import { z } from "zod";
import { TRACKING_DESIGNS } from "../tracking/choice.js";
import { TRACKER_KINDS } from "../tracking/tracker.js";

/*
 * A migration's report, field by field: the one schema that its types (report.ts), the feed, the dashboard's API and whoever
 * reads a report again are made of. Loaded with what checks reports; types alone load nothing.
 */

const count = z.int().min(0);
const bytes = z.number().min(0);
const ms = z.number().min(0);
const id = z.string().min(1).max(256);
const text = z.string().max(16_384);

/** The name of an owner of dirty bits, as tracking/owner.ts prints it; of as many devices as a machine may have. */
export const ownerNameSchema = z.string().min(1).max(16_384);

/** What one tracker reported. */
export const ownerCountsSchema = z.object({
  reported: count.describe("4 KiB pages"),
  exclusive: count.describe("of these, pages that no other tracker reported in the same read"),
  readMs: ms,
});

export const roundReportSchema = z
  .object({
    round: count,
    phase: z.enum(["pre-copy", "stop-copy"]),
    pages: count.describe("sent, zero pages included"),
    zeroPages: count,
    bytes,
    ms,
    remaining: bytes.describe("bytes still dirty at the end of the round, as the next read found"),
    byDevice: z
      .record(ownerNameSchema, ownerCountsSchema)
      .describe(
        "pages per tracker's owner: a device's id, `cpu`, `container`, or `domain:A+B` where devices share one",
      ),
  })
  .describe("what one round took, found and sent; times in milliseconds");

const trackerKind = z.enum(TRACKER_KINDS);

/** In place of a tracker and of a design: not Dirtmap tracks, but the VMM that moves the memory. */
const VMM = "vmm";

export const deviceReportSchema = z
  .object({
    id,
    model: z.string().max(256),
    tracker: z
      .enum([...TRACKER_KINDS, VMM])
      .describe("`vmm`: the VMM that moves the memory finds out by itself what the device has written"),
    granule: count.nullable().describe("bytes per dirty bit; null: no bits, or tracking never started"),
    reason: text,
    alternatives: z
      .array(z.object({ tracker: trackerKind, why: text }))
      .max(16)
      .describe("trackers that were passed over, each with why"),
    pagesReported: count
      .nullable()
      .describe("4 KiB pages that its tracker reported, over all rounds; null: it shares a domain"),
    pagesExclusive: count.nullable().describe("of these, pages that no other tracker reported in the same round"),
    readMs: ms,
    suspendedMs: ms.describe("how long the device was suspended: its own outage; 0: it was not"),
  })
  .describe("one device; devices that share an HWPT have no share each: their counts are null");

export const findingsSchema = z.strictObject({
  checked: count,
  problems: z.array(z.strictObject({ owner: z.string().max(64), kind: z.string().max(64), count })).max(4096),
});

export const destinationReportSchema = z
  .strictObject({
    resumeMs: ms.describe("from the arrival of GO until everything ran"),
    stamps: findingsSchema
      .nullable()
      .describe(
        "units that devices and vCPUs stamped, checked after the workload had run on; null: nobody could check",
      ),
    requests: findingsSchema
      .optional()
      .describe("requests that drivers have queued, each of which must be done and completed once; absent: none"),
    written: z
      .record(z.string().max(64), count)
      .describe("per device and vCPU, units written or requests completed at the destination"),
  })
  .describe("what the destination found after the workload had run on there");

export const memoryComparisonSchema = z
  .object({
    pagesCompared: count,
    pagesDifferent: count,
    firstAddresses: z
      .array(z.string().max(32))
      .max(1024)
      .describe("guest-physical addresses of the first few pages that differ, in hexadecimal"),
    coveredBy: z
      .array(ownerNameSchema)
      .max(1024)
      .describe("owners whose trackers reported any of them during the migration; empty: none ever did"),
  })
  .describe("the comparison of the two memories, page by page");

export const predictedOutcomeSchema = z
  .object({
    converges: z.boolean(),
    rounds: count.describe("the stop-copy included; of one that doesn't converge, until it gives up"),
    downtimeMs: ms.nullable().describe("null: it doesn't converge"),
    movingMs: ms.nullable().describe("from the first page sent until the destination runs; null: it doesn't converge"),
    inTheWay: z.array(ownerNameSchema).max(1024).describe("owners in the way, the worst first; empty: it converges"),
    observedMs: ms.describe("how long the machine was observed"),
  })
  .describe("what was predicted before the migration began");

/** Why a migration does not end. */
export const SLOW_REASONS = [
  "dirty-rate",
  "bandwidth-limit",
  "downtime-limit",
  "switchover-bandwidth",
  "nothing-moves",
] as const;

export const slowReasonSchema = z.object({
  code: z.enum(SLOW_REASONS),
  have: z
    .number()
    .min(0)
    .describe(
      "`dirty-rate`: bytes per second that are sent; `bandwidth-limit`, `switchover-bandwidth`: the setting, the same; `downtime-limit`: the setting, in milliseconds",
    ),
  need: z.number().min(0).describe("what would be enough, in the same unit; `nothing-moves`: bytes that are left"),
});

/** A device's migration states, as its VMM told them. */
const statesSchema = z.array(z.object({ state: z.string().max(64), atMs: ms })).max(10_000);

export const watchedSchema = z
  .object({
    name: text.nullable().describe("the guest's name, as its VMM has it"),
    uuid: z.string().max(64).nullable(),
    fromBeginning: z.boolean().describe("false: it was under way when the watch began"),
    statuses: statesSchema.describe("the migration's, by QEMU's names"),
    devices: z.array(z.object({ id, states: statesSchema })).max(256),
    deviceBytes: bytes.nullable().describe("of all devices' states, a sum; null: the VMM told none"),
    settings: z.record(z.string().max(64), z.union([z.number(), z.boolean(), z.null()])),
    changes: z
      .array(z.object({ atMs: ms, setting: z.string().max(64), to: z.union([z.number(), z.boolean(), z.null()]) }))
      .max(10_000)
      .describe("of settings, while it was watched"),
    stalls: z
      .array(
        z.object({
          fromMs: ms,
          toMs: ms.nullable().describe("null: to the end"),
          reasons: z.array(slowReasonSchema).max(512),
        }),
      )
      .max(10_000),
  })
  .describe("a migration that Dirtmap only watched");

export const migrationReportSchema = z
  .object({
    schemaVersion: z.literal(1),
    migration: z.string().max(256).describe("the id that `dirtmap resume` and `dirtmap abort` take"),
    result: z.enum(["completed", "cancelled", "failed", "indeterminate"]),
    verified: z
      .boolean()
      .nullable()
      .describe(
        "the destination's memory equals the source's, and what was written and requested is whole; null: not compared",
      ),
    totalMs: ms,
    downtimeMs: ms.nullable(),
    bytes: bytes.describe("sent, over all channels and the control connection"),
    phases: z
      .array(z.object({ phase: z.string().max(64), ms }))
      .max(64)
      .describe("time in each phase that was reached, in order"),
    rounds: z.array(roundReportSchema).max(100_000),
    devices: z.array(deviceReportSchema).max(1024),
    design: z.enum([...TRACKING_DESIGNS, VMM]).describe("`vmm`: the VMM that moves the memory tracks it, too"),
    policy: text,
    memory: memoryComparisonSchema.nullable(),
    destination: destinationReportSchema.nullable(),
    predicted: predictedOutcomeSchema.nullable(),
    watched: watchedSchema.exactOptional(),
    warnings: z.array(text).max(4096).describe("what the operator should know of, though it did not end the migration"),
    error: z
      .object({
        code: z.string().max(256),
        message: text,
        remedy: text.optional(),
        device: z
          .object({ id, side: z.enum(["source", "destination"]), reason: text })
          .exactOptional()
          .describe("the device that it is about, of which side, and why in its own words; absent: it is about none"),
      })
      .exactOptional(),
  })
  .describe("what `dirtmap migrate --json` prints, without the conditions");
