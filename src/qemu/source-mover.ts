import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { explain } from "../errors.js";
import { pause } from "../migration/deadline.js";
import { decisionCommand } from "../migration/decision.js";
import { publish } from "../migration/events.js";
import type { NotTakenBack } from "../migration/lock-step.js";
import type {
  FinishedMove,
  MemoryMove,
  MemoryMover,
  MovePlan,
  MoverContext,
  PrecopiedStates,
} from "../migration/memory-mover.js";
import { removeNote, writeNote } from "../migration/outliving.js";
import type { DeviceReport } from "../migration/report.js";
import { settled } from "../settled.js";
import { VFIO_PCI_IRQ_INDEX } from "../uapi/vfio.js";
import { ConfigSpace } from "./config-space.js";
import { type ControlledDevice, devicesFirst } from "./guest-devices.js";
import { type GuestState, writeGuestState } from "./guest-state.js";
import {
  DEFAULT_TRACKER,
  type DeviceShare,
  DeviceTracking,
  type GuestTracker,
  reportedTracking,
  trackerFor,
} from "./guest-tracking.js";
import { type MissingDevice, missingDevice } from "./left-devices.js";
import { noteOfGuest } from "./left-guest.js";
import {
  MigrationSettings,
  type MigrationTuning,
  migrationSettings,
  type PreviousSettings,
} from "./migration-settings.js";
import { MigrationWatch, stateAfterMigration } from "./migration-status.js";
import { endIntx, readPciState, usesIntx } from "./pci-state.js";
import type { MigrationInfo } from "./qmp/qemu.js";
import type { SourceGuest } from "./source-guest.js";

/**
 * Commands, one after the other's answer, after which QEMU has taken what was in an eventfd before the first. Its main loop may have
 * polled before that, and in a turn it may do the command before the eventfd's handler.
 */
const TURNS_FOR_EVENTFDS = 2;

/** From `migrate-continue` until QEMU has sent the rest: far longer than any downtime. */
const SWITCHOVER_MS = 60_000;

/** While QEMU moves memory, devices are asked this often whether it is worth sending what has changed in them. */
const PRECOPY_EVERY_MS = 1000;
/** From this many bytes on, it is: what is sent before the pause is not sent in it. */
const WORTH_SENDING_BYTES = 4 * 2 ** 20;

/** Why a device is tracked as it is. */
const REASONS: Readonly<Record<GuestTracker, string>> = {
  messages: "QEMU does its writes itself while the migration lasts, so that they move in pre-copy as all others do",
  device: "it logs its own DMA; QEMU is made to write what was logged over itself in the pause",
};

/** Said of a device that is tracked as is usual. */
const PASSED_OVER = [
  { tracker: "device", why: "all that it logs would be moved while the machine is paused" },
] as const;

export interface QemuMoverOptions extends MigrationTuning {
  /** Where the destination's QEMU listens, as QEMU writes it: `tcp:HOST:PORT` or `unix:PATH`. */
  readonly address: string;
  /** By the devices' names; left out: {@link DEFAULT_TRACKER}. */
  readonly trackers?: Readonly<Record<string, GuestTracker>>;
  /** The source's QEMU stays, paused, after the guest runs at the destination. Default: it is told to quit. */
  readonly keepSource?: boolean;
  readonly hooks?: QemuMoverHooks;
}

/** Hooks for tests. */
export interface QemuMoverHooks {
  /** After the last read of a device's log: a bit cleared here is a lost write. */
  afterRead?(device: string, dirty: DirtyBitmap): void;
  /** What is sent of the guest's state. */
  guestState?(state: GuestState): GuestState;
}

/** The mover of a QEMU guest: QEMU's own migration moves memory and vCPUs, to a QEMU whose address the operator names. */
export class QemuMover implements MemoryMover<"qemu"> {
  readonly tracking = { design: "vmm", policy: "qemu" } as const;
  readonly outlives = true;
  readonly #guest: SourceGuest;
  readonly #options: QemuMoverOptions;

  /** @param guest stays the caller's */
  constructor(guest: SourceGuest, options: QemuMoverOptions) {
    this.#guest = guest;
    this.#options = options;
  }

