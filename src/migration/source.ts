import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { DEFAULTS } from "../defaults.js";
import { DirtmapError, explain, UsageError } from "../errors.js";
import type { MachineDescription, PassthroughDescription } from "../host/description.js";
import type { Machine } from "../host/host.js";
import { machineShape } from "../host/shape.js";
import { PAGE_SIZE } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import type { DeviceCapabilities } from "../tracking/capabilities.js";
import { type Policy, policyName, type TrackingDesign } from "../tracking/choice.js";
import { openDesign } from "../tracking/designs.js";
import type { DirtyRead, DirtySource } from "../tracking/dirty-source.js";
import { chooseTrackers } from "../tracking/policy.js";
import { probeMachine } from "../tracking/probe.js";
import { type Suspension, suspendDevices } from "../tracking/suspension.js";
import { PhaseClock, round as rounded } from "./clock.js";
import { type Conditions, doesNotConverge, fixedDowntime, judge, type RoundFacts } from "./convergence.js";
import type { PageSender } from "./data-plane.js";
import { DEFAULT_TIMEOUTS, type Timeouts, within } from "./deadline.js";
import { type Decision, DecisionListener, decisionCommand, decisionSocket } from "./decision.js";
import { parseDestinationReport } from "./destination-report.js";
import { DeviceError } from "./device-error.js";
import { checkStateSize, DeviceStateSender } from "./device-state.js";
import { type MigrationPhase, publish, publishRead, type ReadBounds } from "./events.js";
import { Journal, newMigrationId, type SourceRecord } from "./journal.js";
import { defaultJournalDirectory } from "./journal-directory.js";
import {
  announceHandover,
  type MigratableDevice,
  migratableDevices,
  startPrecopy,
  stopAll,
  takeDevicesBack,
} from "./lock-step.js";
import { type ControlLink, Peer, PeerAborted, UNTIL_LOST } from "./peer.js";
import { ProgressMeter } from "./progress.js";
import {
  type DestinationReport,
  GIVEN_UP,
  type MemoryComparison,
  type MigrationReport,
  type MigrationResult,
  type PredictedOutcome,
  type RoundReport,
} from "./report.js";
import { SOFTWARE } from "./software.js";
import { problemOf, SourceHandover } from "./source-handover.js";
import { MAX_MESSAGE_DATA, PROTOCOL_VERSION } from "./stream/messages.js";
import { compareDigests, DigestTable, rootDigest } from "./verification.js";

/** The way to a destination: one control connection, and channels for pages. */
export interface SourceTransport {
  /** For messages and the journal: `tls://host:port`. */
  readonly destination: string;
  /** @throws UsageError where nobody can be reached there, or certificates don't fit */
  connect(signal: AbortSignal): Promise<ControlLink>;
  /** Opens the page channels of the migration whose destination gave this token. */
  openSender(args: { memory: GuestMemory; token: string; channels: number; signal: AbortSignal }): Promise<PageSender>;
}

/** What a migration needs. */
export interface MigrateOptions {
  readonly machine: Machine;
  readonly description: MachineDescription | PassthroughDescription;
  readonly transport: SourceTransport;
  readonly policy: Policy;
  readonly design: TrackingDesign;
  /** From the pause of the vCPUs until the destination runs, as estimated before switching over. Default 300 ms. */
  readonly downtimeLimitMs?: number;
  /** Bytes per second over all channels. Default: no limit. */
  readonly bandwidth?: number;
  /** 1 to 16. Default 2. */
  readonly channels?: number;
  /** Pre-copy rounds at most. Default 30. */
  readonly maxRounds?: number;
  /** Compare the memories after RUNNING (default), off the critical path, or before GO. */
  readonly verify?: "after" | "before";
  /** How long the workload runs on at the destination before it is checked. Default 500 ms. */
  readonly runAfterMs?: number;
  /** Cancels, at any point before the source gives up. Afterwards it is not heeded: the machine would be lost. */
  readonly signal?: AbortSignal;
  /** The id that journals, reports and `dirtmap resume` name it by: of digits, lower-case letters and `-`. Default: a new one. */
  readonly migration?: string;
  readonly journalDirectory?: string;
  /**
   * How long an undecided source waits for the operator: milliseconds. Default: Infinity, until told. When the time is
   * over the result is `indeterminate`, and the paused machine is the caller's: if it ends, its memory is lost.
   */
  readonly decideMs?: number;
  /** Called when the source has given the machine up: from there on it can't be cancelled. */
  readonly onGivenUp?: () => void;
  /** Called when the operator has to decide. */
  readonly onUndecided?: (undecided: Undecided) => void;
  /** Called when it is known, or decided, where the machine may run; not if {@link decideMs} is over before. */
  readonly onSettled?: () => void;
  readonly timeouts?: Partial<Timeouts>;
  /** What was foreseen, for the report to put beside what happened. */
  readonly predicted?: PredictedOutcome;
  readonly hooks?: MigrationHooks;
}

