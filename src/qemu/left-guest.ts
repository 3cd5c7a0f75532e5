import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { DirtmapError, explain } from "../errors.js";
import { DEFAULT_TIMEOUTS } from "../migration/deadline.js";
import { announceHandover, migratableDevices, takeDevicesBack } from "../migration/lock-step.js";
import type { MovedMachine } from "../migration/memory-mover.js";
import type { OutlivingMachine } from "../migration/outliving.js";
import { countersOf, openControl } from "./guest-devices.js";
import { MigrationSettings, type PreviousSettings } from "./migration-settings.js";
import { MigrationWatch } from "./migration-status.js";
import type { MonitorPlace } from "./qmp/monitor.js";
import { openQemu } from "./qmp/open-qemu.js";
import type { Qemu } from "./qmp/qemu.js";
import type { SourceGuest } from "./source-guest.js";

/*
 * A guest whose `dirtmap migrate` has ended before it was known where it runs. QEMU's migration goes on without it, as far as the
 * pause; a note in the journals' folder says where QEMU and the servers are, and what of QEMU was changed.
 */

const { deviceMs } = DEFAULT_TIMEOUTS;
/** After a migration has ended, QEMU takes a moment until its vCPUs run again. */
const RUNS_AGAIN_MS = 5000;

const path = z.string().min(1).max(4096);
const noteSchema = z.strictObject({
  schemaVersion: z.literal(1),
  qmp: path.optional(),
  /** The guest's domain, instead of a socket. */
  libvirt: z.string().min(1).max(256).optional(),
  connect: z.string().min(1).max(4096).optional(),
  /** The vCPUs ran before the migration. */
  running: z.boolean(),
  keepSource: z.boolean(),
  devices: z.array(z.strictObject({ id: z.string().min(1).max(4096), socket: path })).max(256),
  settings: z.strictObject({
    capabilities: z.record(z.string(), z.boolean()),
    parameters: z.record(z.string(), z.unknown()),
  }),
});
type GuestNote = z.output<typeof noteSchema>;

/** What is noted of a guest. @param settings of QEMU's that are about to be changed, as they are now */
export function noteOfGuest(guest: SourceGuest, settings: PreviousSettings, keepSource: boolean): GuestNote {
  const devices = guest.devices.map(({ id }) => {
    const socket = guest.sockets.get(id);
    if (socket === undefined) throw new Error(`no socket of ${id}`);
    return { id, socket };
  });
  const { capabilities, parameters } = settings;
  const { place } = guest.qemu.monitor;
  return {
    schemaVersion: 1,
    ...place,
    running: guest.running,
    keepSource,
    devices,
    settings: { capabilities, parameters },
  };
}

function placeOf({ qmp, libvirt, connect }: GuestNote, migration: string): MonitorPlace {
  if (qmp !== undefined) return { qmp };
  if (libvirt !== undefined) return { libvirt, connect };
  throw notUnderstood(migration, "it does not say where QEMU is");
}

function notUnderstood(migration: string, why: string): DirtmapError {
  return new DirtmapError(`the note of migration ${migration} can't be understood: ${why}`, {
    code: "JOURNAL",
    remedy: "decide with the Dirtmap that wrote it",
  });
}

type LeftDevices = Awaited<ReturnType<typeof openControl>>[];

/** Such a guest, with its devices. Disposing closes the connections. */
export class LeftGuest implements OutlivingMachine {
  readonly #note: GuestNote;
  readonly #migration: string;
  readonly #qemu: Qemu;

  private constructor(note: GuestNote, migration: string, qemu: Qemu) {
    this.#note = note;
    this.#migration = migration;
    this.#qemu = qemu;
  }

  /** @throws DirtmapError `JOURNAL` for a note that is none, `MACHINE_ENDED` where QEMU has ended; those of {@link SocketMonitor} */
  static async find(found: unknown, migration: string): Promise<LeftGuest> {
    const note = noteSchema.safeParse(found);
    if (!note.success) throw notUnderstood(migration, note.error.issues[0].message);
    try {
      return new LeftGuest(note.data, migration, await openQemu(placeOf(note.data, migration)));
    } catch (error) {
      if ((error as { code?: string }).code !== "QMP_UNREACHABLE") throw error;
      throw new DirtmapError(
        `the guest's QEMU at ${note.data.qmp ?? note.data.libvirt} has ended, and the guest with it`,
        {
          code: "MACHINE_ENDED",
          attempted: `reach the guest of migration ${migration}`,
          remedy: `say so: \`dirtmap abort ${migration}\``,
          cause: error,
        },
      );
    }
  }

