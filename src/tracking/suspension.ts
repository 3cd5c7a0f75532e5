import { DirtmapError, explain } from "../errors.js";
import type { AttachedDevice, Machine } from "../host/host.js";
import { isErrno } from "../uapi/errno.js";
import type { TrackerChoice } from "./choice.js";

/** Devices that are stopped for the whole migration, because nothing tracks them. */
export interface Suspension {
  readonly devices: readonly string[];
  /** Returns the milliseconds for which a device has been stopped so far, or was: its own outage. 0 if it never was. */
  suspendedMs(device: string): number;
  /**
   * Lets the devices run again, after a cancelled migration. A second call does nothing. Also brings back a device that the
   * migration took further (STOP_COPY).
   * @throws DirtmapError `CANNOT_RESUME`, after trying all devices
   */
  resume(): Promise<void>;
}

/**
 * Stops the devices that the choices suspend, before copying begins. From then on they do no DMA and no peer can reach them, so
 * they need no tracker.
 * @throws DirtmapError `CANNOT_SUSPEND` for a device that does not support STOP or whose state change failed. The devices that
 * were stopped run again then
 */
export async function suspendDevices(machine: Machine, choices: readonly TrackerChoice[]): Promise<Suspension> {
  const outages = new Map<string, { readonly from: number; to: number | null }>();
  const suspended: AttachedDevice[] = [];
  const suspension: Suspension = {
    devices: choices.filter(({ suspend }) => suspend).map(({ device }) => device),
    suspendedMs: (device) => {
      const outage = outages.get(device);
      return outage === undefined ? 0 : (outage.to ?? performance.now()) - outage.from;
    },
    resume: async () => {
      const failures: string[] = [];
      for (let device = suspended.pop(); device !== undefined; device = suspended.pop()) {
        try {
          await resume(device, machine);
          const outage = outages.get(device.id);
          if (outage !== undefined) outage.to = performance.now();
        } catch (error) {
          failures.push(`${device.id}: ${explain(error)}`);
        }
      }
      if (failures.length === 0) return;
      throw new DirtmapError(`suspended devices don't run again: ${failures.join("; ")}`, {
        code: "CANNOT_RESUME",
        remedy: "reset the device",
      });
    },
  };
  try {
    for (const id of suspension.devices) {
      const device = machine.devices.find((candidate) => candidate.id === id);
      if (device === undefined) continue;
      await checkStop(device);
      suspended.push(device);
      // Peers first: a stopped device answers nobody.
      await machine.setP2pReachable(id, false);
      outages.set(id, { from: performance.now(), to: null });
      await device.vfio.setState("STOP");
    }
  } catch (error) {
    await suspension.resume().catch(() => undefined);
    if (error instanceof DirtmapError && error.code === "CANNOT_SUSPEND") throw error;
    throw new DirtmapError(`can't suspend a device: ${explain(error)}`, { code: "CANNOT_SUSPEND", cause: error });
  }
  return suspension;
}

async function checkStop({ id, vfio }: AttachedDevice): Promise<void> {
  try {
    if ((await vfio.migration()).stopCopy) return;
  } catch (error) {
    if (!isErrno(error, "ENOTTY")) throw error;
  }
  throw new DirtmapError(`${id} can't be suspended: it does not support STOP`, {
    code: "CANNOT_SUSPEND",
    remedy: `count everything that ${id} may write as dirty instead`,
  });
}

async function resume({ id, vfio }: AttachedDevice, machine: Machine): Promise<void> {
  const state = await vfio.state();
  // Out of ERROR there is no arc but a reset, which ends in RUNNING.
  if (state === "ERROR") await vfio.reset();
  else if (state !== "RUNNING") await vfio.setState("RUNNING");
  await machine.setP2pReachable(id, true);
}
