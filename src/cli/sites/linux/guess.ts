import type { HwInfo } from "../../../host/host.js";
import { factsOf } from "../../../linux/obstacles/vfio-drivers.js";
import type { LinuxDevice } from "../../../linux/sysfs/device.js";
import type { DeviceCapabilities, TrackerCapability } from "../../../tracking/capabilities.js";
import { deviceCapabilities } from "../../../tracking/probe.js";

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
 * device what its VFIO driver can do. What nothing tells is `unknown`.
 * @param driver the VFIO driver that it has, or would get
 * @param noIommufd why there is no iommufd, by which alone an IOMMU's dirty bits are read; null: there is, or can be
 */
export function guessCapabilities(
  device: LinuxDevice,
  driver: string,
  noIommufd: string | null = null,
): DeviceCapabilities {
  const { id, model, kind } = device;
  const mdev = kind === "mdev";
  const facts = factsOf(driver);
  const tracks = guessIommu(device, noIommufd);
  return deviceCapabilities({
    id,
    model,
    mdev,
    flags: { tracksInternally: facts === null ? "unknown" : facts.dmaLogging, tracksThroughContainer: false },
    migration: facts === null ? "unknown" : facts.migration,
    iommu: mdev ? null : { type: hwTypeOf(device), dirtyTracking: tracks.available, pageSizes: [] },
    iommuTracker: mdev ? { available: false, why: "it is an mdev, which has no IOMMU" } : tracks,
    log: guessLog(driver),
  });
}

function guessLog(driver: string): TrackerCapability {
  const facts = factsOf(driver);
  if (facts === null) return { available: "unknown", why: `nothing is known of its driver ${driver}` };
  if (!facts.dmaLogging) return { available: false, why: `${driver} has no DMA logging` };
  return { available: true, pageSizes: [], readableWhen: "always", what: `a log, by its driver ${driver}` };
}

function guessIommu({ group, iommu }: LinuxDevice, noIommufd: string | null): TrackerCapability {
  if (noIommufd !== null) {
    return { available: false, why: `an IOMMU's dirty bits are read by iommufd alone, and ${noIommufd}` };
  }
  if (iommu === null) {
    return group === null
      ? { available: false, why: "no IOMMU is in front of it" }
      : { available: "unknown", why: "sysfs does not tell which IOMMU is in front of it" };
  }
  const { name, type, dirtyTracking } = iommu;
  if (dirtyTracking === null) {
    return { available: "unknown", why: `sysfs does not tell whether its IOMMU (${type}) has dirty tracking` };
  }
  if (!dirtyTracking) return { available: false, why: `the registers of its IOMMU (${name}) show no dirty tracking` };
  return {
    available: true,
    pageSizes: [],
    readableWhen: "always",
    what: `dirty bits in its page table, by the registers of ${name}`,
  };
}