  /** The devices first: vCPUs that run would wait for them. */
  async takeBack(): Promise<string> {
    const problems = await this.#withDevices(async (devices) => {
      const lost = await takeDevicesBack(await migratableDevices(asMachine(devices)), new Set(), deviceMs);
      for (const vfio of devices) {
        if ((await countersOf(vfio)).writePath?.path === "messages") await vfio.switchWritePath("direct");
      }
      return lost;
    });
    const ran = await this.#runAgain();
    problems.push(...(await MigrationSettings.changed(this.#qemu, this.#note.settings).restore()));
    return [ran, ...problems].join("; ");
  }

  async giveUp(): Promise<string> {
    const problems: string[] = [];
    const tried = async (what: string, doing: () => Promise<unknown>) => {
      await doing().catch((error: unknown) => problems.push(`${what}: ${explain(error)}`));
    };
    await tried("the servers were not told", () =>
      this.#withDevices(async (devices) => {
        const migratable = await migratableDevices(asMachine(devices));
        // Whoever has the device may say what becomes of it: this connection, once it has moved it.
        for (const vfio of devices) if ((await vfio.state()) !== "RUNNING") await vfio.setState("STOP");
        await announceHandover(migratable, "gone", { migration: this.#migration, deviceMs });
      }),
    );
    await tried("QEMU was left as it is", () => this.#end());
    return ["the source's guest is given up", ...problems].join("; ");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#qemu[Symbol.asyncDispose]();
  }

  async #end(): Promise<void> {
    const { running, status } = await this.#qemu.status();
    if (running) throw new Error(`the guest there runs ('${status}')`);
    if (!this.#note.keepSource) await this.#qemu.quit();
  }

  /** QEMU's migration is over, and the vCPUs run if they ran. Returns that as a sentence. */
  async #runAgain(): Promise<string> {
    const qemu = this.#qemu;
    using watch = new MigrationWatch(qemu);
    await watch.cancel();
    const until = performance.now() + RUNS_AGAIN_MS;
    let state = await qemu.status();
    while (!state.running && state.status === "finish-migrate" && performance.now() < until) {
      await sleep(20);
      state = await qemu.status();
    }
    // `postmigrate`: it had sent all. Any other state is somebody else's doing, or a QEMU that was started anew.
    if (this.#note.running && state.status === "postmigrate") {
      await qemu.cont();
      state = await qemu.status();
    }
    if (state.running) return `the guest runs again in QEMU at ${qemu.name}`;
    if (!this.#note.running) return `the guest is in QEMU at ${qemu.name}, paused as before`;
    throw new DirtmapError(`the guest of QEMU at ${qemu.name} is in state '${state.status}'`, {
      code: "WRONG_STATE",
      attempted: "let it run again",
      remedy: "see QEMU's log; `cont` in its monitor lets a paused guest run",
    });
  }

  /** @throws DirtmapError `DEVICE_BUSY`, `HANDED_OVER` for a device that is not this migration's any more */
  async #withDevices<Value>(doing: (devices: LeftDevices) => Promise<Value>): Promise<Value> {
    const devices: LeftDevices = [];
    try {
      for (const { id, socket } of this.#note.devices) devices.push(await openControl(id, socket));
      for (const vfio of devices) checkOurs(vfio.id, await countersOf(vfio), this.#migration);
      return await doing(devices);
    } finally {
      await Promise.allSettled(devices.map((vfio) => vfio[Symbol.asyncDispose]()));
    }
  }
}

function asMachine(devices: LeftDevices): MovedMachine {
  return { devices: devices.map((vfio) => ({ id: vfio.id, model: vfio.model, vfio })), mayP2p: () => false };
}

function checkOurs(
  id: string,
  { migration: custody }: Awaited<ReturnType<typeof countersOf>>,
  migration: string,
): void {
  if (custody === null) return;
  const refuse = (what: string, code: string) =>
    new DirtmapError(`'${id}' ${what}`, { code, attempted: `decide migration ${migration}` });
  if (custody.connected) throw refuse(`is being moved by ${custody.movedBy}`, "DEVICE_BUSY");
  if (custody.migration !== null && custody.migration !== migration) {
    throw refuse(`is in migration ${custody.migration} by now`, "DEVICE_BUSY");
  }
  if (custody.notice === "gone") throw refuse("was handed over: it must not go on here", "HANDED_OVER");
}
