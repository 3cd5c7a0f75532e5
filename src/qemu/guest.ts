import { z } from "zod";
import { DirtmapError, UsageError } from "../errors.js";
import { safeText } from "../safe-text.js";
import { isRefusal, type Qemu } from "./qmp/qemu.js";

/*
 * A guest of QEMU as this project sees it: which vfio-user devices it has, at which sockets they are served, and what keeps it
 * from being moved together with them.
 */

/** The type of QEMU's client of vfio-user. */
const VFIO_USER_PCI = "vfio-user-pci";

/** Devices that QEMU takes; it has no vfio-user-pci before 10.1. */
const OLDEST = { major: 10, minor: 1 };

/** Types of devices that translate what other devices address. */
const VIOMMUS = new Set(["intel-iommu", "amd-iommu", "virtio-iommu-pci", "virtio-iommu-device", "arm-smmuv3"]);

/** Where QEMU keeps its devices: those that were given an id, and the others. */
const CONTAINERS = ["/machine/peripheral", "/machine/peripheral-anon"];

/** Devices are counted, and each is asked about: no guest has more. */
const MAX_DEVICES = 64;

/** The root bus of a PC, of both kinds. */
const ROOT_BUSES = ["pcie.0", "pci.0"];

/** Bridges that a device can be behind: no machine nests them deeper. */
const MAX_BRIDGES = 16;

/** A vfio-user device of a guest. */
export interface GuestDevice {
  /** Its id; for one without, where it is: `pcie.0-04.0`. For messages and options; unsafe characters are gone. */
  readonly name: string;
  /** Of its object in QEMU. */
  readonly path: string;
  /** Of the object of the bus that it is on. With `devfn` the same in every QEMU that was started with the same devices. */
  readonly bus: string;
  /** Slot and function on its bus: slot * 8 + function. */
  readonly devfn: number;
  /** The bridges and root ports that it is behind, by their `devfn`, from the machine's root bus on. */
  readonly bridges: readonly number[];
  /** Where its server listens, as QEMU was told; null where QEMU does not tell. */
  readonly socket: string | null;
}

/** Something that keeps a guest from being moved with its devices. */
export interface Obstacle {
  readonly what: string;
  readonly remedy: string;
}

/** What was found out about a guest. */
export interface Guest {
  readonly devices: readonly GuestDevice[];
  /** Why QEMU itself won't migrate it, and what Dirtmap can't move. */
  readonly obstacles: readonly Obstacle[];
}

/**
 * Looks at a guest, which goes on. @throws UsageError `QEMU_TOO_OLD`, `TOO_MANY_DEVICES`, `UNKNOWN_BUS`; DirtmapError of {@link Qemu}
 */
export async function lookAtGuest(qemu: Qemu): Promise<Guest> {
  const { major, minor } = await qemu.version();
  const isOld = major < OLDEST.major || (major === OLDEST.major && minor < OLDEST.minor);
  if (isOld || !(await qemu.hasType(VFIO_USER_PCI))) {
    throw new UsageError(
      `QEMU at ${qemu.name} is ${major}.${minor}, ${isOld ? "which has" : "built with"} no vfio-user-pci`,
      {
        code: "QEMU_TOO_OLD",
        remedy: "run the guest with QEMU 10.1 or later (tried with 11.1), for x86 with vfio-user-pci",
      },
    );
  }
  const objects = await deviceObjects(qemu);
  const ours = objects.filter(({ type }) => type === VFIO_USER_PCI);
  if (ours.length > MAX_DEVICES) {
    throw new UsageError(`the guest has ${ours.length} vfio-user devices`, {
      code: "TOO_MANY_DEVICES",
      remedy: `give it ${MAX_DEVICES} at most`,
    });
  }
  const devices = await Promise.all(ours.map(({ path }) => deviceAt(qemu, path)));
  return { devices, obstacles: await obstaclesOf(qemu, objects) };
}

/** The objects of a guest's devices, of all kinds. */
export async function deviceObjects(qemu: Qemu): Promise<{ readonly path: string; readonly type: string }[]> {
  const objects: { path: string; type: string }[] = [];
  for (const container of CONTAINERS) {
    for (const { name, type } of await qemu.qomList(container)) {
      const child = /^child<(.+)>$/.exec(type);
      if (child !== null) objects.push({ path: `${container}/${name}`, type: child[1] });
    }
  }
  return objects;
}

async function deviceAt(qemu: Qemu, path: string): Promise<GuestDevice> {
  const { bus, devfn } = await placeOf(qemu, path);
  const named = /^\/machine\/peripheral\/(.+)$/.exec(path);
  const place = `${bus.slice(bus.lastIndexOf("/") + 1)}-${(devfn >> 3).toString(16).padStart(2, "0")}.${devfn & 7}`;
  const properties = await qemu.qomList(path);
  const bridges = await bridgesAbove(qemu, bus);
  const sockets = properties.map(({ name }) => socketIn(name)).filter((socket) => socket !== null);
  return { name: safeText(named?.[1] ?? place, 200), path, bus, devfn, bridges, socket: sockets[0] ?? null };
}

