import type { DeviceCapabilities } from "../../tracking/capabilities.js";
import type { DeviceTracker } from "../../tracking/choice.js";
import type { MachineReport } from "../machine.js";
import type { Comparison, Summary } from "../statistics.js";

/*
 * What a benchmark of trackers found: the content of its file. Raw enough that a recommendation for another link or another
 * downtime limit needs no new measurement. file.ts reads and checks it.
 */

/** Raised when the file changes so that a reader of the old could misread it. */
export const BENCHMARK_VERSION = 1;

/** All that one run of `dirtmap bench trackers` found. */
export interface TrackerBenchmark {
  readonly schemaVersion: typeof BENCHMARK_VERSION;
  readonly kind: "trackers";
  /** When it began: ISO 8601, UTC. */
  readonly takenAt: string;
  /** Taken with few repetitions. */
  readonly quick: boolean;
  readonly machine: MachineReport;
  readonly host: string;
  readonly scenario: string | null;
  /** What the figures are of, in a sentence. */
  readonly measures: string;
  /** Bytes of guest memory of the machine whose migration is estimated. */
  readonly memoryBytes: number;
  readonly devices: readonly BenchedDevice[];
  /** Devices on one HWPT, against one each. Empty where no two devices can share. */
  readonly sharing: readonly SharingFigures[];
  /** Devices that could not be measured at all, each with why. */
  readonly leftOut: readonly { readonly id: string; readonly why: string }[];
}

export interface BenchedDevice {
  readonly id: string;
  readonly model: string;
  /** Of those that one guest gets, devices of a group stay together. null: none, or not known. */
  readonly iommuGroup: number | null;
  readonly capabilities: DeviceCapabilities;
  /** Bytes of its state that are sent while it is stopped; null: it can't migrate. */
  readonly stateBytes: number | null;
  /** Different pages that it writes in so long, untracked, doing its work; ascending. null: nobody knows. */
  readonly writes: readonly GrowthPoint[] | null;
  readonly trackers: readonly TrackerFigures[];
}

/** A point of a curve. */
export interface GrowthPoint {
  readonly ms: number;
  readonly pages: number;
}

/** What one tracker of a device costs and tells, at one granule. Times are in milliseconds. */
export interface TrackerFigures {
  readonly tracker: DeviceTracker;
  /** Bytes per bit that were asked for; null: none could be. */
  readonly granule: number | null;
  /** Bytes per bit that it turned out to have; null: it has no bits. */
  readonly foundGranule: number | null;
  /** `quiesced`: read only once the device is stopped. */
  readonly readableWhen: "always" | "quiesced";
  /** Why there are no figures; null: there are. */
  readonly problem: string | null;
  /** Until the device is attached to the domain that this tracker needs. */
  readonly attach: Summary | null;
  readonly start: Summary | null;
  readonly stop: Summary | null;
  readonly reads: readonly ReadFigures[];
  /** DMA writes per second while tracked and read, of those while not, by pairs. null: not measurable. */
  readonly dma: Comparison | null;
  /** Between two reads: what was written, and what it named. Empty: not measurable. */
  readonly precision: readonly PrecisionFigures[];
}

/** What a read costs. */
export interface ReadFigures {
  /** Address space: guest memory that is mapped. */
  readonly memoryBytes: number;
  /** Share of all pages that was to be dirty, and what really was; null: nobody knows what the device wrote. */
  readonly dirtyShare: number | null;
  readonly writtenPages: number | null;
  readonly reportedPages: number;
  readonly ms: Summary;
}

/** What a tracker named after the device had written for a while, doing its work. */
export interface PrecisionFigures {
  readonly ms: number;
  readonly writtenPages: number;
  readonly reportedPages: number;
}

/** Devices that are tracked by the IOMMU: one HWPT for all, against one for each. */
export interface SharingFigures {
  readonly devices: readonly string[];
  readonly granule: number | null;
  /** HWPTs, and so page tables, in each case. */
  readonly domains: { readonly separate: number; readonly shared: number };
  /** Milliseconds of a read: of the HWPT of each device, in their order, and of the one that they share. */
  readonly separateReads: readonly Summary[];
  readonly sharedRead: Summary;
  /** The shared read's time, of that of all separate ones together, by pairs. */
  readonly read: Comparison;
  /** DMA writes of all the devices per second while they share, of those while they don't, by pairs. null: not measurable. */
  readonly dma: Comparison | null;
}
