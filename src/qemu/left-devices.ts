import { DirtmapError, explain } from "../errors.js";
import { DEFAULT_TIMEOUTS } from "../migration/deadline.js";
import { announceHandover, migratableDevices, takeDevicesBack } from "../migration/lock-step.js";
import { UapiError } from "../uapi/errno.js";
import type { ServerCounters } from "../vfio-user/client/counters.js";
import type { VfioUserDevice } from "../vfio-user/client/device.js";
import { countersOf, openControl } from "./guest-devices.js";

/*
 * The devices of a guest whose `dirtmap migrate` has ended, or can't reach them any more: their servers may have ended, too, or
 * stand still.
 */

const { deviceMs } = DEFAULT_TIMEOUTS;

/** How long a server may take to answer. One that stands still accepts a connection, and says nothing. */
const ANSWER_MS = 5000;

/** A device, and where its server listened. */
export interface NotedDevice {
  readonly id: string;
  readonly socket: string;
}

/** A device that could not be reached. */
export interface MissingDevice {
  readonly id: string;
  /** What became of it and what would bring it back, as a sentence. */
  readonly text: string;
  /** Its server stands still, and may go on: then the device can still be brought back. */
  readonly mayAnswer: boolean;
}

/** What brings a device back whose server has ended: QEMU connects to a server once, when it makes its device. */
const ADD_ANEW =
  "serve it anew, and add it to the guest under another id, at a root port that is free (device_add), or start the guest anew";

/** @param failure of the connection to its server, or of the attempt to make one. @param migration that it was in */
export function missingDevice({ id, socket }: NotedDevice, failure: unknown, migration: string): MissingDevice {
  if (failure instanceof UapiError && failure.code === "ETIMEDOUT") {
    return {
      id,
      text: `'${id}' does not answer: its server at ${socket} stands still, or waits for QEMU. Once it goes on (kill -CONT), say \`dirtmap resume ${migration}\``,
      mayAnswer: true,
    };
  }
  const hasEnded = failure instanceof UapiError && ["ECONNREFUSED", "ECONNRESET", "ENOENT"].includes(failure.code);
  const why = hasEnded ? `its server at ${socket} has ended` : explain(failure);
  return { id, text: `'${id}' is lost: ${why}. To have it back, ${ADD_ANEW}`, mayAnswer: false };
}

/** Those devices of such a guest that can be reached, over connections of their own, and word of the others. */
export class LeftDevices implements AsyncDisposable {
  readonly missing: readonly MissingDevice[];
  readonly #reached: readonly VfioUserDevice[];
  readonly #migration: string;

  private constructor(reached: readonly VfioUserDevice[], missing: readonly MissingDevice[], migration: string) {
    this.#reached = reached;
    this.missing = missing;
    this.#migration = migration;
  }

  /** @throws DirtmapError `DEVICE_BUSY`, `HANDED_OVER` if one that can be reached is not this migration's any more */
  static async reach(noted: readonly NotedDevice[], migration: string): Promise<LeftDevices> {
    const reached: VfioUserDevice[] = [];
    const missing: MissingDevice[] = [];
    const refusals: DirtmapError[] = [];
    await Promise.all(
      noted.map(async (device) => {
        let vfio: VfioUserDevice | undefined;
        try {
          vfio = await openControl(device.id, device.socket, { limitMs: ANSWER_MS });
          const counters = await countersOf(vfio);
          if (!servesGuest(counters)) throw startedAnew(device);
          const refusal = refusalOf(device.id, counters, migration);
          if (refusal !== null) refusals.push(refusal);
          reached.push(vfio);
        } catch (error) {
          missing.push(missingDevice(device, error, migration));
          await vfio?.[Symbol.asyncDispose]();
        }
      }),
    );
    const devices = new LeftDevices(reached, missing, migration);
    if (refusals.length === 0) return devices;
    await devices[Symbol.asyncDispose]();
    throw refusals[0];
  }

  /** They run, as before the migration. Returns what could not be done, as sentences. */
  takeBack(): Promise<string[]> {
    return this.#each(async (vfio) => {
      const left = await takeDevicesBack(await migratable(vfio), { mayP2p: nowhere, deviceMs });
      return left.map(({ text }) => text);
    });
  }

  /** They never run here again, as far as their servers know. Returns what could not be done, as sentences. */
  giveUp(): Promise<string[]> {
    return this.#each(async (vfio) => {
      // Whoever has the device may say what becomes of it: this connection, once it has moved it.
      if ((await vfio.state()) !== "RUNNING") await vfio.setState("STOP");
      await announceHandover(await migratable(vfio), "gone", { migration: this.#migration, deviceMs });
      return [];
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(this.#reached.map((vfio) => vfio[Symbol.asyncDispose]()));
  }

  /** All at once, and each by itself: QEMU's devices reach each other only through its memory. */
  async #each(doing: (vfio: VfioUserDevice) => Promise<string[]>): Promise<string[]> {
    const problems = this.#reached.map((vfio) =>
      doing(vfio).catch((error: unknown) => [`'${vfio.id}': ${explain(error)}`]),
    );
    return (await Promise.all(problems)).flat();
  }
}

const nowhere = () => false;

const migratable = (vfio: VfioUserDevice) =>
  migratableDevices({ devices: [{ id: vfio.id, model: vfio.model, vfio }], mayP2p: nowhere });

/** QEMU has given it the guest's memory. */
function servesGuest({ mapped }: ServerCounters): boolean {
  return mapped === undefined || mapped === null || mapped.length > 0;
}

function startedAnew({ socket }: NotedDevice): DirtmapError {
  return new DirtmapError(`its server at ${socket} was started anew, and QEMU does not connect to it again`, {
    code: "DEVICE_FAILED",
  });
}

/** Why a device is none of this migration's any more; null: it is. */
function refusalOf(id: string, { migration: custody }: ServerCounters, migration: string): DirtmapError | null {
  if (custody === null) return null;
  const refuse = (what: string, code: string) =>
    new DirtmapError(`'${id}' ${what}`, { code, attempted: `decide migration ${migration}` });
  if (custody.connected) return refuse(`is being moved by ${custody.movedBy}`, "DEVICE_BUSY");
  if (custody.migration !== null && custody.migration !== migration) {
    return refuse(`is in migration ${custody.migration} by now`, "DEVICE_BUSY");
  }
  return custody.notice === "gone" ? refuse("was handed over: it must not go on here", "HANDED_OVER") : null;
}
