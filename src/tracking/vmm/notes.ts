import type { Placement } from "./containers.js";

/** Something that a VMM does otherwise than was chosen, or that the operator has to know. */
export interface VmmNote {
  /** null: it concerns all. */
  readonly device: string | null;
  /** One or two sentences. */
  readonly text: string;
}

/** What QEMU's dirty bitmaps have as their granule: the host's page size, always. */
const QEMU_GRANULE = 4096;

/** Where QEMU can't do what was chosen, or what its way of doing it costs. */
export function qemuNotes(placements: readonly Placement[]): VmmNote[] {
  return [...placements.flatMap(deviceNotes), ...groupNotes(placements), ...machineNotes(placements)];
}

function deviceNotes(placement: Placement): VmmNote[] {
  const { choice, capabilities } = placement.device;
  const { mdev, migration } = capabilities;
  const notes: string[] = [];
  if (choice.suspend) {
    notes.push(
      "QEMU can't suspend one device. Unplug it before migration (device_del, in a slot that can be hot-unplugged) and " +
        "plug it in again at the destination; for a NIC with a virtio-net standby, failover_pair_id= does so by itself.",
    );
  } else if (migration === null) {
    notes.push("It can't migrate, so QEMU refuses to migrate the machine while it is plugged in.");
  }
  if (choice.tracker === "everything" && !choice.suspend) notes.push(everythingNote(placement));
  if (mdev && choice.tracker === "iommu") {
    notes.push("QEMU knows no tracker that mdevs share: it reads what type1 says is pinned, which names more pages.");
  }
  if (placement.container === "type1") {
    notes.push(
      "It needs the kernel's type1 driver behind /dev/vfio/vfio: iommufd's stand-in for that refuses " +
        "VFIO_IOMMU_DIRTY_PAGES, and all of guest memory is then dirty at each read.",
    );
  }
  if (choice.granule !== null && choice.granule !== QEMU_GRANULE) {
    notes.push(`QEMU always asks for bits of ${QEMU_GRANULE} bytes, not of ${choice.granule}.`);
  }
  if (choice.tracker === "iommu" && choice.domain?.hugePages === false) {
    notes.push(
      "QEMU can't set IOMMU_OPTION_HUGE_PAGES = 0: a write through a large IOPTE makes the whole of it dirty. Guest " +
        "memory that is not backed by huge pages keeps most IOPTEs small.",
    );
  }
  return notes.map((text) => ({ device: choice.device, text }));
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

function groupNotes(placements: readonly Placement[]): VmmNote[] {
  return placements.flatMap(({ device, container }) => {
    const { choice, iommuGroup } = device;
    const wanted = choice.tracker === "device" ? "log" : choice.tracker === "iommu" ? "hwpt" : container;
    if (device.capabilities.mdev || choice.suspend || wanted === container) return [];
    const instead = container === "hwpt" ? "their IOMMU's dirty bits are read" : "all of guest memory is dirty";
    return {
      device: choice.device,
      text: `It shares IOMMU group ${iommuGroup} with a device that has another tracker. The kernel gives a group to one iommufd only, so ${instead} for all of it.`,
    };
  });
}

function machineNotes(placements: readonly Placement[]): VmmNote[] {
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
  const objects = new Set(placements.map(({ container }) => container).filter((container) => container !== "type1"));
  if (objects.size > 1) {
    notes.push(
      "QEMU asks one kind of tracker per iommufd object. Each object has an IOAS of its own, that maps and pins all of " +
        `guest memory and counts it against the locked-memory limit: ${objects.size} times the size of the guest.`,
    );
  }
  return [...notes, ...domainNotes(placements)].map((text) => ({ device: null, text }));
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
