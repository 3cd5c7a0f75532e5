import type { HwInfo } from "../host/host.js";
import { MiB } from "../memory/address.js";
import type { Answer, DeviceCapabilities, TrackerCapability } from "./capabilities.js";

const has = (...pageSizes: number[]): TrackerCapability => {
  return { available: true, pageSizes, readableWhen: "always", what: "its dirty bits" };
};
const lacks: TrackerCapability = { available: false, why: "it has none" };
const unknown: TrackerCapability = { available: "unknown", why: "nothing tells" };

function tracker(answer: Answer, ...pageSizes: number[]): TrackerCapability {
  return answer === "unknown" ? unknown : answer ? has(...pageSizes) : lacks;
}

/** What a device has; by default no tracker, and the states of migration. */
export interface Parts {
  mdev?: boolean;
  /** Its IOMMU tracks; for an mdev: its hardware can mark a shared tracker. */
  iommu?: Answer;
  /** It has a log of its own. */
  own?: Answer;
  /** It can migrate. */
  stop?: Answer;
  p2p?: boolean;
  /** Its IOMMU's type. */
  type?: HwInfo["type"];
}

/** A device as a probe would describe it. */
export function device(
  id: string,
  { mdev = false, iommu = false, own = false, stop = true, p2p = true, type = "intel-vtd" }: Parts,
): DeviceCapabilities {
  const log = tracker(own, 4096, 65536);
  return {
    id,
    model: "test",
    mdev,
    flags: { tracksInternally: own, tracksThroughContainer: mdev && iommu === true },
    migration: stop === "unknown" ? stop : stop ? { stopCopy: true, p2p, preCopy: false } : null,
    iommu: mdev ? null : { type, dirtyTracking: iommu, pageSizes: [4096, 2 * MiB] },
    trackers: {
      iommu: tracker(iommu, ...(mdev ? [4096] : [4096, 2 * MiB])),
      device: mdev ? lacks : log,
      pinned: mdev ? log : lacks,
      everything: has(),
    },
  };
}
