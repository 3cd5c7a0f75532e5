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
 * kind of tracker. And a device of which it isn't known whether its HWPT tracks, or whether it has a log, shares none
 * with a device for which the answer may be another.
 */

/** What QEMU reads for the devices of a container. */
export type Reads =
  /** Their logs: each has one, and it is used. */
  | "log"
  /** The dirty bits of their HWPTs, all of which track. */
  | "hwpt"
  /** Whatever there turns out to be, or else all of guest memory: nothing is known of them. */
  | "unknown"
  /** All of guest memory, at each read. */
  | "everything"
  /** The pages that they have pinned: the legacy container's, if all of its devices are mdevs. */
  | "pins";

/** Devices of which QEMU asks one kind of tracker. */
export interface Container {
  /** The id of its iommufd object; null: the legacy container, of which there is one a machine. */
  readonly iommufd: string | null;
  readonly reads: Reads;
}

/** Where a device goes, and with which of QEMU's switches. */
export interface Placement {
  readonly device: VmmDevice;
  readonly container: Container;
  /** It has a log that isn't to be read, or may have one: x-device-dirty-page-tracking=off. */
  readonly logOff: boolean;
  readonly enableMigration: "auto" | "on" | "off";
  /** A sentence: what QEMU does with it. */
  readonly why: string;
}

/** How a VMM opens devices. */
export interface VmmHost {
  /** False: the host has no /dev/iommu, and all devices go into the legacy container. Default: true. */
  readonly iommufd?: boolean;
}

/**
 * Puts each device into a container in which QEMU reads the tracker that was chosen, or the nearest one.
 * @param mdevs `type1`: libvirt gives iommufd to PCI devices only
 */
export function placeDevices(
  devices: readonly VmmDevice[],
  { iommufd = true, mdevs = "iommufd" }: VmmHost & { readonly mdevs?: "iommufd" | "type1" } = {},
): Placement[] {
  const goesByType1 = (device: VmmDevice) => !iommufd || (device.capabilities.mdev && mdevs === "type1");
  const wanted = devices.map((device) => {
    if (device.choice.suspend) return null;
    return goesByType1(device) ? TYPE1 : containerFor(device);
  });
  const grouped = devices.map((device, index) => wanted[index] && oneForGroup(device, devices, wanted));
  const settled = devices.map((device, index) => {
    const container = grouped[index] ?? (iommufd ? containerForSuspended(device, devices, grouped) : TYPE1);
    return { device, container };
  });
  const legacy = settled.filter(({ container, device }) => container === TYPE1 && !device.choice.suspend);
  const type1: Container = { iommufd: null, reads: readsOfType1(legacy.map(({ device }) => device)) };
  return settled.map(({ device, container }) => place(device, container === TYPE1 ? type1 : container));
}

/** The objects that the placements need, in the order in which they are printed. */
export function iommufdObjects(placements: readonly Placement[]): (Container & { readonly iommufd: string })[] {
  const order = ["log", "hwpt", "everything", "unknown"];
  const objects = new Map<string, Container & { readonly iommufd: string }>();
  for (const { container } of placements) {
    const { iommufd } = container;
    if (iommufd !== null) objects.set(iommufd, { ...container, iommufd });
  }
  return [...objects.values()].sort((one, other) => order.indexOf(one.reads) - order.indexOf(other.reads));
}

const LOG: Container = { iommufd: "dirtmap-log", reads: "log" };
const HWPT: Container = { iommufd: "dirtmap-hwpt", reads: "hwpt" };
const UNTRACKED: Container = { iommufd: "dirtmap-untracked", reads: "everything" };
/** Stands for the legacy container until it is known who is in it. */
const TYPE1: Container = { iommufd: null, reads: "pins" };

/** The container in which QEMU reads the tracker that was chosen for a device, or comes nearest to it. */
function containerFor(device: VmmDevice): Container {
  const { choice, capabilities } = device;
  const { mdev, flags } = capabilities;
  if (choice.tracker === "device") return flags.tracksInternally === "unknown" ? unknownFor(device) : LOG;
  // An mdev's log of its pins is DMA logging; without one, its pins are known to type1 alone.
  if (mdev) return choice.tracker !== "everything" && flags.tracksInternally === true ? LOG : TYPE1;
  return byHwpt(device);
}