/** The bus that a PCI device is on, and where there. @throws DirtmapError `QMP_REFUSED` for an object that is none */
async function placeOf(qemu: Qemu, path: string): Promise<{ bus: string; devfn: number }> {
  const [bus, devfn] = await Promise.all([
    qemu.qomGet(
      path,
      "parent_bus",
      z
        .string()
        .regex(/^\/machine\/./)
        .max(4096),
    ),
    qemu.qomGet(path, "addr", z.int().min(0).max(255)),
  ]);
  return { bus, devfn };
}

/**
 * The bridges above a bus, the topmost first. The object of a bus is below that of the bridge that it is behind, or of the host
 * bridge.
 * @throws UsageError `UNKNOWN_BUS` for a root bus other than the machine's own, whose number QEMU does not tell
 */
async function bridgesAbove(qemu: Qemu, bus: string): Promise<number[]> {
  const found: number[] = [];
  for (let path = bus; found.length < MAX_BRIDGES; ) {
    const owner = path.slice(0, path.lastIndexOf("/"));
    const place = await placeOf(qemu, owner).catch((error: unknown) => {
      // A host bridge is on no PCI bus.
      if (isRefusal(error)) return null;
      throw error;
    });
    const name = path.slice(owner.length + 1);
    if (place === null && ROOT_BUSES.includes(name)) return found.reverse();
    if (place === null) throw unknownBus(name);
    found.push(place.devfn);
    path = place.bus;
  }
  throw unknownBus(bus);
}

function unknownBus(bus: string): UsageError {
  return new UsageError(`a vfio-user device is on bus '${safeText(bus, 200)}', whose number can't be found out`, {
    code: "UNKNOWN_BUS",
    remedy: "put the device on the machine's own root bus, or behind a bridge or root port there",
  });
}

/**
 * The path of the socket in the name of a memory region that QEMU made for a BAR, `vfio-user:PATH base BAR 0[0]`: the only place
 * where QEMU tells it, since the property `socket` can't be read. Null for any other name.
 */
export function socketIn(property: string): string | null {
  const region = /^vfio-user:(.+) base BAR \d+\[\d+\]$/s.exec(property);
  if (region === null) return null;
  // system/memory.c escapes what has a meaning in a path of objects.
  const path = region[1].replace(/\\x([0-7][0-9a-f])/g, (_, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  );
  return path.startsWith("/") ? path : null;
}

async function obstaclesOf(qemu: Qemu, objects: readonly { path: string; type: string }[]): Promise<Obstacle[]> {
  const found: Obstacle[] = [];
  const { "blocked-reasons": blocked = [] } = await qemu.migration();
  for (const reason of blocked) {
    found.push({ what: `QEMU can't migrate this guest: ${reason}`, remedy: "detach that device, or give it another" });
  }
  for (const { path, type } of objects) {
    if (!VIOMMUS.has(type)) continue;
    found.push({
      what: `the guest has a virtual IOMMU (${type} at ${safeText(path, 200)})`,
      remedy:
        "start the guest without one: what its devices can reach is set up anew with each mapping, and is not moved",
    });
  }
  return found;
}

/** @throws UsageError `CANNOT_MIGRATE` that names all of them */
export function checkObstacles(guest: Guest, side: "source" | "destination"): void {
  const [first, ...others] = guest.obstacles;
  if (first === undefined) return;
  throw new UsageError(`the ${side}'s guest can't be moved: ${first.what}`, {
    code: "CANNOT_MIGRATE",
    remedy: first.remedy,
    further: others.map(({ what, remedy }) => `${what}; ${remedy}`),
  });
}

/** Where a device's control connection goes. @throws UsageError `NO_SOCKET` where QEMU does not tell */
export function socketOf({ name, socket }: GuestDevice, given: Readonly<Record<string, string>> = {}): string {
  const path = Object.hasOwn(given, name) ? given[name] : socket;
  if (path !== null) return path;
  throw new UsageError(`QEMU does not tell the whole path of the socket of '${name}'`, {
    code: "NO_SOCKET",
    remedy: `name it: --socket ${name}=PATH`,
  });
}

/**
 * @param remedies by states, and for all others
 * @throws DirtmapError `WRONG_STATE` for a guest that is in none of the expected states
 */
export async function checkStatus(
  qemu: Qemu,
  expected: readonly string[],
  remedies: Readonly<Record<string, string>> & { readonly otherwise: string },
): Promise<void> {
  const { status } = await qemu.status();
  if (expected.includes(status)) return;
  throw new DirtmapError(`the guest of QEMU at ${qemu.name} is in state '${status}'`, {
    code: "WRONG_STATE",
    remedy: Object.hasOwn(remedies, status) ? remedies[status] : remedies.otherwise,
  });
}
