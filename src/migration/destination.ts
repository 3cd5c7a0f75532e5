import { DirtmapError, explain } from "../errors.js";
import type { Machine } from "../host/host.js";
import { checkHello, checkShape } from "./agreement.js";
import { PhaseClock } from "./clock.js";
import { DEFAULT_TIMEOUTS, type Timeouts, within } from "./deadline.js";
import { DestinationDevices } from "./destination-devices.js";
import { DestinationHandover } from "./destination-handover.js";
import type { Audit } from "./destination-report.js";
import { type DestinationRecord, Journal } from "./journal.js";
import { defaultJournalDirectory } from "./journal-directory.js";
import { announceHandover, type MigratableDevice, migratableDevices } from "./lock-step.js";
import type { ArrivingMachine, MemoryArrival, MemoryDestination } from "./memory-mover.js";
import { type BuildOptions, PageDestination, type PageDoor } from "./page-arrival.js";
import { type ControlLink, Peer, UNTIL_LOST } from "./peer.js";
import { SOFTWARE } from "./software.js";
import { problemOf } from "./source-handover.js";
import type { ControlMessageOf, MoverKind } from "./stream/messages.js";

/** A source's control connection. */
export interface ControlSource {
  /** For messages and the journal. */
  readonly from: string;
  readonly control: ControlLink;
  /** Is told the migration's id as soon as the source has said it. */
  announce?(migration: string): void;
}

/** A source that has connected. */
export interface AcceptedSource extends ControlSource, PageDoor {}

/** What receiving a machine needs, whatever moves the memory. */
export interface TakeOverOptions<M> {
  /** Checks the machine after the workload has run on; it may pause it for that, and must let it run again. */
  readonly audit?: (machine: M) => Promise<Audit>;
  /** Stops receiving; heeded only before GO. */
  readonly signal?: AbortSignal;
  readonly journalDirectory?: string;
  readonly timeouts?: Partial<Timeouts>;
}

/** The options of `receive`. */
export interface ReceiveOptions extends TakeOverOptions<Machine>, BuildOptions {
  readonly source: AcceptedSource;
}

/** The end of a reception. With `refused` and `discarded`, the machine never ran here and never will. */
export type ReceiveResult<M = Machine> =
  | { readonly outcome: "running"; readonly migration: string; readonly machine: M; readonly warning?: Error }
  /** GO came, and something failed while devices or vCPUs were being started. */
  | { readonly outcome: "run-failed"; readonly migration: string; readonly machine: M; readonly error: Error }
  | { readonly outcome: "refused" | "discarded"; readonly migration: string | null; readonly error: Error };

/**
 * Receives one machine from a source that has connected. Where it runs in the end, it is the caller's; otherwise it is
 * discarded, and a record says so before the source is told.
 *
 * Point of no return: `running` is recorded when GO has come, and then the machine runs. Never without GO.
 */
export async function receive(options: ReceiveOptions): Promise<ReceiveResult> {
  const { source } = options;
  return await receiveBy((context) => new PageDestination(options, source, context), source, options);
}

/** What a destination gives its side of a mover. `signal` fires when nothing more is to be received. */
export interface ArrivalContext {
  readonly timeouts: Timeouts;
  readonly signal: AbortSignal;
}

/** {@link receive} for any mover of the memory. */
export async function receiveBy<M extends ArrivingMachine, Kind extends MoverKind>(
  memory: (context: ArrivalContext) => MemoryDestination<M, Kind>,
  source: ControlSource,
  options: TakeOverOptions<M> = {},
): Promise<ReceiveResult<M>> {
  const peer = new Peer(source.control);
  const signal = AbortSignal.any([peer.lost, ...(options.signal === undefined ? [] : [options.signal])]);
  const clock = new PhaseClock();
  const setting: Setting<M> = { options, timeouts: { ...DEFAULT_TIMEOUTS, ...options.timeouts }, clock, peer };
  /** Ends with the connection; the machine outlives it where it runs. */
  const opened: AsyncDisposable[] = [];
  try {
    clock.enter("connecting");
    const accepted = await accept(memory({ timeouts: setting.timeouts, signal }), source, setting, signal, opened);
    return "outcome" in accepted ? accepted : await new Arrival(setting, accepted).run();
  } finally {
    // What could not be closed is the other side's no more; the outcome stands.
    await Promise.allSettled([...opened.map((each) => each[Symbol.asyncDispose]()), peer.close()]);
  }
}

/** What all phases have in common. */
interface Setting<M> {
  readonly options: TakeOverOptions<M>;
  readonly timeouts: Timeouts;
  readonly clock: PhaseClock;
  readonly peer: Peer;
}

