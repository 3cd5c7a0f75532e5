import type { HwInfo, MigrationSupport } from "../host/host.js";
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

/** A tracker of which nothing tells whether the device has it. */
export interface TrackerUnknown {
  readonly available: "unknown";
  /** A clause: "nothing is known of its driver vendor_vfio_pci". */
  readonly why: string;
}

/** What is known of one tracker of a device: it is there, missing with a reason, or not to be told. */
export type TrackerCapability = TrackerAvailable | TrackerMissing | TrackerUnknown;

/** An answer that a probed device always gives, and that a guess may not have. */
export type Answer = boolean | "unknown";

/** All that is to be known of a device before trackers are chosen. A device that was asked leaves nothing `unknown`. */
export interface DeviceCapabilities {
  readonly id: string;
  readonly model: string;
  readonly mdev: boolean;
  /** The two capability flags that the thread asks for. */
  readonly flags: { readonly tracksInternally: Answer; readonly tracksThroughContainer: Answer };
  /** null: the device can't migrate. */
  readonly migration: MigrationSupport | null | "unknown";
  /** The system IOMMU in front of it; null for an mdev, which has none. */
  readonly iommu: (Pick<HwInfo, "type" | "pageSizes"> & { readonly dirtyTracking: Answer }) | null;
  readonly trackers: Readonly<Record<DeviceTracker, TrackerCapability>>;
}
