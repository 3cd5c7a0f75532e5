import type { HwInfo, MigrationSupport, TrackingFlags } from "../host/host.js";
import type { DeviceTracker } from "./choice.js";

/** What a tracker that a device has can do. */
export interface TrackerAvailable {
  readonly available: true;
  /** Bytes per bit that it can be asked for, ascending; empty where the host can't tell, or there are no bits. */
  readonly pageSizes: readonly number[];
  readonly readableWhen: "always" | "quiesced";
  /** Where its bits come from, as a phrase that can follow "has": "dirty bits in its page table (amd)". */
  readonly what: string;
}

/** A tracker that a device lacks. */
export interface TrackerMissing {
  readonly available: false;
  /** A clause: "its IOMMU (intel-vtd) has no dirty tracking". */
  readonly why: string;
}

export type TrackerCapability = TrackerAvailable | TrackerMissing;

/** All that is to be known of a device before trackers are chosen. */
export interface DeviceCapabilities {
  readonly id: string;
  readonly model: string;
  readonly mdev: boolean;
  /** The two capability flags that the thread asks for. */
  readonly flags: TrackingFlags;
  /** null: the device can't migrate. */
  readonly migration: MigrationSupport | null;
  /** The system IOMMU in front of it; null for an mdev, which has none. */
  readonly iommu: Pick<HwInfo, "type" | "dirtyTracking" | "pageSizes"> | null;
  readonly trackers: Readonly<Record<DeviceTracker, TrackerCapability>>;
}