  async plan(): Promise<MovePlan<"qemu">> {
    return {
      offer: { kind: "qemu" },
      shape: await this.#guest.shape(),
      open: async (_answer, context) => new QemuMove(this.#guest, this.#options, context),
    };
  }
}

/** QEMU's migration under way. */
class QemuMove implements MemoryMove {
  /** The two memories are QEMU's: nobody can compare them. */
  readonly comparison = null;
  pausedAt: number | undefined;
  resumedAt: number | undefined;
  readonly #guest: SourceGuest;
  readonly #options: QemuMoverOptions;
  readonly #context: MoverContext;
  readonly #watch: MigrationWatch;
  #settings: MigrationSettings | undefined;
  #tracking: DeviceTracking[] = [];
  readonly #shares: DeviceShare[] = [];
  /** What QEMU keeps of the devices; in the pause. */
  #readState: () => Promise<GuestState> = () => Promise.reject(new Error("not stopped"));
  /** Where QEMU's stream was at the end of the pre-copy. */
  #precopied: MigrationInfo["ram"];
  /** When tracking began, by the migration's clock. */
  #trackedSinceMs = 0;

  constructor(guest: SourceGuest, options: QemuMoverOptions, context: MoverContext) {
    this.#guest = guest;
    this.#options = options;
    this.#context = context;
    this.#watch = new MigrationWatch(guest.qemu);
    context.opened.add("QEMU's events left", async () => this.#watch[Symbol.dispose]());
  }

  async start(): Promise<ReadonlySet<string>> {
    await this.#context.enter("tracking");
    const { qemu, devices } = this.#guest;
    this.#settings = await MigrationSettings.change(
      qemu,
      migrationSettings(this.#options, { events: true, "pause-before-switchover": true }),
      (settings) => this.#note(settings),
    );
    this.#trackedSinceMs = this.#context.clock.elapsedMs;
    for (const device of devices) this.#tracking.push(await DeviceTracking.start(device, this.#trackerOf(device)));
    return new Set();
  }

  async converge(states: PrecopiedStates): Promise<void> {
    const { signal } = this.#context;
    await this.#guest.qemu.migrate(this.#options.address);
    const paused = new AbortController();
    const sending = this.#sendStates(states, paused.signal);
    sending.catch(() => {});
    const began = performance.now();
    const onInfo = (info: MigrationInfo) => this.#tellProgress(info, performance.now() - began);
    const failed = sending.then(() => new Promise<never>(() => {}));
    try {
      const { ram } = await Promise.race([this.#watch.until(["pre-switchover"], { signal, onInfo }), failed]);
      this.pausedAt = performance.now();
      this.#precopied = ram;
      this.#reportRound("pre-copy", ram, this.pausedAt - began);
    } finally {
      paused.abort();
      // One message at a time: whatever comes next, the last answer about states must have come.
      await sending.catch(() => {});
    }
    await sending;
  }

  async stop(stopDevices: () => Promise<void>): Promise<void> {
    const { qemu, devices } = this.#guest;
    // The vCPUs stand still already.
    const opening = ConfigSpace.open(
      qemu,
      devices.map(({ place }) => place),
    );
    opening.catch(() => {});
    await stopDevices();
    await this.#readShares((tracking) => tracking.tracker === "device");
    const space = await opening;
    this.#readState = () => this.#guestState(space);
    // What is read by ports changes the state that QEMU saves next, and so does an INTx that is asserted.
    const mayUseIntx = devices.some(({ vfio }) =>
      vfio.irqs.some(({ index, count }) => index === VFIO_PCI_IRQ_INDEX.INTX && count > 0),
    );
    if (space.readsAside && !mayUseIntx) return;
    const state = await this.#guestState(space);
    await this.#endIntx(state);
    this.#readState = async () => state;
  }

  async finish(sendStates: () => Promise<void>): Promise<FinishedMove> {
    const { hooks = {} } = this.#options;
    this.#context.signal.throwIfAborted();
    const began = performance.now();
    await this.#guest.qemu.migrateContinue();
    const completed = this.#completed(began);
    completed.catch(() => {});
    const [state] = await Promise.all([this.#readState(), sendStates()]);
    return { state: writeGuestState(hooks.guestState?.(state) ?? state), completed };
  }

  /** Wherever QEMU's migration is: QEMU lets its vCPUs run as soon as it is cancelled. */
  async takeBack(devicesBack: Promise<readonly NotTakenBack[]>): Promise<void> {
    const { qemu, running } = this.#guest;
    const problems: string[] = [];
    const tried = async (what: string, doing: () => Promise<unknown>) => {
      await doing().catch((error: unknown) => problems.push(`${what}: ${explain(error)}`));
    };
    await devicesFirst(devicesBack);
    await tried("QEMU's migration cancelled", () => this.#watch.cancel());
    await tried("the guest running again", async () => {
      if (running && !(await stateAfterMigration(qemu)).running) await qemu.cont();
    });
    this.resumedAt = performance.now();
    await Promise.all(this.#tracking.splice(0).map((each) => each.stop()));
    problems.push(...(await this.#restoreSettings()));
    const missing = this.#missing(await devicesBack);
    for (const problem of [...problems, ...missing.map(({ text }) => text)]) this.#context.report.warn(problem);
    // With something left to do, the note stays.
    if (problems.length === 0 && !missing.some(({ mayAnswer }) => mayAnswer)) return this.#forget();
    const { directory, migration } = this.#context.place;
    const resume = decisionCommand("resume", migration, directory);
    this.#context.report.warn(`not all is as it was; once what is missing answers: ${resume}`);
  }

  async gone(): Promise<void> {
    // Of those whose writes went by messages only the report wants to know, and the guest runs by now.
    await this.#context.report.tried(
      "what the devices wrote counted",
      this.#readShares((tracking) => tracking.tracker === "messages"),
    );
    this.#forget();
    const { qemu } = this.#guest;
    if (this.#options.keepSource !== true) {
      // An operator who took this process for dead may have let the guest run here.
      const { running, status } = await qemu.status();
      if (running) throw new Error(`the guest runs here too ('${status}'), and QEMU was not told to quit`);
      await qemu.quit();
      return;
    }
    for (const problem of await this.#restoreSettings()) this.#context.report.warn(problem);
  }

  conclude(): readonly DeviceReport[] {
    this.#tellShares();
    return this.#guest.devices.map((device) => {
      const tracker = this.#trackerOf(device);
      const share = this.#shares.find((each) => each.device === device.id);
      return {
        id: device.id,
        model: device.model,
        ...reportedTracking(tracker),
        reason: REASONS[tracker],
        alternatives: tracker === DEFAULT_TRACKER ? PASSED_OVER : [],
        pagesReported: share?.pages ?? null,
        pagesExclusive: null,
        readMs: tracker === "device" ? (share?.ms ?? 0) : 0,
        suspendedMs: 0,
      };
    });
  }

  /** From now on this guest is found again, should this process end. */
  #note(settings: PreviousSettings): void {
    const { directory, migration } = this.#context.place;
    writeNote(directory, migration, noteOfGuest(this.#guest, settings, this.#options.keepSource === true));
  }

  #forget(): void {
    const { directory, migration } = this.#context.place;
    removeNote(directory, migration);
  }

  /** Devices whose servers did not let them be taken back. */
  #missing(left: readonly NotTakenBack[]): MissingDevice[] {
    const { migration } = this.#context.place;
    return left.flatMap(({ device: id, isLost }) => {
      const failure = this.#guest.devices.find((device) => device.id === id)?.vfio.failure;
      if (!isLost || failure === undefined) return [];
      return missingDevice({ id, socket: this.#guest.sockets.get(id) ?? "" }, failure, migration);
    });
  }

  #trackerOf(device: ControlledDevice): GuestTracker {
    return trackerFor(device, this.#options.trackers);
  }

  async #readShares(which: (tracking: DeviceTracking) => boolean): Promise<void> {
    const { afterRead } = this.#options.hooks ?? {};
    this.#shares.push(...(await Promise.all(this.#tracking.filter(which).map((each) => each.finish(afterRead)))));
  }

  /** What of the devices' states is worth it, until the machine is paused. */
  async #sendStates(states: PrecopiedStates, paused: AbortSignal): Promise<void> {
    // What there is at first, whatever its size: a device that refuses it does so while the guest runs.
    for (let more = true; more && !paused.aborted; ) more = !(await states.send());
    while (!paused.aborted) {
      await pause(PRECOPY_EVERY_MS, paused);
      if (paused.aborted || (await states.expectedBytes()) < WORTH_SENDING_BYTES) continue;
      await states.send();
    }
  }

  /** QEMU has sent the rest. */
  async #completed(began: number): Promise<void> {
    const { signal } = this.#context;
    const { ram } = await this.#watch.until(["completed"], { limitMs: SWITCHOVER_MS, signal });
    this.#reportRound("stop-copy", ram, performance.now() - began);
  }

  async #guestState(opened: ConfigSpace): Promise<GuestState> {
    await using space = opened;
    const { qemu, devices, running } = this.#guest;
    const reading = devices.map(({ id }, i) =>
      readPciState(qemu, space, space.addresses[i]).then((state) => [id, state] as const),
    );
    return { running, devices: new Map(await settled(reading)) };
  }

  /** What QEMU's main loop has yet to take from a device's eventfd, it takes before. */
  async #endIntx({ devices }: GuestState): Promise<void> {
    const { qemu } = this.#guest;
    const theirs = [...devices.values()].filter(usesIntx);
    if (theirs.length === 0) return;
    for (let turn = 0; turn < TURNS_FOR_EVENTFDS; turn++) await qemu.status();
    for (const state of theirs) await endIntx(qemu, state);
  }

  async #restoreSettings(): Promise<string[]> {
    const settings = this.#settings;
    this.#settings = undefined;
    return (await settings?.restore()) ?? [];
  }

  /** For live feeds and views; QEMU keeps its rounds to itself, so all of the pre-copy is one. */
  #tellProgress({ ram, "expected-downtime": expectedDowntimeMs }: MigrationInfo, sinceMs: number): void {
    if (ram === undefined) return;
    publish({
      type: "progress",
      atMs: this.#context.clock.elapsedMs,
      round: 0,
      sentBytes: ram.transferred,
      remainingBytes: ram.remaining,
      bytesPerSecond: (ram.transferred * 1000) / Math.max(sinceMs, 1),
      expectedDowntimeMs: expectedDowntimeMs ?? null,
      dirtyBytesPerSecond: {},
    });
  }

  /** The one read of the devices' logs; where nothing was read, none. */
  #tellShares(): void {
    const read = this.#shares.flatMap(({ device, pages, ms }) =>
      pages === null ? [] : [[device, { reported: pages, exclusive: 0, readMs: ms, heat: [] }] as const],
    );
    if (read.length === 0) return;
    const atMs = this.#context.clock.elapsedMs;
    const elapsedMs = atMs - this.#trackedSinceMs;
    publish({ type: "read", atMs, round: 1, elapsedMs, owners: Object.fromEntries(read) });
  }

  /** QEMU's own rounds are its affair: what it moved before the pause and in it is told as two. */
  #reportRound(phase: "pre-copy" | "stop-copy", ram: MigrationInfo["ram"], ms: number): void {
    if (ram === undefined) return;
    const before = phase === "pre-copy" ? undefined : this.#precopied;
    const since = (name: "normal" | "duplicate" | "transferred") => (ram[name] ?? 0) - (before?.[name] ?? 0);
    const shares = phase === "pre-copy" ? [] : this.#shares;
    this.#context.report.round({
      round: phase === "pre-copy" ? 0 : 1,
      phase,
      pages: since("normal") + since("duplicate"),
      zeroPages: since("duplicate"),
      bytes: since("transferred"),
      ms,
      remaining: phase === "pre-copy" ? ram.remaining : 0,
      byDevice: Object.fromEntries(
        shares.map(({ device, pagesRewritten, ms: readMs }) => [
          device,
          { reported: pagesRewritten, exclusive: 0, readMs },
        ]),
      ),
    });
  }
}