/** A handover that was not confirmed, and what the operator may do about it. */
export interface Undecided {
  readonly migration: string;
  readonly destination: string;
  /** Why it isn't known whether the destination runs the machine. */
  readonly why: string;
  /** The command that lets the machine run here: if it does not run at the destination, and never will. */
  readonly resume: string;
  /** The command that ends it here: if it runs at the destination. */
  readonly abort: string;
  /** When the source stops waiting; null: never. */
  readonly until: Date | null;
}

/** Where tests reach in. */
export interface MigrationHooks {
  beforePhase?(phase: MigrationPhase): void | Promise<void>;
  /** After each read of the trackers: a bit cleared here is a lost write, which verification must find. */
  afterRead?(round: number, dirty: RamBitmap): void;
}

/** The destination's check after the workload ran on. */
const AUDIT_MS = 60_000;

/**
 * Migrates a running machine and returns what happened. The machine runs at the end in exactly one place, or, where the
 * result is `indeterminate`, nowhere here: the source stays paused.
 *
 * Point of no return: once the destination is READY the source records that it gives the machine up, and says GO. Until
 * then any error, and the signal, leave the source running.
 * @throws UsageError where nothing was started: no such destination, an incompatible one, a policy that can't be kept
 */
export async function migrate(options: MigrateOptions): Promise<MigrationReport> {
  return await new Source(options).run();
}

class Source {
  readonly #options: MigrateOptions;
  readonly #machine: Machine;
  readonly #timeouts: Timeouts;
  readonly #directory: string;
  readonly #migration: string;
  readonly #clock = new PhaseClock();
  /** Fires on cancel and when the destination is lost; whatever is under way ends. */
  #signal: AbortSignal;

  #devices: MigratableDevice[] = [];
  #probed: readonly DeviceCapabilities[] = [];
  #tracking: DirtySource | undefined;
  #suspension: Suspension | undefined;
  #peer: Peer | undefined;
  #decisions: DecisionListener | undefined;
  #sender: PageSender | undefined;
  readonly #streams = new Map<string, DeviceStateSender>();
  readonly #rounds: RoundReport[] = [];
  readonly #warnings: string[] = [];
  readonly #progress = new ProgressMeter(this.#clock);
  /** Pages that the next round must send. */
  #pending: RamBitmap;
  #vcpusPaused = false;
  #devicesTouched = false;
  #outageSince: number | undefined;
  #downtimeMs: number | null = null;
  #memory: MemoryComparison | null = null;
  #destination: DestinationReport | null = null;

  constructor(options: MigrateOptions) {
    this.#options = options;
    this.#machine = options.machine;
    this.#migration = options.migration ?? newMigrationId();
    this.#timeouts = { ...DEFAULT_TIMEOUTS, ...options.timeouts };
    this.#directory = options.journalDirectory ?? defaultJournalDirectory();
    this.#signal = options.signal ?? new AbortController().signal;
    this.#pending = new RamBitmap(options.machine.memory);
  }

