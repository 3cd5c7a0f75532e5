import { DirtmapError, explain, UsageError } from "../errors.js";
import { shapeDifferences } from "../host/shape.js";
import { newMigrationId } from "../migration/journal.js";
import { DestinationGuest } from "./destination-guest.js";
import { pairsOf } from "./guest.js";
import type { DeviceShare, GuestTracker } from "./guest-tracking.js";
import type { PciState } from "./pci-state.js";
import type { EventStream } from "./qmp/event-stream.js";
import type { MigrationInfo, Qemu } from "./qmp/qemu.js";
import { SourceGuest, type SourceHooks } from "./source-guest.js";

/** What is asked of a move between two QEMUs of one machine. */
export interface MoveGuestOptions {
  /** The QEMU whose guest runs. It stays the caller's, as the other does. */
  readonly source: Qemu;
  /** One that was started with the same devices, `-S` and `-incoming defer`. */
  readonly destination: Qemu;
  /** Where the destination's QEMU listens for the source's: `unix:PATH`, or `tcp:HOST:PORT`. */
  readonly uri: string;
  /** By the devices' names. */
  readonly trackers?: Readonly<Record<string, GuestTracker>>;
  /** Streams of QEMU's multifd; 0: it is off. Default: 0. */
  readonly multifdChannels?: number;
  /** Default: QEMU's setting. */
  readonly downtimeLimitMs?: number;
  /** Bytes per second. Default: QEMU's setting. */
  readonly bandwidth?: number;
  /** The source's QEMU stays, paused, after the guest runs at the destination. Default: it is told to quit. */
  readonly keepSource?: boolean;
  /** Cancels, until the guest is given up. */
  readonly signal?: AbortSignal;
  readonly onInfo?: (info: MigrationInfo) => void;
  readonly hooks?: MoveHooks;
}

/** Where tests reach in. */
export interface MoveHooks extends SourceHooks {
  beforeStep?(step: MoveStep): void | Promise<void>;
  /** What is restored of the PCI states. */
  pciStates?(states: ReadonlyMap<string, PciState>): ReadonlyMap<string, PciState>;
}

/** What is done, in this order. */
export type MoveStep =
  | "preparing"
  | "pre-copy"
  | "stopping-devices"
  | "switching-over"
  | "loading"
  | "restoring-pci"
  | "handing-over";

/** A step, and how long it took. */
export interface TimedStep {
  readonly step: MoveStep;
  readonly ms: number;
}

/** How a move went. */
export interface MoveReport {
  readonly migration: string;
  /** `indeterminate`: the guest was given up, and may or may not run at the destination. It is paused at the source. */
  readonly result: "completed" | "failed" | "cancelled" | "indeterminate";
  /** The guest's vCPUs stood still, by QEMU's own clock: from its STOP to the other's RESUME. Null: they did not, or still do. */
  readonly pauseMs: number | null;
  readonly steps: readonly TimedStep[];
  readonly devices: readonly DeviceShare[];
  /** Bytes of QEMU's stream. */
  readonly ramBytes: number | null;
  /** Bytes of the devices' states. */
  readonly deviceBytes: number;
  readonly warnings: readonly string[];
  readonly error?: Error;
}

/**
 * Moves a guest together with its vfio-user devices from one QEMU to another, and tells how it went. The guest runs in exactly one
 * of them in the end, or, where the result is `indeterminate`, stands paused in the source's.
 * @throws UsageError, DirtmapError where nothing was begun: what can't be moved, or is in the wrong state
 */
export async function moveGuest(options: MoveGuestOptions): Promise<MoveReport> {
  const { source: from, destination: to, trackers } = options;
  const { hooks } = options;
  await using source = await SourceGuest.open(from, {
    ...(trackers === undefined ? {} : { trackers }),
    ...(hooks === undefined ? {} : { hooks }),
  });
  await using destination = await DestinationGuest.open(to);
  await checkPairs(source, destination);
  return new Move(options, source, destination).run();
}

/** @throws UsageError `DEVICES_DIFFER` */
async function checkPairs(source: SourceGuest, destination: DestinationGuest): Promise<void> {
  pairsOf(source.guest.devices, destination.guest.devices);
  const shapes = async ({ devices }: SourceGuest | DestinationGuest) => ({
    memory: [],
    vcpus: 0,
    devices: await Promise.all(devices.map(async ({ id, vfio }) => ({ id, shape: await vfio.shape() }))),
  });
  const [first, ...others] = shapeDifferences(await shapes(source), await shapes(destination));
  if (first === undefined) return;
  throw new UsageError(`the guests' devices differ: ${first}`, {
    code: "DEVICES_DIFFER",
    remedy: "serve the same models with the same options on both sides",
    further: others,
  });
}

class Move {
  readonly #options: MoveGuestOptions;
  readonly #source: SourceGuest;
  readonly #destination: DestinationGuest;
  readonly #signal: AbortSignal;
  readonly #migration = newMigrationId();
  readonly #steps: TimedStep[] = [];
  readonly #warnings: string[] = [];
  readonly #ran: EventStream;
  readonly #resumed: EventStream;
  #current: { step: MoveStep; since: number } | undefined;
  #shares: DeviceShare[] = [];
  #ramBytes: number | null = null;
  #deviceBytes = 0;

