import { z } from "zod";
import { DirtmapError, explain, UsageError } from "../errors.js";
import { listJournals } from "../migration/journals.js";
import { type OutlivingMachine, readNote, type TakenBack } from "../migration/outliving.js";
import { devicesFirst } from "./guest-devices.js";
import { LeftDevices } from "./left-devices.js";
import { MigrationSettings, type PreviousSettings } from "./migration-settings.js";
import { MigrationWatch, stateAfterMigration } from "./migration-status.js";
import type { MonitorPlace } from "./qmp/monitor.js";
import { openQemu } from "./qmp/open-qemu.js";
import type { Qemu } from "./qmp/qemu.js";
import type { SourceGuest } from "./source-guest.js";

/*
 * A guest whose `dirtmap migrate` has ended before it was known where it runs. QEMU's migration goes on without it, as far as the
 * pause; a note in the journals' folder says where QEMU and the servers are, and what of QEMU was changed.
 */

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

/**
 * Refuses to move a guest that an earlier migration has left: what is noted of it would mean another state of it afterwards.
 * @throws UsageError `LEFT`
 */
export function checkNotLeft({ monitor }: Qemu, directory: string): void {
  for (const { migration, side, standing } of listJournals(directory)) {
    if (side !== "source" || standing !== "waits") continue;
    const note = noteSchema.safeParse(readNote(directory, migration));
    const { qmp, libvirt } = note.data ?? {};
    const isThis = "qmp" in monitor.place ? monitor.place.qmp === qmp : monitor.place.libvirt === libvirt;
    if (!isThis) continue;
    throw new UsageError(`migration ${migration} has left the guest of ${monitor.name}, and waits for its operator`, {
      code: "LEFT",
      remedy: "decide it first: `dirtmap list` shows how",
    });
  }
}

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

  async takeBack(): Promise<TakenBack> {
    const { devices: noted, settings } = this.#note;
    await using devices = await LeftDevices.reach(noted, this.#migration);
    const back = devices.takeBack();
    await devicesFirst(back);
    // Connections in use stay open: a device whose connection ends goes no further.
    const ran = await this.#runAgain().finally(() => back.catch(() => {}));
    const problems = [
      ...devices.missing.map(({ text }) => text),
      ...(await back),
      ...(await MigrationSettings.changed(this.#qemu, settings).restore()),
    ];
    return { said: [ran, ...problems].join("; "), isWhole: !devices.missing.some(({ mayAnswer }) => mayAnswer) };
  }

  async giveUp(): Promise<string> {
    const problems: string[] = [];
    const tried = async (what: string, doing: () => Promise<unknown>) => {
      await doing().catch((error: unknown) => problems.push(`${what}: ${explain(error)}`));
    };
    await tried("the servers were not told", async () => {
      await using devices = await LeftDevices.reach(this.#note.devices, this.#migration);
      // One that has ended has nothing to be told.
      const silent = devices.missing.filter(({ mayAnswer }) => mayAnswer);
      problems.push(...silent.map(({ id }) => `the server of '${id}' was not told: it stands still`));
      problems.push(...(await devices.giveUp()));
    });
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
    let state = await stateAfterMigration(qemu);
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
}
