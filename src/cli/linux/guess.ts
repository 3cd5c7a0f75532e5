import type { HwInfo } from "../../host/host.js";
import { factsOf } from "../../linux/missing/vfio-drivers.js";
import type { LinuxDevice } from "../../linux/sysfs/device.js";
import type { DeviceCapabilities, TrackerCapability } from "../../tracking/capabilities.js";
import { deviceCapabilities } from "../../tracking/probe.js";

const HW_TYPES: ReadonlyMap<string, HwInfo["type"]> = new Map([
  ["intel-iommu", "intel-vtd"],
  ["amd-iommu", "amd"],
  ["arm-smmu-v3", "arm-smmuv3"],
]);

/** GET_HW_INFO's name for the kind of IOMMU that sysfs shows in front of a device. */
export function hwTypeOf({ iommu }: LinuxDevice): HwInfo["type"] {
  return HW_TYPES.get(iommu?.type ?? "") ?? "other";
}

/**
 * What a device that can't be asked will probably say once it can: of its IOMMU what the IOMMU's registers say, of the
 * device what its VFIO driver can do. What nothing tells counts as lacking: a plan that counts on a tracker that is not
 * there would be worse than one that does without.
 * @param driver the VFIO driver that it has, or would get
 */
export function guessCapabilities(device: LinuxDevice, driver: string): DeviceCapabilities {
  const { id, model, kind, iommu } = device;
  const mdev = kind === "mdev";
  const facts = factsOf(driver);
  const log: TrackerCapability = facts?.dmaLogging
    ? { available: true, pageSizes: [], readableWhen: "always", what: `a log, by its driver ${driver}` }
    : {
        available: false,
        why: facts === null ? `nothing is known of its driver ${driver}` : `${driver} has no DMA logging`,
      };
  return deviceCapabilities({
    id,
    model,
    mdev,
    flags: { tracksInternally: facts?.dmaLogging === true, tracksThroughContainer: false },
    migration: facts?.migration ?? null,
    iommu: mdev ? null : { type: hwTypeOf(device), dirtyTracking: iommu?.dirtyTracking === true, pageSizes: [] },
    iommuTracker: mdev ? { available: false, why: "it is an mdev, which has no IOMMU" } : guessIommu(iommu),
    log,
  });
}

function guessIommu(iommu: LinuxDevice["iommu"]): TrackerCapability {
  if (iommu === null) return { available: false, why: "no IOMMU is in front of it" };
  const { name, type, dirtyTracking } = iommu;
  if (dirtyTracking === null) {
    return { available: false, why: `sysfs does not tell whether its IOMMU (${type}) has dirty tracking` };
  }
  if (!dirtyTracking) return { available: false, why: `the registers of its IOMMU (${name}) show no dirty tracking` };
  return {
    available: true,
    pageSizes: [],
    readableWhen: "always",
    what: `dirty bits in its page table, by the registers of ${name}`,
  };
}
