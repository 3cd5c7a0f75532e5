import type { BoundDevice, DmaLoggingLimits, HwInfo, Machine, MigrationSupport } from "../host/host.js";
import { hex, iovaOf, PAGE_SIZE } from "../memory/address.js";
import { isErrno, UapiError } from "../uapi/errno.js";
import { endPage, type MappedArea, writeableAreas } from "./areas.js";
import type { DeviceCapabilities, TrackerCapability } from "./capabilities.js";

/** Finds out the abilities of each device of a machine, in the machine's order. Leaves nothing changed. @throws UapiError */
export async function probeMachine(machine: Machine): Promise<DeviceCapabilities[]> {
  const areas = writeableAreas(machine.memory);
  const probed: DeviceCapabilities[] = [];
  for (const device of machine.devices) probed.push(await probeDevice(device, areas));
  return probed;
}

/**
 * Finds out the abilities of one device: for each tracker, whether the device has it or why not. The device need not be attached.
 * @param areas the areas that will be mapped for it: a log whose address width does not cover them all is not a tracker. With
 * null, for no known guest, the width is reported but not judged
 * @throws UapiError for anything but "not supported"
 */
export async function probeDevice(
  device: BoundDevice,
  areas: readonly MappedArea[] | null,
): Promise<DeviceCapabilities> {
  const { id, model, mdev, vfio, iommufd } = device;
  const flags = await vfio.trackingFlags();
  const iommu = mdev ? null : await iommufd.hwInfo(device.deviceId);
  const supported = await vfio.supports("DMA_LOGGING_START");
  const kept = mdev ? "a log of what it pins" : "a log of its own DMA";
  const lacks = mdev
    ? "it has no log of what it pins (on Linux the legacy container, type1, tells of pins, and iommufd does not)"
    : "it has no DMA logging of its own";
  return deviceCapabilities({
    id,
    model,
    mdev,
    flags,
    migration: await migrationSupport(device),
    iommu: iommu && { type: iommu.type, dirtyTracking: iommu.dirtyTracking, pageSizes: iommu.pageSizes },
    iommuTracker: iommu === null ? await sharedTracker(device, flags.tracksThroughContainer) : iommuCapability(iommu),
    log: logCapability(await vfio.dmaLoggingLimits(), { areas, supported, kept, lacks }),
  });
}

/**
 * All that is to be known of a device, from what was found of it: which trackers it can have at all follows from whether it
 * is an mdev.
 */
export function deviceCapabilities({
  iommuTracker,
  log,
  ...device
}: Omit<DeviceCapabilities, "trackers"> & {
  /** Its IOMMU's dirty bits; for an mdev the tracker that it shares. */
  readonly iommuTracker: TrackerCapability;
  /** Its DMA_LOGGING; for an mdev that is one of its pins. */
  readonly log: TrackerCapability;
}): DeviceCapabilities {
  return {
    ...device,
    trackers: {
      iommu: iommuTracker,
      device: device.mdev
        ? { available: false, why: "the log of an mdev is one of its pins, which is the tracker 'pinned'" }
        : log,
      pinned: device.mdev ? log : { available: false, why: "it is no mdev: the IOMMU pins all that is mapped" },
      everything: {
        available: true,
        pageSizes: [],
        readableWhen: "always",
        what: "no tracker: all that the device may write counts as dirty",
      },
    },
  };
}

async function migrationSupport({ vfio }: BoundDevice): Promise<MigrationSupport | null> {
  try {
    return await vfio.migration();
  } catch (error) {
    if (isErrno(error, "ENOTTY")) return null;
    throw error;
  }
}

function iommuCapability({ type, dirtyTracking, pageSizes }: HwInfo): TrackerCapability {
  // Not every IOMMU driver says what it is: AMD's does if built with CONFIG_AMD_IOMMU_IOMMUFD.
  const named = type === "none" ? "" : ` (${type})`;
  if (!dirtyTracking) return { available: false, why: `its IOMMU${named} has no dirty tracking` };
  // Only two sizes can be asked for: IOMMU_OPTION_HUGE_PAGES = 0 makes all leaves the smallest, 1 as large as they get.
  const extremes = new Set([...pageSizes.slice(0, 1), ...pageSizes.slice(-1)]);
  return {
    available: true,
    pageSizes: [...extremes],
    readableWhen: "always",
    what: `dirty bits in its page table${named}`,
  };
}

/** Whether an mdev can mark a tracker that it shares with others, held by iommufd's emulated-IOMMU object. */
async function sharedTracker({ iommufd }: BoundDevice, flag: boolean): Promise<TrackerCapability> {
  if (!flag) return { available: false, why: "it is an mdev, and its hardware can't mark a shared tracker" };
  const ioas = await iommufd.allocIoas();
  try {
    await iommufd.destroy(await iommufd.allocEmulatedIommu(ioas));
  } catch (error) {
    if (!(error instanceof UapiError)) throw error;
    return {
      available: false,
      why: `this iommufd has no emulated IOMMU that could hold a shared tracker (${error.code})`,
    };
  } finally {
    await iommufd.destroy(ioas);
  }
  return {
    available: true,
    pageSizes: [PAGE_SIZE],
    readableWhen: "always",
    what: "a tracker that mdevs share",
  };
}

function logCapability(
  limits: DmaLoggingLimits | null,
  {
    areas,
    supported,
    kept,
    lacks,
  }: { areas: readonly MappedArea[] | null; supported: boolean; kept: string; lacks: string },
): TrackerCapability {
  if (!supported) return { available: false, why: lacks };
  if (limits === null) {
    return { available: true, pageSizes: [], readableWhen: "always", what: kept };
  }
  const end = iovaOf(endPage(areas ?? []));
  if (end > 1n << BigInt(limits.addressWidth)) {
    return {
      available: false,
      why: `its log covers ${limits.addressWidth} bits of IOVA, and memory ends at ${hex(end)}`,
    };
  }
  const { pageSizes, readableWhen, maxRanges } = limits;
  const when = readableWhen === "quiesced" ? ", readable only while it does no DMA" : "";
  const ranges = maxRanges === 1 ? "1 range" : `up to ${maxRanges} ranges`;
  return {
    available: true,
    pageSizes,
    readableWhen,
    what: `${kept} (${ranges}, ${limits.addressWidth} bits of IOVA${when})`,
  };
}
