import type { HwInfo } from "../host/host.js";
import { MiB } from "../memory/address.js";
import type { DeviceCapabilities, TrackerCapability } from "./capabilities.js";

const has = (...pageSizes: number[]): TrackerCapability => {
  return { available: true, pageSizes, readableWhen: "always", what: "its dirty bits" };
};
const lacks: TrackerCapability = { available: false, why: "it has none" };

/** What a device has; by default no tracker, and the states of migration. */
export interface Parts {
  mdev?: boolean;
  /** Its IOMMU tracks; for an mdev: its hardware can mark a shared tracker. */
  iommu?: boolean;
  /** It has a log of its own. */
  own?: boolean;
  /** It can migrate. */
  stop?: boolean;
  p2p?: boolean;
  /** Its IOMMU's type. */
  type?: HwInfo["type"];
}

/** A device as a probe would describe it. */
export function device(
  id: string,
  { mdev = false, iommu = false, own = false, stop = true, p2p = true, type = "intel-vtd" }: Parts,
): DeviceCapabilities {
  const log = own ? has(4096, 65536) : lacks;
  return {
    id,
    model: "test",
    mdev,
    flags: { tracksInternally: own, tracksThroughContainer: mdev && iommu },
    migration: stop ? { stopCopy: true, p2p, preCopy: false } : null,
    iommu: mdev ? null : { type, dirtyTracking: iommu, pageSizes: [4096, 2 * MiB] },
    trackers: {
      iommu: iommu ? has(...(mdev ? [4096] : [4096, 2 * MiB])) : lacks,
      device: mdev ? lacks : log,
      pinned: mdev ? log : lacks,
      everything: has(),
    },
  };
}