  /** The story of a migration. */
  async run(): Promise<MigrationReport> {
    try {
      await this.#enter("connecting");
      const handover = await this.#connect();
      try {
        await this.#enter("suspending");
        await this.#suspend();
        await this.#enter("tracking");
        await this.#track();
        await this.#enter("pre-copy");
        const lastRound = await this.#preCopy();
        await this.#enter("pausing");
        await this.#stop(lastRound);
        await this.#enter("stop-copy");
        await this.#stopCopy(lastRound + 1);
        if (this.#options.verify === "before") {
          await this.#enter("verifying");
          await this.#verify(this.#signal);
        }
        await this.#enter("handover");
        return await this.#handOver(handover);
      } catch (error) {
        // After giving up, only a confirmation tells where the machine runs.
        if (handover.state !== "preparing") return this.#end("indeterminate", this.#notDecided(error, 0));
        await handover.fail(error as Error);
        return this.#failed(error);
      }
    } catch (error) {
      // Nothing has been started.
      this.#peer?.send({ type: "ABORT", ...problemOf(error) }).catch(() => {});
      if (error instanceof UsageError) throw error;
      return this.#failed(error);
    } finally {
      await this.#letGo();
    }
  }

  /** Finds out whether this can work at all, and who is on the other side. Nothing of the machine is touched. */
  async #connect(): Promise<SourceHandover> {
    const { transport, description, policy, design, channels = DEFAULTS.channels } = this.#options;
    decisionSocket(this.#directory, this.#migration);
    this.#devices = await migratableDevices(this.#machine);
    this.#probed = await probeMachine(this.#machine);
    const choices = chooseTrackers(this.#probed, policy);
    const shape = await machineShape(this.#machine);
    this.#signal.throwIfAborted();
    const peer = new Peer(await transport.connect(this.#signal));
    this.#peer = peer;
    this.#signal = AbortSignal.any([this.#signal, peer.lost]);
    const hello = peer.send({
      type: "HELLO",
      protocol: PROTOCOL_VERSION,
      software: SOFTWARE,
      machine: description,
      shape,
      channels,
      migration: this.#migration,
      verify: this.#options.verify ?? DEFAULTS.verify,
      runAfterMs: this.#options.runAfterMs ?? DEFAULTS.runAfterMs,
    });
    await hello.catch((error: unknown) => {
      // A destination that refused before it was asked has said why.
      if (!peer.lost.aborted) throw error;
    });
    const answer = await peer.expect(["ACCEPT", "REFUSE"], this.#timeouts.acceptMs, this.#signal);
    if (answer.type === "REFUSE") {
      throw new UsageError(`${transport.destination} refuses the migration: ${answer.message}`, {
        code: answer.code,
        remedy: answer.remedy,
      });
    }
    this.#sender = await transport.openSender({
      memory: this.#machine.memory,
      token: answer.token,
      channels,
      signal: this.#signal,
    });
    this.#sender.setBandwidth(this.#bandwidth);
    // The last thing that may refuse: from here on, tracking may have changed how devices are attached.
    this.#tracking = await openDesign(design, this.#machine, choices, { signal: this.#signal });
    const journal: Journal<SourceRecord> = Journal.source(this.#directory, this.#migration, transport.destination);
    const handover = new SourceHandover({
      journal,
      peer,
      timeouts: this.#timeouts,
      takeBack: () => this.#takeBack(),
      warn: (text) => this.#warnings.push(text),
    });
    // Open long before GO, so that a decision just after GO is heard.
    this.#decisions = await DecisionListener.open(this.#directory, this.#migration, (decision) =>
      handover.decide(decision),
    );
    return handover;
  }

  /** Stops the devices that nothing tracks and that the operator would rather have silent. */
  async #suspend(): Promise<void> {
    const suspending = suspendDevices(this.#machine, this.#trackingOn.choices);
    try {
      this.#suspension = await within(this.#timeouts.deviceMs, "the suspension of devices", suspending);
    } catch (error) {
      // If it comes about after all, it is undone.
      suspending.then((late) => late.resume()).catch(() => {});
      throw error;
    }
  }

  /** All trackers on, before the first byte is copied. */
  async #track(): Promise<void> {
    await within(this.#timeouts.deviceMs, "the start of the trackers", this.#trackingOn.start(this.#signal));
    this.#devicesTouched = true;
    this.#readAtMs = this.#clock.elapsedMs;
    await startPrecopy(this.#devices, this.#suspended, this.#timeouts.deviceMs, this.#openStream);
  }

  /** Rounds until what is left can be moved within the downtime limit. Returns the number of the last one. */
  async #preCopy(): Promise<number> {
    const source = this.#trackingOn;
    const { deviceMs } = this.#timeouts;
    const history: RoundFacts[] = [];
    this.#pending.setAll();
    for (let round = 0; ; round++) {
      const sent = await this.#send(round, "pre-copy");
      let drained = true;
      for (const stream of this.#streams.values()) drained = (await stream.sendPrecopy(this.#signal)) && drained;
      await this.#checkState(round);
      this.#signal.throwIfAborted();

      // Reads and clears first; the next round copies after.
      const read = await within(deviceMs, "the dirty pages", source.read({ quiesced: false }));
      this.#options.hooks?.afterRead?.(round, read.dirty);
      this.#noteFailures(round, read);
      if (round === 0) this.#noteUnread(read);
      this.#pending.clear();
      this.#pending.or(read.dirty);
      if (read.always !== null) subtract(this.#pending, read.always);

      const remaining = read.dirty.bytes;
      this.#report({ round, phase: "pre-copy", ...sent, remaining, byDevice: read.byOwner });
      publishRead(read, this.#readBounds(round));
      history.push({
        ...sent,
        ms: Math.max(sent.ms, 0.001),
        remainingBytes: remaining,
        alwaysDirtyBytes: read.always?.bytes ?? 0,
        owners: this.#owners(read),
      });
      const conditions = await this.#conditions(read);
      const verdict = judge(history, conditions);
      this.#progress.noteRead(verdict.expectedDowntimeMs, read);
      if (verdict.kind === "does-not-converge") throw doesNotConverge(verdict, conditions, this.#ways());
      // What devices can still send while they run is not left for the downtime, within reason.
      if (verdict.kind === "switch-over" && (drained || history.length >= conditions.maxRounds)) return round;
    }
  }

  /** A device that refuses its state does so while the machine runs, not in its downtime. */
  async #checkState(round: number): Promise<void> {
    if (this.#streams.size === 0) return;
    await this.#otherSide.send({ type: "CHECK_STATE", round });
    await this.#otherSide.expect(["STATE_TAKEN"], this.#timeouts.readyMs, this.#signal);
  }

  /** What is known of the devices, for advice that can work. */
  #ways(): Parameters<typeof doesNotConverge>[2] {
    const { design } = this.#options;
    const ways = this.#probed.map(({ id, migration, trackers }) => ({
      device: id,
      stops: migration === "unknown" ? migration : migration?.stopCopy === true,
      trackers: (["iommu", "device", "pinned"] as const).filter((kind) => trackers[kind].available === true),
    }));
    return { ways, design: design === "type1" ? design : null };
  }

  /** Who reported how much, with the devices' own names where a container reports for all that it can't follow. */
  #owners({ byOwner, always }: DirtyRead): RoundFacts["owners"] {
    const untracked = this.#trackingOn.choices
      .filter(({ tracker, suspend }) => tracker === "everything" && !suspend)
      .map(({ device }) => device);
    return Object.entries(byOwner).flatMap(([owner, { reported }]) => {
      const bytes = reported * PAGE_SIZE;
      if (owner === "container" && always !== null) {
        return untracked.map((device) => ({ owner: device, everything: true, bytes }));
      }
      return [{ owner, everything: untracked.includes(owner), bytes }];
    });
  }

  /** Pauses the vCPUs, quiesces and stops all devices, and reads the trackers for the last time. */
  async #stop(lastRound: number): Promise<void> {
    this.#signal.throwIfAborted();
    this.#outageSince = performance.now();
    this.#vcpusPaused = true;
    await within(this.#timeouts.deviceMs, "the pause of the vCPUs", this.#machine.vcpus.pause());
    await stopAll(this.#devices, this.#suspended, this.#timeouts.deviceMs, this.#openStream);
    const reading = this.#trackingOn.read({ quiesced: true, final: true });
    const read = await within(this.#timeouts.deviceMs, "the last dirty pages", reading);
    this.#options.hooks?.afterRead?.(lastRound + 1, read.dirty);
    this.#noteFailures(lastRound + 1, read);
    this.#pending.or(read.dirty);
    this.#lastRead = read;
    this.#lastReadBounds = this.#readBounds(lastRound + 1);
  }
  #lastRead: DirtyRead | undefined;
  #lastReadBounds: ReadBounds | undefined;

  /** The last read is told of once the machine runs again, since counting takes time; nothing is read in between. */
  #publishLastRead(): void {
    const bounds = this.#lastReadBounds;
    this.#lastReadBounds = undefined;
    if (this.#lastRead !== undefined && bounds !== undefined) publishRead(this.#lastRead, bounds);
  }

  /** When the trackers were read, and how long after the read before. */
  #readBounds(round: number): ReadBounds {
    const atMs = this.#clock.elapsedMs;
    const elapsedMs = atMs - this.#readAtMs;
    this.#readAtMs = atMs;
    return { atMs, round, elapsedMs };
  }
  #readAtMs = 0;

  /** Moves the rest: pages, device states, vCPUs. Resolves when the destination has it all, verified. */
  async #stopCopy(round: number): Promise<void> {
    const peer = this.#otherSide;
    const saving = this.#machine.vcpus.saveState();
    const [sent, data] = await Promise.all([
      this.#send(round, "stop-copy"),
      within(this.#timeouts.deviceMs, "the state of the vCPUs", saving),
      ...[...this.#streams.values()].map((stream) => stream.sendRest(this.#signal)),
    ]);
    this.#report({ round, phase: "stop-copy", ...sent, remaining: 0, byDevice: this.#lastRead?.byOwner ?? {} });
    if (data.length > MAX_MESSAGE_DATA) {
      throw new DirtmapError(`the vCPUs' state has ${data.length} bytes`, { code: "BAD_VCPU_STATE" });
    }
    await peer.send({ type: "VCPU_STATE", data });
    peer.expectNothingBefore("PREPARE");
    await peer.send({ type: "PREPARE", round });
    const { rootDigest } = await peer.expect(["READY"], this.#timeouts.readyMs, this.#signal);
    this.#rootDigest = rootDigest;
  }
  #rootDigest = "";

  /** Gives the machine up, lets the destination run it, and compares and reports afterwards. */
  async #handOver(handover: SourceHandover): Promise<MigrationReport> {
    this.#otherSide.expectNothingBefore("GO");
    const { decideMs = DEFAULTS.decideMs } = this.#options;
    // Before `given-up` is recorded: from the record on, no server may let its device run again by itself.
    const told = { migration: this.#migration, deviceMs: this.#timeouts.deviceMs };
    await announceHandover(this.#devices, "committing", told);
    const outcome = await handover.handOver({
      signal: this.#signal,
      decideMs,
      givenUp: () => void this.#tell(() => this.#options.onGivenUp?.()),
      undecided: async (why) => {
        const undecided = this.#undecided(why, decideMs);
        await this.#tell(() => this.#options.onUndecided?.(undecided));
        await this.#tell(() => this.#enter("indeterminate", explain(this.#whatToDo(undecided))));
      },
    });
    if (outcome.state === "undecided") return this.#end("indeterminate", this.#notDecided(outcome.why, decideMs));
    await this.#tell(() => this.#options.onSettled?.());
    if (outcome.state === "taken-back") return this.#failed(outcome.why);
    await this.#tried("the servers of the devices told", announceHandover(this.#devices, "gone", told));
    if (outcome.running === null) return this.#end("indeterminate", this.#givenUp());
    this.#noteResumed(outcome.running.at);
    try {
      await this.#enter("running-at-destination");
      if (this.#options.verify !== "before") {
        await this.#enter("verifying");
        await this.#verify();
      }
      await this.#enter("auditing");
      await this.#audit(outcome.running.resumeMs);
    } catch (error) {
      // The machine runs at the destination; what is missing is the proof.
      return this.#end("completed", error);
    }
    return this.#end("completed");
  }

  /** Compares this memory, which nothing writes any more, with the destination's as it was before GO. */
  async #verify(signal?: AbortSignal): Promise<void> {
    const peer = this.#otherSide;
    const table = new DigestTable(this.#machine.memory);
    const digesting = this.#pageSender.digest();
    digesting.catch(() => {});
    while (!table.add(await peer.expect(["DIGESTS"], this.#timeouts.peerMs, signal)));
    if (rootDigest(table.digests) !== this.#rootDigest) {
      throw new DirtmapError("the destination's page digests are not those that it was ready with", {
        code: "BAD_DIGESTS",
      });
    }
    const ours = await within(this.#timeouts.peerMs, "the digests of this memory", digesting, signal);
    const owners = (arena: number, page: number) => this.#trackingOn.ledger.ownersOf(arena, page);
    this.#memory = compareDigests(this.#machine.memory, ours, table.digests, owners);
    if (this.#memory.pagesDifferent > 0 && signal !== undefined) throw different(this.#memory);
  }

  /** Waits until the workload has run on at the destination, and takes its findings. */
  async #audit(resumeMs: number): Promise<void> {
    const waitMs = (this.#options.runAfterMs ?? DEFAULTS.runAfterMs) + AUDIT_MS;
    const { report } = await this.#otherSide.expect(["REPORT"], waitMs);
    this.#destination = parseDestinationReport(report, resumeMs);
  }

  /** Everything back as it was, in the opposite order: devices, vCPUs, suspended devices. Trackers go off in letGo. */
  async #takeBack(): Promise<void> {
    await this.#closeStreams();
    const { deviceMs } = this.#timeouts;
    if (this.#devicesTouched) {
      // After stopAll the suspended ones are in STOP_COPY like the others; before it, only their suspension is undone.
      const except = this.#outageSince === undefined ? this.#suspended : new Set<string>();
      this.#warnings.push(...(await takeDevicesBack(this.#devices, except, deviceMs)));
    }
    await this.#tried("suspended devices running again", this.#suspension?.resume());
    if (this.#vcpusPaused) {
      this.#vcpusPaused = false;
      await this.#tried("the vCPUs running again", this.#machine.vcpus.resume());
    }
    this.#noteResumed(performance.now());
  }

  /** What must not keep the rest from being taken back becomes a warning. */
  async #tried(what: string, doing: PromiseLike<void> | undefined): Promise<void> {
    if (doing === undefined) return;
    await within(this.#timeouts.deviceMs, what, Promise.resolve(doing)).catch((error: unknown) => {
      this.#warnings.push(`${what}: ${explain(error)}`);
    });
  }

  /** The machine runs again, here or there: its outage, and that of suspended devices, is over. */
  #noteResumed(at: number): void {
    if (this.#outageSince !== undefined) this.#downtimeMs = at - this.#outageSince;
    const { devices, suspendedMs } = this.#suspension ?? { devices: [], suspendedMs: () => 0 };
    for (const device of devices) this.#suspendedMs.set(device, suspendedMs(device));
    this.#publishLastRead();
  }
  readonly #suspendedMs = new Map<string, number>();

  /** Ends what the migration opened. The machine itself is the caller's. */
  async #letGo(): Promise<void> {
    this.#progress.stop();
    await this.#closeStreams();
    await Promise.all([
      this.#tried("the socket for decisions closed", this.#decisions?.[Symbol.asyncDispose]()),
      this.#tried("the page channels closed", this.#sender?.[Symbol.asyncDispose]()),
      this.#tried("the connection closed", this.#peer?.close()),
      this.#tried("the trackers switched off", this.#tracking?.[Symbol.asyncDispose]()),
    ]);
  }

  async #send(round: number, phase: RoundReport["phase"]) {
    const peer = this.#otherSide;
    this.#progress.begin(round, this.#pageSender, this.#pending.bytes);
    await peer.send({ type: "ROUND_BEGIN", round, phase, pages: this.#pending.count() });
    // Its own deadlines bound it; an abort doesn't wait for frames in flight.
    const sending = this.#pageSender.sendRound(round, this.#pending, this.#signal);
    const sent = await within(UNTIL_LOST, "the end of the round", sending, this.#signal);
    const { pages, zeroPages, bytes } = sent;
    await peer.send({ type: "ROUND_END", round, pages, zeroPages, bytes });
    return sent;
  }

  #report(round: RoundReport): void {
    const report = { ...round, ms: rounded(round.ms) };
    this.#rounds.push(report);
    publish({ type: "round", round: report });
  }

  /** Logs that can be read only when their device is stopped: no estimate knows what is in them. */
  #noteUnread({ unread }: DirtyRead): void {
    for (const owner of unread) {
      this.#warnings.push(
        `the log of ${owner} can be read only once it is stopped: what it wrote is moved in the downtime`,
      );
    }
  }

  #noteFailures(round: number, read: DirtyRead): void {
    for (const { owner, error } of read.failures) {
      this.#warnings.push(
        `the tracker of ${owner} failed in round ${round}, all that it covers counted as dirty: ${explain(error)}`,
      );
    }
  }

  async #conditions(read: DirtyRead): Promise<Conditions> {
    const asked = Promise.all(this.#devices.map(({ vfio }) => vfio.dataSize()));
    const sizes = await within(this.#timeouts.deviceMs, "the size of the devices' states", asked);
    // Now, rather than in the downtime.
    for (const [index, { id }] of this.#devices.entries()) {
      checkStateSize(id, (this.#streams.get(id)?.bytes ?? 0) + sizes[index]);
    }
    const verifiedFirst = this.#options.verify === "before" ? this.#machine.memory.bytes : 0;
    return {
      downtimeLimitMs: this.#options.downtimeLimitMs ?? DEFAULTS.downtimeLimitMs,
      maxRounds: this.#options.maxRounds ?? DEFAULTS.maxRounds,
      bandwidth: this.#bandwidth,
      deviceStateBytes: sizes.reduce((sum, bytes) => sum + bytes, 0),
      fixedMs: fixedDowntime(read.ms, verifiedFirst),
    };
  }

  async #enter(phase: MigrationPhase, text?: string): Promise<void> {
    this.#clock.enter(phase, text);
    await this.#options.hooks?.beforePhase?.(phase);
  }

  readonly #openStream = (
    device: MigratableDevice,
    stream: ConstructorParameters<typeof DeviceStateSender>[1],
  ): void => {
    this.#streams.set(device.id, new DeviceStateSender(device.id, stream, (message) => this.#otherSide.send(message)));
  };

  async #closeStreams(): Promise<void> {
    const streams = [...this.#streams.values()];
    await Promise.allSettled(streams.map((stream) => stream.close()));
  }

  #failed(error: unknown): MigrationReport {
    const cancelled = this.#options.signal?.aborted === true;
    if (!cancelled) return this.#end("failed", error);
    return this.#end(
      "cancelled",
      new DirtmapError("the migration was cancelled; the source goes on running", { code: "CANCELLED", cause: error }),
    );
  }

  /** Tells others of the handover; that they throw must not end the wait for a decision. */
  async #tell(call: () => void | Promise<void>): Promise<void> {
    try {
      await call();
    } catch (error) {
      this.#warnings.push(explain(error));
    }
  }

  #undecided(why: Error, decideMs: number): Undecided {
    const command = (decision: Decision) => decisionCommand(decision, this.#migration, this.#directory);
    return {
      migration: this.#migration,
      destination: this.#options.transport.destination,
      why: explain(why),
      resume: command("resume"),
      abort: command("abort"),
      until: Number.isFinite(decideMs) ? new Date(Date.now() + decideMs) : null,
    };
  }

  /** What an operator has to do when GO was not confirmed. */
  #whatToDo({ destination, why, resume, abort }: Undecided): DirtmapError {
    return new DirtmapError(
      `the source has given the machine up and said GO, and ${destination} has not confirmed that it runs (${why}); the source stays paused`,
      {
        code: "GO_NOT_CONFIRMED",
        attempted: "hand the machine over",
        remedy: `look at ${destination}: if the machine runs there, \`${abort}\` ends it here; if it does not and never will, \`${resume}\` lets it run here`,
      },
    );
  }

  /** Nobody has decided, and nobody is waited for any more. */
  #notDecided(why: unknown, decideMs: number): DirtmapError {
    const { destination } = this.#options.transport;
    const abort = decisionCommand("abort", this.#migration, this.#directory);
    return new DirtmapError(
      `the source has given the machine up and said GO, ${destination} has not confirmed that it runs (${explain(why)}), and nobody decided within ${rounded(decideMs)} ms; the source's memory ends with its process`,
      {
        code: "GO_NOT_CONFIRMED",
        attempted: "hand the machine over",
        remedy: `the machine runs at ${destination}, or nowhere once this process has ended: look there, then \`${abort}\``,
        cause: why,
      },
    );
  }

  #givenUp(): DirtmapError {
    return new DirtmapError("the operator gave the source's machine up; the destination never confirmed that it runs", {
      code: GIVEN_UP,
    });
  }