/** The container of a device whose log is not read. */
function byHwpt(device: VmmDevice): Container {
  const tracks = hwptTracks(device);
  if (tracks === "unknown") return unknownFor(device);
  return tracks ? HWPT : UNTRACKED;
}

/** QEMU asks for dirty tracking on the HWPT wherever GET_HW_INFO says that there is any. */
function hwptTracks({ capabilities }: VmmDevice) {
  return capabilities.iommu?.dirtyTracking ?? false;
}

/** Devices behind the same IOMMU get the same answer, and one container. */
function unknownFor({ choice, iommuUnit, iommuGroup }: VmmDevice): Container {
  const shared = choice.tracker === "device" ? null : (iommuUnit ?? null);
  const key = shared ?? (iommuGroup === null ? choice.device : `group-${iommuGroup}`);
  return { iommufd: `dirtmap-unknown-${key.replace(/[^A-Za-z0-9]+/g, "-")}`, reads: "unknown" };
}

/** The kernel gives a whole IOMMU group to one iommufd (EPERM to a second), so its devices share a container. */
function oneForGroup(
  device: VmmDevice,
  devices: readonly VmmDevice[],
  wanted: readonly (Container | null)[],
): Container {
  const inGroup = wanted.filter((container, index) => container !== null && sameGroup(device, devices[index]));
  const [first] = inGroup;
  if (first && inGroup.every((container) => container?.iommufd === first.iommufd)) return first;
  return byHwpt(device);
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
  others: readonly (Container | null)[],
): Container {
  if (device.capabilities.mdev) return TYPE1;
  const group = others.find((container, index) => container !== null && sameGroup(device, devices[index]));
  if (group) return group;
  for (const shared of [LOG, HWPT]) if (others.includes(shared)) return shared;
  return byHwpt(device);
}

/** There is one legacy container, so that what it reads follows from all who are in it. */
function readsOfType1(members: readonly VmmDevice[]): Reads {
  if (members.every(({ capabilities }) => capabilities.mdev)) return "pins";
  const logs = members.every(({ choice: { tracker }, capabilities: { flags } }) => {
    return (tracker === "device" || tracker === "pinned") && flags.tracksInternally === true;
  });
  // The kernel counts all that is mapped as dirty once a device is there that pins nothing.
  return logs ? "log" : "everything";
}

function place(device: VmmDevice, container: Container): Placement {
  const { choice, capabilities } = device;
  const { reads } = container;
  const used = reads === "log" || (reads === "unknown" && choice.tracker === "device");
  const logOff = capabilities.flags.tracksInternally !== false && !used && !choice.suspend && isPci(device);
  const unused = !logOff || capabilities.flags.tracksInternally === "unknown" ? "" : "; its own log is left off";
  if (choice.suspend) {
    return { device, container, logOff, enableMigration: "off", why: "no migration starts while it is plugged in" };
  }
  if (capabilities.migration === null) {
    return { device, container, logOff, enableMigration: "auto", why: "it can't migrate, and blocks migration" };
  }
  // `on` refuses to start a device that turns out unable to migrate.
  if (capabilities.migration === "unknown") {
    const why = "whether it can migrate isn't known, and QEMU refuses to migrate if it can't, or isn't tracked";
    return { device, container, logOff, enableMigration: "auto", why: `${why}${unused}` };
  }
  // `auto` blocks migration where neither a log nor an HWPT tracks the device: right where one is meant to, wrong where
  // the pages are known to be pinned, or are all to count as dirty.
  const meant = reads === "log" || reads === "hwpt" || (reads === "unknown" && choice.tracker !== "everything");
  return { device, container, logOff, enableMigration: meant ? "auto" : "on", why: `${READS[reads]}${unused}` };
}

/** QEMU's vfio-pci, which alone has switches for migration. */
export function isPci({ address }: VmmDevice): boolean {
  return address.bus === "pci" || address.model === "vfio-pci";
}

const READS: Readonly<Record<Reads, string>> = {
  log: "its own log is read",
  hwpt: "the dirty bits of its HWPT are read",
  unknown: "what is read is what it turns out to have: nothing tells yet",
  everything: "all of guest memory is dirty at each read",
  pins: "the pages that it has pinned are dirty at each read",
};
