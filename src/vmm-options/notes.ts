import { PAGE_SIZE } from "../memory/address.js";
import type { DeviceTracker } from "../tracking/choice.js";
import { iommufdObjects, type Placement, type Reads } from "./containers.js";

/** A note about a VMM that differs from the choice, or about something that the operator must know. */
export interface VmmNote {
  /** The devices that it concerns; empty: the whole machine. */
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

/** Returns a note as one line: "vf0, nic0: …". */
export function noteText({ devices, text }: VmmNote): string {
  return devices.length === 0 ? `note: ${text}` : `note: ${devices.join(", ")}: ${text}`;
}

function deviceNotes(placement: Placement): string[] {
  const { choice, capabilities, iommuGroup } = placement.device;
  const { reads, iommufd } = placement.container;
  const type1 = iommufd === null;
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
  } else if (migration === "unknown") {
    notes.push(
      "Whether it can migrate is not known. If it can't, QEMU migrates the machine only once it is unplugged.",
    );
  }
  if (reads === "unknown" && !choice.suspend) notes.push(unknownNote(placement));
  if (choice.tracker === "everything" && !choice.suspend) notes.push(everythingNote(placement));
  if (mdev && choice.tracker === "iommu") {
    notes.push(`QEMU knows no tracker that mdevs share: ${INSTEAD[reads]}.`);
  }
  if (type1 && reads === "pins" && !choice.suspend) {
    notes.push(
      "type1 is needed behind /dev/vfio/vfio: iommufd's stand-in for that has no dirty tracking, and all of guest " +
        "memory is then dirty at each read.",
    );
  }
  if (!mdev && !choice.suspend && reads !== "unknown" && choice.tracker !== "everything" && reads !== wanted(choice)) {
    notes.push(
      type1
        ? `Without /dev/iommu all devices are in one container, of which QEMU asks one kind of tracker: ${INSTEAD[reads]}.`
        : `The devices of IOMMU group ${iommuGroup} have different trackers, and the kernel gives a group to one iommufd ` +
            `only: ${INSTEAD[reads]} for all of them.`,
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
  if (reads === "hwpt" && !choice.suspend && capabilities.iommu?.type === "amd") {
    notes.push(
      "Linux from 6.19 to at least 7.2 leaves the last entry of a dirty contiguous leaf of AMD's page tables out of the " +
        "bitmap, and cleans it. Dirtmap makes up for it, QEMU does not: writes can be lost. Boot the host with " +
        "amd_iommu=nohugepages, or have the device's own log read.",
    );
  }
  return notes;
}

/** What is read for a PCI device that shares no container. */
function wanted({ tracker }: { readonly tracker: DeviceTracker }): Reads {
  return tracker === "device" ? "log" : "hwpt";
}

/** What is read, as a clause. */
const INSTEAD: Readonly<Record<Reads, string>> = {
  log: "its own log is read",
  hwpt: "the dirty bits of the HWPT are read",
  unknown: "what is read isn't known",
  everything: "all of guest memory is dirty",
  pins: "what it has pinned is read",
};

function unknownNote({ device: { choice, capabilities } }: Placement): string {
  const { trackers } = capabilities;
  const kind = choice.tracker === "everything" ? "iommu" : choice.tracker;
  const capability = trackers[kind];
  const why = capability.available === true ? "" : `: ${capability.why}`;
  return (
    `Which tracker it has isn't known${why}. It gets an iommufd object apart from devices with another, so that no ` +
    "write is lost whatever it has. Plan again once it is on its VFIO driver and can be asked."
  );
}

function everythingNote({ container: { reads } }: Placement): string {
  if (reads === "hwpt") {
    return "QEMU can't leave its IOMMU's dirty tracking unused, and reads it: fewer pages are dirty than was asked for.";
  }
  if (reads === "pins") return "type1 knows what it has pinned: fewer pages are dirty than was asked for.";
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
  const without = migrating.filter(
    ({
      device: {
        capabilities: { migration },
      },
    }) => {
      return migration !== "unknown" && migration?.p2p !== true;
    },
  );
  if (migrating.length > 1 && without.length > 0) {
    notes.push(
      `QEMU migrates several VFIO devices only if all have the P2P states, and ${names(without)} ${without.length === 1 ? "has" : "have"} ` +
        "not: it refuses to migrate, or to start where enable-migration=on.",
    );
  }
  // An IOAS pins what is mapped once a device has an HWPT on it; mdevs pin what they use.
  const pinning = placements.filter(({ device }) => !device.capabilities.mdev);
  const objects = iommufdObjects(pinning).length;
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
  if (new Set(shared.map(({ container }) => container.iommufd)).size > 1) {
    notes.push(`${names(shared)} can't share a domain in QEMU, since they have different trackers.`);
  }
  const crowded = own.filter(
    ({ container }) => own.filter((other) => other.container.iommufd === container.iommufd).length > 1,
  );
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
