import { existsSync } from "node:fs";
import { DirtmapError, UsageError } from "../errors.js";
import type { MachineShape } from "../host/shape.js";
import { within } from "../migration/deadline.js";
import { safeText } from "../safe-text.js";
import { isErrno } from "../uapi/errno.js";
import type { ServerCounters } from "../vfio-user/client/counters.js";
import { VfioUserDevice, type VfioUserDeviceOptions } from "../vfio-user/client/device.js";
import { controlPath } from "../vfio-user/control-path.js";
import { type GuestDevice, socketOf } from "./guest.js";

/** Characters of the place of a device, in a shape. */
const MAX_PLACE = 128;

/** A device of a guest, over the control connection to its server. */
export interface ControlledDevice {
  /** Its name: see {@link GuestDevice}. */
  readonly id: string;
  readonly model: string;
  readonly vfio: VfioUserDevice;
  /** Its server can have it write by messages. */
  readonly byMessages: boolean;
  /** Where it is in QEMU. */
  readonly place: GuestDevice;
}

/**
 * Opens the control connections of a guest's devices; QEMU goes on using them.
 * @param options.sockets of devices whose sockets QEMU does not tell, by name
 * @param options.side a destination's devices must wait for state
 * @throws UsageError `NO_SOCKET`, `NO_CONTROL`, `OLD_SERVER`, `CANNOT_MIGRATE`, `CANNOT_TRACK`, `NOT_INCOMING`: nothing is left open
 */
export async function openDevices(
  places: readonly GuestDevice[],
  { sockets, side }: { sockets?: Readonly<Record<string, string>> | undefined; side: "source" | "destination" },
): Promise<ControlledDevice[]> {
  const opened: ControlledDevice[] = [];
  try {
    for (const place of places) {
      const socket = socketOf(place, sockets);
      const vfio = await openControl(place.name, socket);
      try {
        const counters = await countersOf(vfio);
        await checkReady(vfio, counters, { socket, side });
        opened.push({ id: place.name, model: vfio.model, vfio, byMessages: byMessages(counters), place });
      } catch (error) {
        await vfio[Symbol.asyncDispose]();
        throw error;
      }
    }
    return opened;
  } catch (error) {
    await closeDevices(opened);
    throw error;
  }
}

/** Closes the connections. A device that was not handed over goes back to what it was: see the server's custody. */
export async function closeDevices(devices: readonly ControlledDevice[]): Promise<void> {
  await Promise.allSettled(devices.map(({ vfio }) => vfio[Symbol.asyncDispose]()));
}

/**
 * @param options.limitMs how long the server may take for each answer
 * @throws UsageError `NO_CONTROL` for somebody else's server, and where nobody serves it
 */
export async function openControl(
  id: string,
  socket: string,
  options: Pick<VfioUserDeviceOptions, "limitMs"> = {},
): Promise<VfioUserDevice> {
  const foreign = (cause?: unknown) =>
    new UsageError(`the server of '${id}' at ${socket} has no control connection of Dirtmap's`, {
      code: "NO_CONTROL",
      remedy: "serve the device with `dirtmap device`",
      cause,
    });
  try {
    return await VfioUserDevice.open({
      ...options,
      path: controlPath(socket),
      id,
      control: true,
      check: (server) => {
        if (server === null) throw foreign();
      },
    });
  } catch (error) {
    throw isErrno(error, "ENOENT") && existsSync(socket) ? foreign(error) : error;
  }
}

/** How long vCPUs wait for devices to run again. It takes milliseconds, unless a server stands still. */
const DEVICES_FIRST_MS = 1000;

/** The devices run before vCPUs do, which want things of them; but one that does not answer holds up nobody. */
export async function devicesFirst(back: Promise<unknown>): Promise<void> {
  await within(DEVICES_FIRST_MS, "the devices running again", back).catch(() => {});
}

/** What the server tells now. */
export async function countersOf(vfio: VfioUserDevice): Promise<ServerCounters> {
  const counters = await vfio.serverCounters();
  if (counters === null) throw new DirtmapError(`the server of '${vfio.id}' tells nothing`, { code: "NO_CONTROL" });
  return counters;
}

/** @throws UsageError for a device that can't be moved from here, or to here */
async function checkReady(
  vfio: VfioUserDevice,
  counters: ServerCounters,
  { socket, side }: { socket: string; side: "source" | "destination" },
): Promise<void> {
  const { writePath, waitsForState, failure, migration, state, dmaLogging } = counters;
  const refuse = (what: string, code: string, remedy: string) => {
    throw new UsageError(`${side}: '${vfio.id}' at ${socket} ${what}`, { code, remedy });
  };
  if (writePath === undefined) refuse("is served by an older Dirtmap", "OLD_SERVER", "upgrade the server");
  if (failure === null && state === null) {
    refuse("can't be migrated", "CANNOT_MIGRATE", "detach it first: its server can't save or load its state");
  }
  if (failure !== null) refuse("has failed", "CANNOT_MIGRATE", `reset it: dirtmap device resume ${socket} --reset`);
  if (migration !== null) {
    refuse("is in a migration already", "CANNOT_MIGRATE", `see what became of that: dirtmap device status ${socket}`);
  }
  if (side === "destination" && waitsForState !== true) {
    refuse("does not wait for a state", "NOT_INCOMING", "start its server with --incoming");
  }
  if (side === "source" && dmaLogging === null && !byMessages(counters)) {
    refuse(
      "can't be tracked: its server has no log, and writes as it likes",
      "CANNOT_TRACK",
      "start its proxy with --dma messages, before the guest",
    );
  }
  if (side === "source" && waitsForState === true) {
    refuse("waits for a state itself", "CANNOT_MIGRATE", "move its guest there first, or serve it without --incoming");
  }
}

/** Only a proxy says what is possible: Dirtmap's own servers can do both. */
function byMessages({ writePath }: ServerCounters): boolean {
  return writePath?.possible?.includes("messages") ?? true;
}

/**
 * What the guest can tell its devices by, and where it finds them; memory and vCPUs are QEMU's to compare.
 * @throws UapiError where a configuration space can't be read
 */
export async function shapeOfGuest(devices: readonly ControlledDevice[]): Promise<MachineShape> {
  const shapes = devices.map(async ({ id, vfio, place: { bus, devfn } }) => {
    const shape = await vfio.shape();
    const behind = bus.split("/").slice(-2).join("/");
    const place = safeText(`${behind} ${devfn >> 3}.${devfn & 7}`, MAX_PLACE);
    return { id, shape: { ...shape, facts: { ...shape.facts, place } } };
  });
  return { memory: [], vcpus: 0, devices: await Promise.all(shapes) };
}
