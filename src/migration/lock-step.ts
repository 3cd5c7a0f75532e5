import { DirtmapError, explain, UsageError } from "../errors.js";
import type { AttachedDevice, DataStream, HandoverNotice, MigrationSupport, SavingStream } from "../host/host.js";
import { settled } from "../settled.js";
import type { MigState } from "../uapi/vfio.js";
import { within } from "./deadline.js";
import { DeviceError } from "./device-error.js";
import type { MovedMachine } from "./memory-mover.js";

/*
 * Takes all devices of a machine through the migration states together. Devices write into each other: so all reach the
 * P2P-quiescent state before any is stopped, and on the way back a device runs once those that it may write into have reached it.
 */

/** A device, and what it can do in a migration. */
export interface MigratableDevice extends Pick<AttachedDevice, "id" | "vfio"> {
  readonly support: MigrationSupport;
}

/**
 * The machine's devices with their migration support.
 * @throws UsageError `CANNOT_MIGRATE` for a device that can't, or for two that can't be stopped without one of them
 * writing into the other after it has stopped
 */
export async function migratableDevices(machine: MovedMachine): Promise<MigratableDevice[]> {
  const devices: MigratableDevice[] = [];
  for (const device of machine.devices) {
    const support = await device.vfio.migration().catch((cause: unknown) => {
      throw new UsageError(`${device.id} can't migrate: ${explain(cause)}`, {
        code: "CANNOT_MIGRATE",
        remedy: "detach it before the migration",
        cause,
      });
    });
    devices.push({ id: device.id, vfio: device.vfio, support });
  }
  const abrupt = devices.filter(({ support }) => !support.p2p);
  for (const { id: initiator } of abrupt) {
    const target = abrupt.find(({ id }) => id !== initiator && machine.mayP2p(initiator, id));
    if (target === undefined) continue;
    throw new UsageError(`${initiator} may write into ${target.id} over P2P, and neither has a P2P-quiescent state`, {
      code: "CANNOT_MIGRATE",
      remedy: "forbid P2P between them (--p2p none)",
    });
  }
  return devices;
}

/** Where a device's data transfer session goes. */
type OnStream = (device: MigratableDevice, stream: SavingStream) => void;

/** All devices that can: RUNNING to PRE_COPY. `except`: devices that are stopped already. */
export async function startPrecopy(
  devices: readonly MigratableDevice[],
  except: ReadonlySet<string>,
  deviceMs: number,
  onStream: OnStream,
): Promise<void> {
  await together(devices, async (device) => {
    if (!device.support.preCopy || except.has(device.id)) return;
    taken(device, await setState(device, "PRE_COPY", deviceMs), onStream);
  });
}

/**
 * All devices to STOP_COPY, by way of the P2P-quiescent state. The vCPUs must be paused. When it resolves, no device
 * does DMA. A device without a P2P state is stopped while the others still accept what it writes into them.
 */
export async function stopAll(
  devices: readonly MigratableDevice[],
  stopped: ReadonlySet<string>,
  deviceMs: number,
  onStream: OnStream,
): Promise<void> {
  const running = devices.filter(({ id }) => !stopped.has(id));
  await together(running, async (device) => {
    if (!device.support.p2p) return;
    await setState(device, device.support.preCopy ? "PRE_COPY_P2P" : "RUNNING_P2P", deviceMs);
  });
  const abruptFirst = [devices.filter(({ support }) => !support.p2p), devices.filter(({ support }) => support.p2p)];
  for (const group of abruptFirst) {
    await together(group, async (device) => taken(device, await setState(device, "STOP_COPY", deviceMs), onStream));
  }
}

/** All devices from STOP to RUNNING, by way of RUNNING_P2P. */
export async function runAll(devices: readonly MigratableDevice[], deviceMs: number): Promise<void> {
  await together(devices, async (device) => {
    if (device.support.p2p) await setState(device, "RUNNING_P2P", deviceMs);
  });
  await together(devices, async (device) => {
    await setState(device, "RUNNING", deviceMs);
  });
}

/** A device that could not be taken back as it was. */
export interface NotTakenBack {
  readonly device: string;
  /** Nobody could reach it; false: it was reset, and runs. */
  readonly isLost: boolean;
  /** What became of it and why, as a sentence. */
  readonly text: string;
}

