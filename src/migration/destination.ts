import { DirtmapError, explain } from "../errors.js";
import {
  type MachineDescription,
  type NamedFiles,
  type PassthroughDescription,
  withoutPaths,
} from "../host/description.js";
import type { Machine } from "../host/host.js";
import { type MachineShape, machineShape, shapeDifferences } from "../host/shape.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import { PhaseClock } from "./clock.js";
import type { PageReceiver } from "./data-plane.js";
import { DEFAULT_TIMEOUTS, type Timeouts, within } from "./deadline.js";
import type { Audit } from "./destination-report.js";
import { DeviceStateReceiver } from "./device-state.js";
import { type DestinationEvent, type DestinationState, destinationStep } from "./handover.js";
import { type DestinationRecord, Journal } from "./journal.js";
import { defaultJournalDirectory } from "./journal-directory.js";
import { announceHandover, type MigratableDevice, migratableDevices, runAll } from "./lock-step.js";
import { type ControlLink, Peer, UNTIL_LOST } from "./peer.js";
import { RoundSequence } from "./rounds.js";
import { SOFTWARE } from "./software.js";
import { problemOf } from "./source-handover.js";
import { type ControlMessageOf, PROTOCOL_VERSION } from "./stream/messages.js";
import { digestMessages, rootDigest } from "./verification.js";

/** A source that has connected. */
export interface AcceptedSource {
  /** For messages and the journal. */
  readonly from: string;
  readonly control: ControlLink;
  /** Is told the migration's id as soon as the source has said it. */
  announce?(migration: string): void;
  /** Takes the page channels of this source from now on; they must show the token. */
  openReceiver(args: { memory: GuestMemory; channels: number }): Promise<{ receiver: PageReceiver; token: string }>;
}

/** What receiving a machine needs. */
export interface ReceiveOptions {
  readonly source: AcceptedSource;
  /**
   * Builds the emulated machine that is described, with its vCPUs paused and its devices doing nothing. Absent: such
   * machines are refused.
   * @param description without paths: what the source names is not for a destination to open
   * @param named the files that the source has, by device, for a destination that knows them as well
   * @throws DirtmapError why it can't be built here: the source is refused with it
   */
  readonly createMachine?: (description: MachineDescription, named: NamedFiles) => Promise<Machine>;
  /** The same for a machine of passed-through devices. Absent: such machines are refused. */
  readonly createPassthroughMachine?: (description: PassthroughDescription) => Promise<Machine>;
  /** Checks the machine after the workload has run on; it may pause it for that, and must let it run again. */
  readonly audit?: (machine: Machine) => Promise<Audit>;
  /** Stops receiving; heeded only before GO. */
  readonly signal?: AbortSignal;
  readonly journalDirectory?: string;
  readonly timeouts?: Partial<Timeouts>;
}

/** How it ended. `refused` and `discarded`: the machine never ran here and never will. */
export type ReceiveResult =
  | { readonly outcome: "running"; readonly migration: string; readonly machine: Machine; readonly warning?: Error }
  /** GO came, and something failed while devices or vCPUs were being started. */
  | { readonly outcome: "run-failed"; readonly migration: string; readonly machine: Machine; readonly error: Error }
  | { readonly outcome: "refused" | "discarded"; readonly migration: string | null; readonly error: Error };

/**
 * Receives one machine from a source that has connected. Where it runs in the end, it is the caller's; otherwise it is
 * discarded, and a record says so before the source is told.
 *
 * Point of no return: `running` is recorded when GO has come, and then the machine runs. Never without GO.
 */
export async function receive(options: ReceiveOptions): Promise<ReceiveResult> {
  return await new Destination(options).run();
}

class Destination {
  readonly #options: ReceiveOptions;
  readonly #timeouts: Timeouts;
  readonly #peer: Peer;
  readonly #clock = new PhaseClock();
  #signal: AbortSignal;

  #state: DestinationState = "loading";
  #hello: ControlMessageOf<"HELLO"> | undefined;
  #journal: Journal<DestinationRecord> | undefined;
  #machine: Machine | undefined;
  #receiver: PageReceiver | undefined;
  #devices: MigratableDevice[] = [];
  #rootDigest = "";
  #resumeMs = 0;
  /** `running` is on disk, or may be. */
  #runningRecorded = false;