  #end(result: MigrationResult, error?: unknown): MigrationReport {
    this.#progress.stop();
    this.#publishLastRead();
    const tracking = this.#tracking;
    const { stamps, requests } = this.#destination ?? {};
    const isWhole = [stamps, requests].every((found) => found == null || found.problems.length === 0);
    this.#clock.end(result, error === undefined ? undefined : explain(error));
    return {
      schemaVersion: 1,
      migration: this.#migration,
      result,
      verified: this.#memory === null ? null : this.#memory.pagesDifferent === 0 && isWhole,
      totalMs: rounded(this.#clock.elapsedMs),
      downtimeMs: this.#downtimeMs === null ? null : rounded(this.#downtimeMs),
      bytes:
        this.#rounds.reduce((sum, { bytes }) => sum + bytes, 0) +
        [...this.#streams.values()].reduce((sum, { bytes }) => sum + bytes, 0),
      phases: this.#clock.phases(),
      rounds: this.#rounds,
      devices: (tracking?.choices ?? []).map((choice) => {
        const { device } = choice;
        return {
          id: choice.device,
          model: this.#machine.devices.find(({ id }) => id === choice.device)?.model ?? "",
          tracker: choice.tracker,
          granule: tracking?.granuleOf(choice.device) ?? null,
          reason: choice.reason,
          alternatives: choice.alternatives,
          ...(tracking?.ledger.device(choice.device) ?? { pagesReported: null, pagesExclusive: null, readMs: 0 }),
          suspendedMs: rounded(this.#suspendedMs.get(device) ?? this.#suspension?.suspendedMs(device) ?? 0),
        };
      }),
      design: this.#options.design,
      policy: policyName(this.#options.policy),
      memory: this.#memory,
      destination: this.#destination,
      predicted: this.#options.predicted ?? null,
      warnings: this.#warnings,
      ...(error === undefined ? {} : { error: reportedError(error) }),
    };
  }

  get #bandwidth(): number {
    return this.#options.bandwidth ?? DEFAULTS.bandwidth;
  }

  get #suspended(): ReadonlySet<string> {
    return new Set(this.#suspension?.devices);
  }

  get #trackingOn(): DirtySource {
    return opened(this.#tracking);
  }

  get #otherSide(): Peer {
    return opened(this.#peer);
  }

  get #pageSender(): PageSender {
    return opened(this.#sender);
  }
}

function opened<T>(part: T | undefined): T {
  if (part === undefined) throw new Error("used before the migration is connected");
  return part;
}

/** Takes `other`'s pages out of `from`. */
function subtract(from: RamBitmap, other: RamBitmap): void {
  from.arenas.forEach((words, arena) => {
    const away = other.arenas[arena];
    for (let i = 0; i < words.length; i++) words[i] &= ~away[i];
  });
}

function different({ pagesDifferent, firstAddresses, coveredBy }: MemoryComparison): DirtmapError {
  const by = coveredBy.length === 0 ? "no tracker ever reported them" : `reported by ${coveredBy.join(", ")}`;
  return new DirtmapError(`${pagesDifferent} pages differ at the destination (${firstAddresses.join(", ")} …; ${by})`, {
    code: "MEMORY_DIFFERS",
    attempted: "compare the destination's memory with this one",
  });
}

function reportedError(error: unknown): NonNullable<MigrationReport["error"]> {
  const code = error instanceof DirtmapError ? error.code : "INTERNAL";
  const message = error instanceof Error ? error.message : String(error);
  const remedy = error instanceof DirtmapError ? error.remedy : undefined;
  const device =
    error instanceof DeviceError
      ? { id: error.device, side: "source" as const, reason: error.reason }
      : error instanceof PeerAborted && error.device !== undefined
        ? { ...error.device, side: "destination" as const }
        : undefined;
  return {
    code,
    message: device?.side === "destination" ? `at the destination, ${message}` : message,
    ...(remedy === undefined ? {} : { remedy }),
    ...(device === undefined ? {} : { device }),
  };
}
