import { z } from "zod";
import type { Immutable } from "../../immutable.js";
import { machineReportSchema } from "../../machine-report.js";
import type { DeviceCapabilities } from "../../tracking/capabilities.js";
import { DEVICE_TRACKERS } from "../../tracking/choice.js";
import { comparisonSchema, summarySchema } from "../statistics.js";

/*
 * What a benchmark of trackers found: the content of its file, field by field. Raw enough that a recommendation for another link
 * or another downtime limit needs no new measurement. Times are milliseconds. file.ts reads and checks it.
 */

/** Raised when the file changes so that a reader of the old could misread it. */
export const BENCHMARK_VERSION = 1;

const ms = z.number().min(0);
const count = z.int().min(0);
const memory = z.int().min(4096);
const granule = z.int().min(1);
const name = z.string().min(1).max(256);
const text = z.string().max(4096);

const capability = z.discriminatedUnion("available", [
  z.object({
    available: z.literal(true),
    pageSizes: z.array(granule).max(64),
    readableWhen: z.enum(["always", "quiesced"]),
    what: text,
  }),
  z.object({ available: z.literal(false), why: text }),
]);

/** Of a device that was asked: nothing of it is unknown. */
const capabilities: z.ZodType<DeviceCapabilities> = z.object({
  id: name,
  model: name,
  mdev: z.boolean(),
  flags: z.object({ tracksInternally: z.boolean(), tracksThroughContainer: z.boolean() }),
  migration: z.object({ stopCopy: z.boolean(), p2p: z.boolean(), preCopy: z.boolean() }).nullable(),
  iommu: z
    .object({
      type: z.enum(["none", "intel-vtd", "arm-smmuv3", "amd", "other"]),
      dirtyTracking: z.boolean(),
      pageSizes: z.array(granule).max(64),
    })
    .nullable(),
  trackers: z.object({ iommu: capability, device: capability, pinned: capability, everything: capability }),
});

const growthPoint = z.object({ ms, pages: count });

const readFigures = z
  .object({
    memoryBytes: memory.describe("address space: guest memory that is mapped"),
    dirtyShare: z
      .number()
      .min(0)
      .max(1)
      .nullable()
      .describe("share of all pages that was to be dirty; null: not known"),
    writtenPages: count.nullable().describe("what really was dirty; null: nobody knows what the device wrote"),
    reportedPages: count,
    ms: summarySchema,
  })
  .describe("what a read costs");

const precisionFigures = z
  .object({ ms, writtenPages: count, reportedPages: count })
  .describe("what a tracker named after the device had written for a while, doing its work");

const trackerFigures = z
  .object({
    tracker: z.enum(DEVICE_TRACKERS),
    granule: granule.nullable().describe("bytes per bit that were asked for; null: none could be"),
    foundGranule: granule.nullable().describe("bytes per bit that it turned out to have; null: it has no bits"),
    readableWhen: z.enum(["always", "quiesced"]).describe("`quiesced`: read only once the device is stopped"),
    problem: text.nullable().describe("why there are no figures; null: there are"),
    attach: summarySchema.nullable().describe("until the device is attached to the domain that this tracker needs"),
    start: summarySchema.nullable(),
    stop: summarySchema.nullable(),
    reads: z.array(readFigures).max(1000),
    dma: comparisonSchema
      .nullable()
      .describe("DMA writes per second while tracked and read, of those while not, by pairs; null: not measurable"),
    precision: z
      .array(precisionFigures)
      .max(1000)
      .describe("between two reads: what was written, and what it named; empty: not measurable"),
  })
  .describe("what one tracker of a device costs and tells, at one granule");

const benchedDevice = z.object({
  id: name,
  model: name,
  iommuGroup: count
    .nullable()
    .describe("devices of a group that one guest gets stay together; null: none, or not known"),
  capabilities,
  stateBytes: count.nullable().describe("bytes of its state that are sent while it is stopped; null: it can't migrate"),
  writes: z
    .array(growthPoint)
    .max(1000)
    .nullable()
    .describe("different pages that it writes in so long, untracked, doing its work; ascending; null: nobody knows"),
  trackers: z.array(trackerFigures).max(256),
});

const sharingFigures = z
  .object({
    devices: z.array(name).min(2).max(1024),
    granule: granule.nullable(),
    domains: z.object({ separate: count, shared: count }).describe("HWPTs, and so page tables, in each case"),
    separateReads: z.array(summarySchema).max(1024).describe("of the HWPT of each device, in their order"),
    sharedRead: summarySchema.describe("of the HWPT that they share"),
    read: comparisonSchema.describe("the shared read's time, of that of all separate ones together, by pairs"),
    dma: comparisonSchema
      .nullable()
      .describe(
        "DMA writes of all per second while they share, of those while they don't, by pairs; null: not measurable",
      ),
  })
  .describe("devices that are tracked by the IOMMU: one HWPT for all, against one for each");

/** All that one run of `dirtmap bench trackers` found, as a file and as JSON. */
export const trackerBenchmarkSchema = z
  .object({
    schemaVersion: z.literal(BENCHMARK_VERSION),
    kind: z.literal("trackers"),
    takenAt: z.iso.datetime().describe("when it began: ISO 8601, UTC"),
    quick: z.boolean().describe("taken with few repetitions"),
    machine: machineReportSchema,
    host: name,
    scenario: name.nullable(),
    measures: text.describe("what the figures are of, in a sentence"),
    memoryBytes: memory.describe("guest memory of the machine whose migration is estimated"),
    devices: z.array(benchedDevice).max(1024),
    sharing: z.array(sharingFigures).max(1024).describe("empty: no two devices can share"),
    leftOut: z
      .array(z.object({ id: name, why: text }))
      .max(1024)
      .describe("devices that could not be measured at all, each with why"),
  })
  .describe("a benchmark of trackers: what `dirtmap bench trackers --json` prints");

/** The result of one run of `dirtmap bench trackers`. */
export type TrackerBenchmark = Immutable<z.output<typeof trackerBenchmarkSchema>>;

export type BenchedDevice = Immutable<z.output<typeof benchedDevice>>;

/** A point of a curve. */
export type GrowthPoint = Immutable<z.output<typeof growthPoint>>;

/** The costs and the exactness of one tracker of a device, at one granule. Times are milliseconds. */
export type TrackerFigures = Immutable<z.output<typeof trackerFigures>>;

/** What a read costs. */
export type ReadFigures = Immutable<z.output<typeof readFigures>>;

/** What a tracker named after the device had written for a while, doing its work. */
export type PrecisionFigures = Immutable<z.output<typeof precisionFigures>>;

/** Devices that are tracked by the IOMMU: one HWPT for all, against one for each. */
export type SharingFigures = Immutable<z.output<typeof sharingFigures>>;