/**
 * All devices back to RUNNING from wherever a migration left them. One in ERROR, or that refuses, is reset, which loses its
 * state. A device that does not answer holds up only those that may write into it. Never throws for a device.
 * @param options.except devices that are left as they are
 * @param options.release ends what still reads a device's state; its failure is nobody's
 */
export async function takeDevicesBack(
  devices: readonly MigratableDevice[],
  {
    mayP2p,
    deviceMs,
    except = new Set(),
    release = async () => {},
  }: Pick<MovedMachine, "mayP2p"> & {
    readonly deviceMs: number;
    readonly except?: ReadonlySet<string>;
    readonly release?: (device: string) => Promise<void>;
  },
): Promise<NotTakenBack[]> {
  const problems: NotTakenBack[] = [];
  const taken = devices.filter(({ id }) => !except.has(id));
  /** False: it is not to be asked for anything more. */
  const step = async (
    device: MigratableDevice,
    next: MigState,
    wanted: (state: MigState) => boolean,
  ): Promise<boolean> => {
    try {
      const state = await within(deviceMs, `the state of ${device.id}`, device.vfio.state());
      if (state === "ERROR") return await reset(device, "it had gone to ERROR");
      if (state !== next && wanted(state)) await setState(device, next, deviceMs);
      return true;
    } catch (error) {
      return await reset(device, explain(error));
    }
  };
  const reset = async (device: MigratableDevice, why: string): Promise<boolean> => {
    const { id } = device;
    const note = (isLost: boolean, text: string) => problems.push({ device: id, isLost, text });
    try {
      await within(deviceMs, `the reset of ${id}`, device.vfio.reset());
      note(false, `${id} was reset and its guest driver must start it anew: ${why}`);
      return true;
    } catch (error) {
      note(true, `${id} is lost: ${why}; its reset failed: ${explain(error)}`);
      return false;
    }
  };
  const accept = async (device: MigratableDevice): Promise<boolean> => {
    await release(device.id).catch(() => {});
    const isStopped = (state: MigState) => state !== "RUNNING" && state !== "PRE_COPY";
    return await step(device, "RUNNING_P2P", (state) => device.support.p2p && isStopped(state));
  };
  const accepting = new Map(taken.map((device) => [device.id, accept(device)]));
  await Promise.all(
    taken.map(async (device) => {
      const targets = taken.filter(({ id }) => id !== device.id && mayP2p(device.id, id));
      const [isThere] = await Promise.all([device, ...targets].map(({ id }) => accepting.get(id)));
      if (isThere === true) await step(device, "RUNNING", () => true);
    }),
  );
  return problems;
}

/**
 * Tells those who serve devices how far the handover is, all at once. @throws DirtmapError `DEVICE_FAILED` where one could
 * not be told
 */
export async function announceHandover(
  devices: readonly MigratableDevice[],
  notice: HandoverNotice,
  { migration, deviceMs }: { migration: string; deviceMs: number },
): Promise<void> {
  await together(devices, async ({ id, vfio }) => {
    const telling = vfio.announceHandover?.(notice, migration);
    if (telling === undefined) return;
    try {
      await within(deviceMs, `${id} told '${notice}'`, telling);
    } catch (cause) {
      throw new DirtmapError(`the server of ${id} was not told about the handover ('${notice}'): ${explain(cause)}`, {
        code: "DEVICE_FAILED",
        attempted: `tell the server of ${id} about the handover`,
        cause,
      });
    }
  });
}

/** All at once: no device is left on its way. */
async function together(
  devices: readonly MigratableDevice[],
  change: (device: MigratableDevice) => Promise<void>,
): Promise<void> {
  await settled(devices.map(change));
}

async function setState(device: MigratableDevice, next: MigState, deviceMs: number): Promise<DataStream | null> {
  try {
    return await within(deviceMs, `${device.id} in ${next}`, device.vfio.setState(next));
  } catch (cause) {
    throw new DeviceError(device.id, `go to ${next}`, { code: "DEVICE_FAILED", cause });
  }
}

function taken(device: MigratableDevice, stream: DataStream | null, onStream: OnStream): void {
  if (stream?.direction === "saving") onStream(device, stream);
}
