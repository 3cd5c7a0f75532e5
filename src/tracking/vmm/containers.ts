import type { VmmDevice } from "./vmm-device.js";

/*
 * QEMU's rule (hw/vfio: container.c, iommufd.c, migration.c; read in 10.2): it asks one kind of tracker per container.
 * A container is an `-object iommufd`, with an IOAS of its own, or the one of type1 for all devices without `iommufd=`.
 *
 * 1. Where each device of the container has a log, and x-device-dirty-page-tracking is on for each, their logs are read.
 * 2. Otherwise, where one of its HWPTs tracks (or the container is type1's), all its HWPTs that track are read, and
 *    nothing else. What a device on an HWPT that does not track writes, goes unreported.
 * 3. Otherwise all of guest memory is dirty at each read.
 *
 * By 2, devices with different trackers in one container lose writes or get the wrong tracker: hence one container per
 * kind of tracker.
 */

/** The kinds of container, each named after what QEMU then reads. */
export type ContainerKind =
  /** An iommufd object, all of whose devices have a log that is used. */
  | "log"
  /** An iommufd object, all of whose HWPTs track. */
  | "hwpt"
  /** An iommufd object without any tracker. */
  | "untracked"
  /** The legacy container: reports the pages that mdevs have pinned. */
  | "type1";

/** Where a device goes, and with which of QEMU's switches. */
export interface Placement {
  readonly device: VmmDevice;
  readonly container: ContainerKind;
  /** It has a log that isn't to be read: x-device-dirty-page-tracking=off. */
  readonly logOff: boolean;
  readonly enableMigration: "auto" | "on" | "off";
  /** A sentence: what QEMU does with it. */
  readonly why: string;
}

/** The containers that need an `-object iommufd`, in the order in which they are printed. */
export const IOMMUFD_CONTAINERS = ["log", "hwpt", "untracked"] as const satisfies readonly ContainerKind[];

/**
 * Puts each device into a container in which QEMU reads the tracker that was chosen, or the nearest one.
 * @param mdevs `type1`: libvirt gives iommufd to PCI devices only
 */
export function placeDevices(devices: readonly VmmDevice[], mdevs: "iommufd" | "type1" = "iommufd"): Placement[] {
  const wanted = devices.map((device) => (device.choice.suspend ? null : containerFor(device, mdevs)));
  const grouped = devices.map((device, index) => wanted[index] && oneForGroup(device, devices, wanted));
  return devices.map((device, index) =>
    place(device, grouped[index] ?? containerForSuspended(device, devices, grouped)),
  );
}

/** The container in which QEMU reads the tracker that was chosen for a device, or comes nearest to it. */
function containerFor({ choice: { tracker }, capabilities }: VmmDevice, mdevs: "iommufd" | "type1"): ContainerKind {
  const { mdev, flags } = capabilities;
  if (mdev && mdevs === "type1") return "type1";
  if (tracker === "device") return "log";
  // An mdev's log of its pins is DMA logging; without one, its pins are known to type1 alone.
  if (mdev) return tracker !== "everything" && flags.tracksInternally ? "log" : "type1";
  return tracker === "iommu" || hwptTracks(capabilities) ? "hwpt" : "untracked";
}

/** QEMU asks for dirty tracking on the HWPT wherever GET_HW_INFO says that there is any. */
function hwptTracks({ iommu }: VmmDevice["capabilities"]): boolean {
  return iommu?.dirtyTracking === true;
}

/** The kernel gives a whole IOMMU group to one iommufd (EPERM to a second), so its devices share a container. */
function oneForGroup(
  device: VmmDevice,
  devices: readonly VmmDevice[],
  wanted: readonly (ContainerKind | null)[],
): ContainerKind {
  const kinds = new Set(wanted.filter((kind, index) => kind !== null && sameGroup(device, devices[index])));
  const [only] = kinds;
  if (only && kinds.size === 1) return only;
  return hwptTracks(device.capabilities) ? "hwpt" : "untracked";
}

function sameGroup(one: VmmDevice, other: VmmDevice): boolean {
  return one === other || (one.iommuGroup !== null && one.iommuGroup === other.iommuGroup);
}

/**
 * A device that is unplugged before migration may share any container until then, and does, since each costs locked
 * memory. Except one without a tracker: QEMU would remember from an HWPT of it that the container tracks.
 */
function containerForSuspended(
  device: VmmDevice,
  devices: readonly VmmDevice[],
  others: readonly (ContainerKind | null)[],
): ContainerKind {
  if (device.capabilities.mdev) return "type1";
  const group = others.find((kind, index) => kind !== null && sameGroup(device, devices[index]));
  if (group) return group;
  if (others.includes("log")) return "log";
  return others.includes("hwpt") || hwptTracks(device.capabilities) ? "hwpt" : "untracked";
}

function place(device: VmmDevice, container: ContainerKind): Placement {
  const { choice, capabilities } = device;
  const logOff = capabilities.flags.tracksInternally && container !== "log" && !choice.suspend;
  const unused = logOff ? "; its own log is left off" : "";
  if (choice.suspend) {
    return { device, container, logOff, enableMigration: "off", why: "no migration starts while it is plugged in" };
  }
  if (capabilities.migration === null) {
    return { device, container, logOff, enableMigration: "auto", why: "it can't migrate, and blocks migration" };
  }
  // `auto` blocks migration where neither a log nor an HWPT tracks the device: right where one is meant to, wrong where
  // the pages are known to be pinned, or are all to count as dirty.
  const enableMigration = container === "untracked" || container === "type1" ? "on" : "auto";
  return { device, container, logOff, enableMigration, why: `${READS[container]}${unused}` };
}

const READS: Readonly<Record<ContainerKind, string>> = {
  log: "its own log is read",
  hwpt: "the dirty bits of its HWPT are read",
  untracked: "all of guest memory is dirty at each read",
  type1: "the pages that it has pinned are dirty at each read",
};
