import type { HwInfo, MigrationSupport } from "../host/host.js";
import type { DeviceTracker } from "./choice.js";

/** A tracker that a device has. */
export interface TrackerAvailable {
  readonly available: true;
  /** The granules that it supports, in bytes per bit, ascending. Empty if the host can't tell, or if there are no bits. */
  readonly pageSizes: readonly number[];
  readonly readableWhen: "always" | "quiesced";
  /** The origin of its bits, as a phrase that can follow "has": "dirty bits in its page table (amd)". */
  readonly what: string;
}

/** A tracker that a device lacks. */
export interface TrackerMissing {
  readonly available: false;
  /** The reason, as a clause: "its IOMMU (intel-vtd) has no dirty tracking". */
  readonly why: string;
}

/** A tracker that the device may or may not have. */
export interface TrackerUnknown {
  readonly available: "unknown";
  /** The reason, as a clause: "nothing is known of its driver vendor_vfio_pci". */
  readonly why: string;
}

/** One tracker of a device: available, missing with a reason, or unknown with a reason. */
export type TrackerCapability = TrackerAvailable | TrackerMissing | TrackerUnknown;

/** The answer to a question about a device. It is `unknown` only in a guess, never for a probed device. */
export type Answer = boolean | "unknown";

/** The facts about a device that the choice of trackers needs. For a probed device none is `unknown`. */
export interface DeviceCapabilities {
  readonly id: string;
  readonly model: string;
  readonly mdev: boolean;
  /** The two capability flags that the mailing-list thread asks for; see `TrackingFlags`. */
  readonly flags: { readonly tracksInternally: Answer; readonly tracksThroughContainer: Answer };
  /** null: the device can't migrate. */
  readonly migration: MigrationSupport | null | "unknown";
  /** The system IOMMU in front of the device; null for an mdev, which has none. */
  readonly iommu: (Pick<HwInfo, "type" | "pageSizes"> & { readonly dirtyTracking: Answer }) | null;
  readonly trackers: Readonly<Record<DeviceTracker, TrackerCapability>>;
}