/** A source that was told ACCEPT. */
interface Accepted<M> {
  readonly hello: ControlMessageOf<"HELLO">;
  readonly machine: M;
  readonly migratable: readonly MigratableDevice[];
  readonly journal: Journal<DestinationRecord>;
  readonly arrival: MemoryArrival;
  /** Fires when the source is lost, memory can't arrive any more, or the operator has enough. */
  readonly signal: AbortSignal;
}

/** Checks who is there and what is to be received; builds the machine. */
async function accept<M extends ArrivingMachine, Kind extends MoverKind>(
  memory: MemoryDestination<M, Kind>,
  source: ControlSource,
  { options, timeouts, peer }: Setting<M>,
  signal: AbortSignal,
  opened: AsyncDisposable[],
): Promise<Accepted<M> | ReceiveResult<M>> {
  let migration: string | null = null;
  let machine: M | undefined;
  let journal: Journal<DestinationRecord> | undefined;
  try {
    const hello = await peer.expect(["HELLO"], timeouts.peerMs, signal);
    migration = hello.migration;
    source.announce?.(migration);
    const offer = checkHello(hello, memory.kind);
    machine = await memory.build(offer);
    const migratable = await migratableDevices(machine);
    checkShape(hello.shape, await memory.shape(machine));
    const directory = options.journalDirectory ?? defaultJournalDirectory();
    journal = Journal.destination(directory, migration, source.from);
    const { answer, arrival } = await memory.open(machine, offer);
    opened.push(arrival);
    const broken = new AbortController();
    arrival.failed.catch((error: unknown) => broken.abort(error));
    await peer.send({ type: "ACCEPT", software: SOFTWARE, mover: answer });
    return { hello, machine, migratable, journal, arrival, signal: AbortSignal.any([signal, broken.signal]) };
  } catch (error) {
    await peer.send({ type: "REFUSE", ...problemOf(toldToSource(error)) }).catch(() => {});
    try {
      journal?.record("discarded");
    } catch {
      // What is on disk, `loading`, says as much: the machine never ran here.
    }
    await Promise.allSettled([machine?.[Symbol.asyncDispose]()]);
    return { outcome: "refused", migration, error: error as Error };
  }
}

/** A machine on its way in. */
class Arrival<M extends ArrivingMachine> {
  readonly #setting: Setting<M>;
  readonly #accepted: Accepted<M>;

  constructor(setting: Setting<M>, accepted: Accepted<M>) {
    this.#setting = setting;
    this.#accepted = accepted;
  }

  async run(): Promise<ReceiveResult<M>> {
    const { timeouts, peer } = this.#setting;
    const { migratable, machine, journal, signal } = this.#accepted;
    const devices = new DestinationDevices(migratable, { timeouts, signal });
    const handover = new DestinationHandover({
      journal,
      peer,
      run: async () => {
        await devices.run();
        await within(timeouts.deviceMs, "the vCPUs running", machine.vcpus.resume());
      },
    });
    try {
      await devices.open();
      const taken = await this.#take(devices);
      const rootDigest = await this.#load(devices, taken);
      await this.#ready(handover, rootDigest);
      await this.#waitForGo();
    } catch (error) {
      return await this.#discard(handover, error as Error);
    }
    return await this.#run(handover, devices);
  }

