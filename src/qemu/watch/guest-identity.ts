import { z } from "zod";
import { safeText } from "../../safe-text.js";
import { isRefusal, type Qemu } from "../qmp/qemu.js";

/*
 * Which guest is watched, and which of its devices have a migration state of their own.
 */

/** Types of devices that QEMU moves by VFIO's migration protocol, or Dirtmap instead of QEMU. */
const DEVICE_TYPES = new Set([
  ...["vfio-pci", "vfio-pci-nohotplug", "vfio-user-pci", "vfio-ap", "vfio-ccw", "vfio-platform"],
]);

/** Devices are counted, and each is asked about. */
const MAX_DEVICES = 256;

/** A device of a guest that is watched. */
export interface WatchedDevice {
  /** Its id in QEMU; for one without, its place among the objects. */
  readonly id: string;
  /** Its type in QEMU. */
  readonly model: string;
  /** As QEMU's traces and reasons name it: a PCI address, or an mdev's UUID; null: QEMU does not tell. */
  readonly kernelName: string | null;
  /** The path of its object. */
  readonly path: string;
  /** It tells its states by events; null: QEMU does not say. */
  readonly tellsStates: boolean | null;
}

export interface GuestIdentity {
  /** Null: it has none. */
  readonly name: string | null;
  readonly uuid: string | null;
  readonly memoryBytes: number;
  readonly devices: readonly WatchedDevice[];
}

const text = z.string().max(4096);

export async function identify(qemu: Qemu): Promise<GuestIdentity> {
  const [name, uuid, memoryBytes, devices] = await Promise.all([
    qemu.guestName(),
    qemu.guestUuid(),
    qemu.memoryBytes(),
    watchedDevices(qemu),
  ]);
  return { name, uuid, memoryBytes, devices };
}

async function watchedDevices(qemu: Qemu): Promise<WatchedDevice[]> {
  const found: WatchedDevice[] = [];
  for (const container of ["/machine/peripheral", "/machine/peripheral-anon"]) {
    for (const { name, type } of await qemu.qomList(container)) {
      const model = /^child<(.+)>$/.exec(type)?.[1];
      if (model === undefined || !DEVICE_TYPES.has(model) || found.length >= MAX_DEVICES) continue;
      const path = `${container}/${name}`;
      const [host, sysfs, tellsStates] = await Promise.all([
        propertyOr(qemu, path, "host", text),
        propertyOr(qemu, path, "sysfsdev", text),
        propertyOr(qemu, path, "migration-events", z.boolean()),
      ]);
      const id = safeText(container.endsWith("-anon") ? `${model}.${name}` : name, 200);
      found.push({ id, model, kernelName: kernelNameOf(host, sysfs), path, tellsStates });
    }
  }
  return found;
}

/** Null for a property that the object does not have, or that can't be read. */
async function propertyOr<Schema extends z.ZodType>(
  qemu: Qemu,
  path: string,
  property: string,
  schema: Schema,
): Promise<z.output<Schema> | null> {
  try {
    return await qemu.qomGet(path, property, schema);
  } catch (error) {
    if (isRefusal(error)) return null;
    throw error;
  }
}

/** QEMU names a device by the last part of its place in sysfs, where it was given that, else by its PCI address. */
function kernelNameOf(host: string | null, sysfs: string | null): string | null {
  const last = sysfs
    ?.split("/")
    .filter((part) => part !== "")
    .at(-1);
  const name = last ?? host;
  return name === null || name === undefined || name === "" || /^f{4}:f{2}/.test(name) ? null : safeText(name, 200);
}
