import { PAGE_SIZE } from "../../memory/address.js";
import type { DeviceTracker } from "../choice.js";
import type { ContainerKind, Placement } from "./containers.js";

/** Something that a VMM does otherwise than was chosen, or that the operator has to know. */
export interface VmmNote {
  /** The devices that it concerns; none: the machine as a whole. */
  readonly devices: readonly string[];
  /** One or a few sentences. */
  readonly text: string;
}

/** Where QEMU can't do what was chosen, or what its way of doing it costs. */
export function qemuNotes(placements: readonly Placement[]): VmmNote[] {
  const ofDevices = new Map<string, string[]>();
  for (const placement of placements) {
    const id = placement.device.choice.device;
    for (const text of deviceNotes(placement)) ofDevices.set(text, [...(ofDevices.get(text) ?? []), id]);
  }
  return [
    ...Array.from(ofDevices, ([text, devices]) => ({ devices, text })),
    ...machineNotes(placements).map((text) => ({ devices: [], text })),
  ];
}

/** A note on one line: "vf0, nic0: …". */
export function noteText({ devices, text }: VmmNote): string {
  return devices.length === 0 ? `note: ${text}` : `note: ${devices.join(", ")}: ${text}`;
}

function deviceNotes(placement: Placement): string[] {
  const { choice, capabilities, iommuGroup } = placement.device;
  const { container } = placement;
  const { mdev, migration } = capabilities;
  const notes: string[] = [];
  if (choice.suspend) {
    notes.push(
      "QEMU can't suspend a single device. Unplug it before migration (device_del, or virsh detach-device; its slot must " +
        "be one that can be hot-unplugged) and plug it in again at the destination. For a NIC with a virtio-net standby, " +
        "failover_pair_id= does both.",
    );
  } else if (migration === null) {
    notes.push("It can't migrate, so QEMU migrates the machine only once it is unplugged.");
  }
  if (choice.tracker === "everything" && !choice.suspend) notes.push(everythingNote(placement));
  if (mdev && choice.tracker === "iommu") {
    const instead = container === "log" ? "its own log is read" : "what it has pinned is read";
    notes.push(`QEMU knows no tracker that mdevs share: ${instead}.`);
  }
  if (container === "type1" && !choice.suspend) {
    notes.push(
      "type1 is needed behind /dev/vfio/vfio: iommufd's stand-in for that has no dirty tracking, and all of guest " +
        "memory is then dirty at each read.",
    );
  }
  if (mdev && choice.tracker === "device" && container === "type1") {
    notes.push("libvirt gives no iommufd to mdevs: what it has pinned is read instead of its log.");
  }
  if (!mdev && !choice.suspend && container !== wantedFrom(choice.tracker) && choice.tracker !== "everything") {
    const instead = container === "hwpt" ? "the dirty bits of their HWPT are read" : "all of guest memory is dirty";
    notes.push(
      `The devices of IOMMU group ${iommuGroup} have different trackers, and the kernel gives a group to one iommufd ` +
        `only: ${instead} for all of them.`,
    );
  }
  if (choice.granule !== null && choice.granule !== PAGE_SIZE) {
    notes.push(`QEMU always asks for a bit per page of the host, not per ${choice.granule} bytes.`);
  }
  if (choice.tracker === "iommu" && choice.domain?.hugePages === false) {
    notes.push(
      "QEMU can't set IOMMU_OPTION_HUGE_PAGES = 0: a write through a large IOPTE makes the whole of it dirty. " +
        "amd_iommu=nohugepages or intel_iommu=sp_off on the host's kernel command line keeps all IOPTEs small.",
    );
  }
  // record_dirty in drivers/iommu/generic_pt/iommu_pt.h; the tables of AMD are made by it since 6.19.
  if (container === "hwpt" && !choice.suspend && capabilities.iommu?.type === "amd") {
    notes.push(
      "Linux from 6.19 to at least 7.2 leaves the last entry of a dirty contiguous leaf of AMD's page tables out of the " +
        "bitmap, and cleans it. Dirtmap makes up for it, QEMU does not: writes can be lost. Boot the host with " +
        "amd_iommu=nohugepages, or have the device's own log read.",
    );
  }
  return notes;
}

/** Where the tracker of a PCI device that is alone in its IOMMU group is read. */
function wantedFrom(tracker: DeviceTracker): ContainerKind {
  return tracker === "device" ? "log" : "hwpt";
}

function everythingNote({ container }: Placement): string {
  if (container === "hwpt") {
    return "QEMU can't leave its IOMMU's dirty tracking unused, and reads it: fewer pages are dirty than was asked for.";
  }
  if (container === "type1") return "type1 knows what it has pinned: fewer pages are dirty than was asked for.";
  return (
    "Pre-copy never gets below all of guest memory. x-pre-copy-dirty-page-tracking=off keeps that out of the rounds; it " +
    "is then sent during the downtime, which QEMU does not foresee."
  );
}

function machineNotes(placements: readonly Placement[]): string[] {
  const notes: string[] = [];
  const migrating = placements.filter(({ enableMigration, device }) => {
    return enableMigration !== "off" && device.capabilities.migration !== null;
  });
  const without = migrating.filter(({ device }) => device.capabilities.migration?.p2p !== true);
  if (migrating.length > 1 && without.length > 0) {
    notes.push(
      `QEMU migrates several VFIO devices only if all have the P2P states, and ${names(without)} ${without.length === 1 ? "has" : "have"} ` +
        "not: it refuses to migrate, or to start where enable-migration=on.",
    );
  }
  // An IOAS pins what is mapped once a device has an HWPT on it; mdevs pin what they use.
  const pinning = placements.filter(({ container, device }) => container !== "type1" && !device.capabilities.mdev);
  const objects = new Set(pinning.map(({ container }) => container)).size;
  if (objects > 1) {
    notes.push(
      "QEMU asks one kind of tracker per iommufd object, and each object has an IOAS of its own, which pins all of guest " +
        `memory and counts it against the limit of locked memory: ${objects} times the size of the guest.`,
    );
  }
  return [...notes, ...domainNotes(placements)];
}

function domainNotes(placements: readonly Placement[]): string[] {
  const attached = placements.filter(({ device: { choice } }) => choice.domain?.type === "hwpt" && !choice.suspend);
  const shared = attached.filter(({ device }) => device.choice.domain?.key.startsWith("own:") !== true);
  const own = attached.filter((placement) => !shared.includes(placement));
  const notes: string[] = [];
  if (new Set(shared.map(({ container }) => container)).size > 1) {
    notes.push(`${names(shared)} can't share a domain in QEMU, since they have different trackers.`);
  }
  const crowded = own.filter(({ container }) => own.filter((other) => other.container === container).length > 1);
  if (crowded.length > 0) {
    notes.push(
      `QEMU puts the devices of an iommufd object on one HWPT where the kernel lets it: ${names(crowded)} don't get ` +
        "one each. QEMU has no use for that; it keeps no share per device.",
    );
  }
  return notes;
}

function names(placements: readonly Placement[]): string {
  return placements.map(({ device }) => device.choice.device).join(", ");
}
