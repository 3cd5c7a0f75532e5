import { z } from "zod";
import { safeText } from "../../safe-text.js";
import { deviceObjects } from "../guest.js";
import { isRefusal, type Qemu } from "../qmp/qemu.js";

/*
 * Which guest is watched, and which of its devices have a migration state of their own.
 */

/** Types of devices that QEMU moves by VFIO's migration protocol. */
const DEVICE_TYPES = new Set(["vfio-pci", "vfio-pci-nohotplug"]);

/** Each is asked about. */
const MAX_DEVICES = 256;

/** A device of a guest that is watched. */
export interface WatchedDevice {
  /** Its id in QEMU; for one without, its place among the objects. */
  readonly id: string;
  /** Its type in QEMU. */
  readonly model: string;
  /** The path of its object. */
  readonly path: string;
  /** It tells its states by events. */
  readonly tellsStates: boolean;
}

export interface GuestIdentity {
  /** Null: it has none. */
  readonly name: string | null;
  readonly uuid: string | null;
  readonly memoryBytes: number;
  readonly devices: readonly WatchedDevice[];
}

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
  const objects = (await deviceObjects(qemu)).filter(({ type }) => DEVICE_TYPES.has(type));
  for (const { path, type: model } of objects.slice(0, MAX_DEVICES)) {
    const [container, name] = [path.slice(0, path.lastIndexOf("/")), path.slice(path.lastIndexOf("/") + 1)];
    const id = safeText(container.endsWith("-anon") ? `${model}.${name}` : name, 200);
    found.push({ id, model, path, tellsStates: await tellsStates(qemu, path) });
  }
  return found;
}

/** A device of a type, or of a QEMU, that has no such property tells nothing. */
async function tellsStates(qemu: Qemu, path: string): Promise<boolean> {
  try {
    return await qemu.qomGet(path, "migration-events", z.boolean());
  } catch (error) {
    if (isRefusal(error)) return false;
    throw error;
  }
}