  constructor(options: MoveGuestOptions, source: SourceGuest, destination: DestinationGuest) {
    this.#options = options;
    this.#source = source;
    this.#destination = destination;
    this.#signal = options.signal ?? new AbortController().signal;
    this.#ran = source.qemu.events();
    this.#resumed = destination.qemu.events();
  }

  async run(): Promise<MoveReport> {
    using _ran = this.#ran;
    using _resumed = this.#resumed;
    const { running } = await this.#source.qemu.status();
    try {
      await this.#move();
      await this.#enter("handing-over");
      await this.#destination.announce("committing", this.#migration);
      this.#signal.throwIfAborted();
      await this.#source.announce("committing", this.#migration);
    } catch (error) {
      this.#endStep();
      // The destination first: from then on nothing there can run.
      this.#warnings.push(...(await this.#destination.discard()), ...(await this.#source.takeBack()));
      const cancelled = this.#options.signal?.aborted === true;
      const why = error instanceof Error ? error : new DirtmapError(String(error), { code: "INTERNAL" });
      return this.#report(cancelled ? "cancelled" : "failed", null, why);
    }
    try {
      await this.#destination.run({ vcpus: running });
    } catch (error) {
      const why = new DirtmapError(`the guest was given up, and it is not known whether it runs: ${explain(error)}`, {
        code: "GO_NOT_CONFIRMED",
        remedy: "look at the destination's QEMU; if the guest does not run there, let the devices run here, and `cont`",
        cause: error,
      });
      return this.#report("indeterminate", null, why);
    }
    await this.#source.announce("gone", this.#migration).catch((error: unknown) => {
      this.#warnings.push(explain(error));
    });
    this.#endStep();
    const pauseMs = running ? await this.#pauseMs() : null;
    this.#warnings.push(...(await this.#destination.settled()));
    this.#warnings.push(...(await this.#source.letGo({ quit: this.#options.keepSource !== true })));
    return this.#report("completed", pauseMs);
  }

  /** Up to the moment at which the guest could run at the destination. */
  async #move(): Promise<void> {
    const { uri, onInfo } = this.#options;
    const source = this.#source;
    const destination = this.#destination;
    const settings = this.#settings;
    await this.#enter("preparing");
    const address = await destination.listen(uri, settings);
    await source.prepare(settings, async (chunk) => {
      this.#deviceBytes += chunk.data.byteLength;
      await destination.load(chunk);
    });
    await this.#enter("pre-copy");
    await source.precopy(address, { signal: this.#signal, onInfo });
    await this.#enter("stopping-devices");
    this.#shares = await source.stop();
    const states = await source.pciStates();
    await this.#enter("switching-over");
    const [{ ram }] = await Promise.all([source.switchOver(this.#signal), source.sendStates(this.#signal)]);
    this.#ramBytes = ram?.transferred ?? null;
    await this.#enter("loading");
    await destination.loaded(this.#signal);
    await this.#enter("restoring-pci");
    await destination.restorePci(this.#options.hooks?.pciStates?.(states) ?? states);
  }

  get #settings() {
    const { multifdChannels = 0, downtimeLimitMs, bandwidth } = this.#options;
    return {
      capabilities: multifdChannels > 0 ? { multifd: true } : {},
      parameters: {
        ...(multifdChannels > 0 ? { "multifd-channels": multifdChannels } : {}),
        ...(downtimeLimitMs === undefined ? {} : { "downtime-limit": downtimeLimitMs }),
        ...(bandwidth === undefined ? {} : { "max-bandwidth": bandwidth }),
      },
    };
  }

  async #enter(step: MoveStep): Promise<void> {
    this.#signal.throwIfAborted();
    this.#endStep();
    this.#current = { step, since: performance.now() };
    await this.#options.hooks?.beforeStep?.(step);
  }

  #endStep(): void {
    if (this.#current === undefined) return;
    const { step, since } = this.#current;
    this.#steps.push({ step, ms: performance.now() - since });
    this.#current = undefined;
  }

  /** Both events have come by now, or are about to. */
  async #pauseMs(): Promise<number> {
    const [stopped, resumed] = await Promise.all([timeOf(this.#ran, "STOP"), timeOf(this.#resumed, "RESUME")]);
    return resumed - stopped;
  }

  #report(result: MoveReport["result"], pauseMs: number | null, error?: Error): MoveReport {
    return {
      migration: this.#migration,
      result,
      pauseMs,
      steps: this.#steps,
      devices: this.#shares,
      ramBytes: this.#ramBytes,
      deviceBytes: this.#deviceBytes,
      warnings: this.#warnings,
      ...(error === undefined ? {} : { error }),
    };
  }
}

async function timeOf(events: EventStream, name: string): Promise<number> {
  for await (const event of events) if (event.name === name) return event.at;
  throw new DirtmapError(`QEMU did not tell of ${name}`, { code: "QMP_PROTOCOL" });
}