  constructor(options: ReceiveOptions) {
    this.#options = options;
    this.#timeouts = { ...DEFAULT_TIMEOUTS, ...options.timeouts };
    this.#peer = new Peer(options.source.control);
    this.#signal = AbortSignal.any([this.#peer.lost, ...(options.signal === undefined ? [] : [options.signal])]);
  }

  async run(): Promise<ReceiveResult> {
    try {
      const refusal = await this.#greet();
      if (refusal !== null) return { outcome: "refused", migration: this.#migration, error: refusal };
      try {
        const streams = await this.#toResuming();
        await this.#load(streams);
        await this.#ready();
        await this.#waitForGo();
      } catch (error) {
        return await this.#discard(error as Error);
      }
      return await this.#run();
    } finally {
      // What could not be closed is the other side's no more; the outcome stands.
      await Promise.allSettled([this.#receiver?.[Symbol.asyncDispose](), this.#peer.close()]);
    }
  }

  /** Checks who is there and what is to be received; builds the machine. Null: accepted. */
  async #greet(): Promise<Error | null> {
    const { source, journalDirectory } = this.#options;
    this.#clock.enter("connecting");
    let refusal: unknown;
    try {
      const hello = await this.#peer.expect(["HELLO"], this.#timeouts.peerMs, this.#signal);
      this.#hello = hello;
      source.announce?.(hello.migration);
      if (hello.protocol !== PROTOCOL_VERSION) {
        throw new DirtmapError(
          `it speaks protocol ${hello.protocol} (${hello.software}), and this is ${PROTOCOL_VERSION} (${SOFTWARE})`,
          { code: "INCOMPATIBLE", remedy: "use the same version on both sides" },
        );
      }
      this.#machine = await this.#create(hello.machine);
      this.#devices = await migratableDevices(this.#machine);
      checkShape(hello.shape, await machineShape(this.#machine));
      this.#journal = Journal.destination(journalDirectory ?? defaultJournalDirectory(), hello.migration, source.from);
      const { receiver, token } = await source.openReceiver({ memory: this.#machine.memory, channels: hello.channels });
      this.#receiver = receiver;
      const broken = new AbortController();
      receiver.failed.catch((error: unknown) => broken.abort(error));
      this.#signal = AbortSignal.any([this.#signal, broken.signal]);
      await this.#peer.send({ type: "ACCEPT", software: SOFTWARE, token });
      return null;
    } catch (error) {
      refusal = error;
    }
    await this.#peer.send({ type: "REFUSE", ...problemOf(toldToSource(refusal)) }).catch(() => {});
    this.#record("discarded");
    await this.#disposeMachine();
    return refusal as Error;
  }

  async #create(description: MachineDescription | PassthroughDescription): Promise<Machine> {
    const { createMachine, createPassthroughMachine } = this.#options;
    const passthrough = "kind" in description;
    if (passthrough && createPassthroughMachine !== undefined) return createPassthroughMachine(description);
    if (!passthrough && createMachine !== undefined) {
      const { description: bare, named } = withoutPaths(description);
      return createMachine(bare, named);
    }
    throw new DirtmapError(`no machines of ${passthrough ? "passed-through" : "emulated"} devices are taken here`, {
      code: "INCOMPATIBLE",
      remedy: "migrate to a destination on a host of the same kind",
    });
  }

  /** All devices to RESUMING. */
  async #toResuming(): Promise<Map<string, DeviceStateReceiver>> {
    const streams = new Map<string, DeviceStateReceiver>();
    for (const { id, vfio } of this.#devices) {
      streams.set(id, await within(this.#timeouts.deviceMs, `${id} in RESUMING`, DeviceStateReceiver.open(vfio)));
    }
    return streams;
  }

  /** Takes all that comes, until PREPARE. Pages arrive over the channels meanwhile. */
  async #load(streams: ReadonlyMap<string, DeviceStateReceiver>): Promise<void> {
    const machine = opened(this.#machine);
    this.#clock.enter("pre-copy");
    let vcpuState: Uint8Array | undefined;
    const rounds = new RoundSequence();
    const receiver = opened(this.#receiver);
    const { peerMs } = this.#timeouts;
    for (;;) {
      // A round may take any time; that the source is alive meanwhile is the connection's to watch.
      const message = await this.#peer.expect(
        ["ROUND_BEGIN", "ROUND_END", "DEVICE_STATE", "CHECK_STATE", "VCPU_STATE", "PREPARE"],
        UNTIL_LOST,
        this.#signal,
      );
      if (message.type === "DEVICE_STATE") {
        const stream = streams.get(message.device);
        if (stream === undefined) {
          throw new DirtmapError(`there is no device '${message.device}'`, { code: "BAD_DEVICE_STATE" });
        }
        await within(
          this.#timeouts.deviceMs,
          `${message.device} taking its state`,
          stream.write(message),
          this.#signal,
        );
      } else if (message.type === "CHECK_STATE") {
        await this.#peer.send({ type: "STATE_TAKEN", round: message.round });
      } else if (message.type === "VCPU_STATE") {
        if (vcpuState !== undefined) {
          throw new DirtmapError("the vCPUs' state came twice", { code: "BAD_VCPU_STATE" });
        }
        vcpuState = message.data;
      } else if (message.type === "ROUND_BEGIN") {
        rounds.begin(message);
        await within(peerMs, "the channels in a round", receiver.beginRound(message.round), this.#signal);
      } else if (message.type === "ROUND_END") {
        rounds.end(message);
        const { round, pages, zeroPages, bytes } = message;
        const ending = receiver.endRound(round, { pages, zeroPages, bytes });
        await within(peerMs, "the channels' counts of a round", ending, this.#signal);
      } else {
        rounds.finish(message.round);
        await within(peerMs, "the channels at rest", receiver.seal(), this.#signal);
        break;
      }
    }
    this.#clock.enter("stop-copy");
    if (vcpuState === undefined) throw new DirtmapError("no state of the vCPUs came", { code: "BAD_VCPU_STATE" });
    const { deviceMs } = this.#timeouts;
    const loading = [
      ...[...streams.values()].map((stream) =>
        within(deviceMs, `${stream.id} with its state loaded`, stream.finish(), this.#signal),
      ),
      within(deviceMs, "the vCPUs with their state loaded", machine.vcpus.loadState(vcpuState), this.#signal),
    ];
    // Hashed here while device threads load. All pages have come and no more may, so the table is complete.
    this.#rootDigest = rootDigest(receiver.digests());
    await Promise.all(loading);
  }

  /** All is here and verified: says so, with the hash of what memory holds now. */
  async #ready(): Promise<void> {
    this.#signal.throwIfAborted();
    // A GO that is here already was said of a machine that was not.
    this.#peer.expectNothingBefore("READY");
    await this.#happened("loaded");
    if (this.#hello?.verify === "before") await this.#sendDigests();
  }

  /** Not longer than agreed, by this side's clock: a GO that was held up must not start a machine long given up for lost. */
  async #waitForGo(): Promise<void> {
    this.#clock.enter("handover");
    const until = performance.now() + this.#timeouts.goMs;
    await this.#peer.expect(["GO"], this.#timeouts.goMs, this.#signal);
    if (performance.now() > until) {
      throw new DirtmapError(`GO came later than ${this.#timeouts.goMs} ms after READY`, { code: "TIMED_OUT" });
    }
  }

  /** GO has come. */
  async #run(): Promise<ReceiveResult> {
    const machine = opened(this.#machine);
    const migration = this.#migration ?? "";
    try {
      // Before `running` is recorded: from the record on, no server may reset a device whose controlling side has died.
      const told = { migration, deviceMs: this.#timeouts.deviceMs };
      await announceHandover(this.#devices, "committing", told);
      await this.#happened("go");
    } catch (error) {
      if (this.#state !== "running") return await this.#discard(error as Error);
      await this.#stopMachine();
      await this.#peer.send({ type: "RUN_FAILED", ...problemOf(error) }).catch(() => {});
      return { outcome: "run-failed", migration, machine, error: error as Error };
    }
    this.#clock.enter("running-at-destination");
    try {
      if (this.#hello?.verify !== "before") await this.#sendDigests();
      const runAfterMs = this.#hello?.runAfterMs ?? 0;
      // No pages come any more: the channels may end.
      await new Promise((resolve) => setTimeout(resolve, runAfterMs));
      this.#clock.enter("auditing");
      const audit = (await this.#options.audit?.(machine)) ?? { stamps: null, written: {} };
      await this.#peer.send({ type: "REPORT", report: { ...audit } });
      this.#clock.end("completed");
    } catch (error) {
      // The machine runs; only the source does not learn all about it.
      this.#clock.end("completed", explain(error));
      return { outcome: "running", migration, machine, warning: error as Error };
    }
    return { outcome: "running", migration, machine };
  }

  async #sendDigests(): Promise<void> {
    for (const message of digestMessages(opened(this.#receiver).digests())) await this.#peer.send(message);
  }

  async #discard(error: Error): Promise<ReceiveResult> {
    try {
      await this.#happened("failed", error);
    } finally {
      await this.#disposeMachine();
    }
    this.#clock.end("failed", explain(error));
    return { outcome: "discarded", migration: this.#migration, error };
  }

  /** Carries out what {@link destinationStep} says. */
  async #happened(event: DestinationEvent, error?: Error): Promise<void> {
    const { state, effects } = destinationStep(this.#state, event);
    this.#state = state;
    for (const effect of effects) {
      if (effect.do === "run") {
        const since = performance.now();
        await this.#startMachine();
        this.#resumeMs = performance.now() - since;
      } else if (effect.do === "send") {
        await this.#say(effect.message, error);
      } else if (state === "starting") {
        this.#runningRecorded = true;
        opened(this.#journal).record(effect.state);
        await this.#happened("recorded");
      } else {
        this.#record(effect.state);
      }
    }
  }

  async #startMachine(): Promise<void> {
    await runAll(this.#devices, this.#timeouts.deviceMs);
    await within(this.#timeouts.deviceMs, "the vCPUs running", opened(this.#machine).vcpus.resume());
  }

  /** What was started before something failed does not go on: the operator may let the source run. */
  async #stopMachine(): Promise<void> {
    const { deviceMs } = this.#timeouts;
    const { vcpus } = opened(this.#machine);
    await Promise.allSettled([
      within(deviceMs, "the pause of the vCPUs", vcpus.pause()),
      ...this.#devices.map(({ id, vfio }) => within(deviceMs, `${id} stopped`, vfio.setState("STOP"))),
    ]);
  }

  async #say(message: "READY" | "RUNNING" | "ABORT", error?: Error): Promise<void> {
    if (message === "READY") {
      await this.#peer.send({ type: "READY", rootDigest: this.#rootDigest });
    } else if (message === "RUNNING") {
      // It runs, whether the source hears of it or not.
      this.#peer.send({ type: "RUNNING", resumeMs: this.#resumeMs }).catch(() => {});
    } else {
      this.#peer.send({ type: "ABORT", ...problemOf(error) }).catch(() => {});
    }
  }

  /**
   * Records `ready` or `discarded`. Both mean "never ran", as what is on disk does, so a failure changes nothing; unless
   * `running` may be there: then nothing may be said, and the source has to take this side's silence for what it is.
   */
  #record(state: DestinationRecord): void {
    try {
      this.#journal?.record(state);
    } catch (error) {
      if (this.#runningRecorded) throw error;
    }
  }

  async #disposeMachine(): Promise<void> {
    await Promise.allSettled([this.#machine?.[Symbol.asyncDispose]()]);
  }

  get #migration(): string | null {
    return this.#hello?.migration ?? null;
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

/** @throws DirtmapError `OTHER_HARDWARE` where the guest would find another machine here */
function checkShape(source: MachineShape, destination: MachineShape): void {
  const [first, ...others] = shapeDifferences(source, destination);
  if (first === undefined) return;
  const more = others.length === 0 ? "" : ` (and ${others.length} more difference${others.length === 1 ? "" : "s"})`;
  throw new DirtmapError(`${first}${more}`, {
    code: "OTHER_HARDWARE",
    attempted: "compare the destination's machine with the source's",
    remedy: "give the destination what the source has",
  });
}

function opened<T>(part: T | undefined): T {
  if (part === undefined) throw new Error("used before it was opened");
  return part;
}