  /** Takes all that comes, until PREPARE. Memory arrives meanwhile. Returns the guest's state, and what PREPARE says. */
  async #take(devices: DestinationDevices): Promise<{ state: Uint8Array; round: number | undefined }> {
    const { peer, clock } = this.#setting;
    const { arrival, signal } = this.#accepted;
    const { takeRound } = arrival;
    clock.enter("pre-copy");
    let state: Uint8Array | undefined;
    for (;;) {
      // A round may take any time; that the source is alive meanwhile is the connection's to watch.
      const message = await peer.expect(
        [
          ...(takeRound === null ? [] : (["ROUND_BEGIN", "ROUND_END"] as const)),
          "DEVICE_STATE",
          "CHECK_STATE",
          "VCPU_STATE",
          "PREPARE",
        ],
        UNTIL_LOST,
        signal,
      );
      if (message.type === "DEVICE_STATE") await devices.write(message);
      else if (message.type === "CHECK_STATE") await peer.send({ type: "STATE_TAKEN", round: message.round });
      else if (message.type === "VCPU_STATE") {
        if (state !== undefined) throw new DirtmapError("the vCPUs' state came twice", { code: "BAD_VCPU_STATE" });
        state = message.data;
      } else if (message.type === "PREPARE") {
        if (state === undefined) throw new DirtmapError("no state of the vCPUs came", { code: "BAD_VCPU_STATE" });
        return { state, round: message.round };
      } else await takeRound?.(message);
    }
  }

  /** Has the devices take their states over while the rest of memory arrives, then the guest. Returns READY's hash of memory. */
  async #load(
    devices: DestinationDevices,
    { state, round }: { state: Uint8Array; round: number | undefined },
  ): Promise<string | undefined> {
    const { arrival } = this.#accepted;
    const loading = devices.load();
    // What fails first is told, and ends the wait for the other.
    const failed = loading.then(() => new Promise<never>(() => {}));
    failed.catch(() => {});
    try {
      await Promise.race([arrival.arrived(round), failed]);
      this.#setting.clock.enter("stop-copy");
      const rootDigest = await arrival.load(state, loading);
      await loading;
      return rootDigest;
    } catch (error) {
      // No device is discarded in the middle of it.
      await Promise.allSettled([loading]);
      throw error;
    }
  }

  /** All is here and verified: says so, with the hash of what memory holds now. */
  async #ready(handover: DestinationHandover, rootDigest: string | undefined): Promise<void> {
    const { arrival, signal } = this.#accepted;
    signal.throwIfAborted();
    // A GO that is here already was said of a machine that was not.
    this.#setting.peer.expectNothingBefore("READY");
    await handover.ready(rootDigest);
    if (arrival.comparison?.when === "before") await this.#sendDigests();
  }

  /** Not longer than agreed, by this side's clock: a GO that was held up must not start a machine long given up for lost. */
  async #waitForGo(): Promise<void> {
    const { peer, clock, timeouts } = this.#setting;
    clock.enter("handover");
    const until = performance.now() + timeouts.goMs;
    await peer.expect(["GO"], timeouts.goMs, this.#accepted.signal);
    if (performance.now() > until) {
      throw new DirtmapError(`GO came later than ${timeouts.goMs} ms after READY`, { code: "TIMED_OUT" });
    }
  }

  /** GO has come. */
  async #run(handover: DestinationHandover, devices: DestinationDevices): Promise<ReceiveResult<M>> {
    const { peer, clock, timeouts } = this.#setting;
    const { hello, machine } = this.#accepted;
    const { migration } = hello;
    try {
      // Before `running` is recorded: from the record on, no server may reset a device whose controlling side has died.
      await announceHandover(devices.devices, "committing", { migration, deviceMs: timeouts.deviceMs });
      await handover.go();
    } catch (error) {
      if (handover.state !== "running") return await this.#discard(handover, error as Error);
      // What was started before something failed does not go on: the operator may let the source run.
      const pausing = within(timeouts.deviceMs, "the pause of the vCPUs", machine.vcpus.pause());
      await Promise.allSettled([pausing, devices.stop()]);
      await peer.send({ type: "RUN_FAILED", ...problemOf(error) }).catch(() => {});
      return { outcome: "run-failed", migration, machine, error: error as Error };
    }
    clock.enter("running-at-destination");
    try {
      await this.#prove();
      clock.end("completed");
    } catch (error) {
      // The machine runs; only the source does not learn all about it.
      clock.end("completed", explain(error));
      return { outcome: "running", migration, machine, warning: error as Error };
    }
    return { outcome: "running", migration, machine };
  }

  /** Sends what the source compares its memory with, and what is found once the workload has run on. */
  async #prove(): Promise<void> {
    const { options, peer, clock } = this.#setting;
    const { hello, machine, arrival } = this.#accepted;
    if (arrival.comparison?.when === "after") await this.#sendDigests();
    // No pages come any more: the channels may end.
    await new Promise((resolve) => setTimeout(resolve, hello.runAfterMs));
    clock.enter("auditing");
    const audit = (await options.audit?.(machine)) ?? { stamps: null, written: {} };
    await peer.send({ type: "REPORT", report: { ...audit } });
  }

  async #sendDigests(): Promise<void> {
    for (const message of this.#accepted.arrival.comparison?.messages() ?? []) await this.#setting.peer.send(message);
  }

  async #discard(handover: DestinationHandover, error: Error): Promise<ReceiveResult<M>> {
    const { hello, machine } = this.#accepted;
    try {
      await handover.fail(error);
    } finally {
      await Promise.allSettled([machine[Symbol.asyncDispose]()]);
    }
    this.#setting.clock.end("failed", explain(error));
    return { outcome: "discarded", migration: hello.migration, error };
  }
}

/** A refusal without what is this machine's own affair: which files and folders there are. Its operator is told all of it. */
function toldToSource(refusal: unknown): unknown {
  const { code } = refusal as { code?: unknown };
  if (refusal instanceof DirtmapError && code !== "JOURNAL") return refusal;
  const what = code === "JOURNAL" ? "keep a record of the migration" : "build the machine";
  return new DirtmapError(`the destination can't ${what}`, {
    code: code === "JOURNAL" ? "JOURNAL" : "INTERNAL",
    remedy: "see what the destination itself says",
  });
}
