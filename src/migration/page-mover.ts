import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { DEFAULTS } from "../defaults.js";
import { DirtmapError, explain } from "../errors.js";
import type { MachineDescription, PassthroughDescription } from "../host/description.js";
import type { Machine } from "../host/host.js";
import { machineShape } from "../host/shape.js";
import { PAGE_SIZE } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import type { DeviceCapabilities } from "../tracking/capabilities.js";
import { type Policy, policyName, type TrackerChoice, type TrackingDesign } from "../tracking/choice.js";
import { openDesign } from "../tracking/designs.js";
import type { DirtyRead, DirtySource } from "../tracking/dirty-source.js";
import { chooseTrackers } from "../tracking/policy.js";
import { probeMachine } from "../tracking/probe.js";
import { type Suspension, suspendDevices } from "../tracking/suspension.js";
import { round as rounded } from "./clock.js";
import { type Conditions, doesNotConverge, fixedDowntime, judge, type RoundFacts } from "./convergence.js";
import type { PageSender, SentRound } from "./data-plane.js";
import { within } from "./deadline.js";
import { publishRead, type ReadBounds } from "./events.js";
import type {
  FinishedMove,
  MemoryMove,
  MemoryMover,
  MoveComparison,
  MovePlan,
  MoverContext,
  PrecopiedStates,
} from "./memory-mover.js";
import { UNTIL_LOST } from "./peer.js";
import { ProgressMeter } from "./progress.js";
import type { DeviceReport, MemoryComparison, MigrationReport, RoundReport } from "./report.js";
import type { MoverAnswer } from "./stream/messages.js";
import { compareDigests, DigestTable, rootDigest } from "./verification.js";

/** What Dirtmap needs to move a machine's memory itself. */
export interface PageMoverOptions {
  readonly machine: Machine;
  readonly description: MachineDescription | PassthroughDescription;
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
}

/** The way of the pages. */
export interface PageTransport {
  /** Opens the page channels of the migration whose destination gave this token. */
  openSender(args: { memory: GuestMemory; token: string; channels: number; signal: AbortSignal }): Promise<PageSender>;
}

/** Called after each read of the trackers: a bit cleared here is a lost write, which verification must find. */
export type AfterRead = (round: number, dirty: RamBitmap) => void;

/** What a mover of pages has from its caller. */
interface PageMoverParts extends Required<Omit<PageMoverOptions, "description">> {
  readonly transport: PageTransport;
  readonly afterRead: AfterRead;
}

/** Dirtmap's own mover: trackers tell which pages were written, and rounds over page channels move them. */
export class PageMover implements MemoryMover<"dirtmap"> {
  readonly tracking: Pick<MigrationReport, "design" | "policy">;
  readonly #parts: PageMoverParts;
  readonly #description: PageMoverOptions["description"];

  constructor({
    transport,
    afterRead = () => {},
    ...options
  }: PageMoverOptions & { transport: PageTransport; afterRead?: AfterRead | undefined }) {
    const {
      downtimeLimitMs = DEFAULTS.downtimeLimitMs,
      bandwidth = DEFAULTS.bandwidth,
      channels = DEFAULTS.channels,
      maxRounds = DEFAULTS.maxRounds,
      verify = DEFAULTS.verify,
    } = options;
    const { machine, policy, design } = options;
    this.tracking = { design, policy: policyName(policy) };
    this.#description = options.description;
    this.#parts = {
      machine,
      policy,
      design,
      downtimeLimitMs,
      bandwidth,
      channels,
      maxRounds,
      verify,
      transport,
      afterRead,
    };
  }

  async plan(): Promise<MovePlan<"dirtmap">> {
    const { machine, policy, channels, verify } = this.#parts;
    const probed = await probeMachine(machine);
    const choices = chooseTrackers(probed, policy);
    return {
      offer: { kind: "dirtmap", machine: this.#description, channels, verify },
      shape: await machineShape(machine),
      open: (answer, context) => this.#open(probed, choices, answer, context),
    };
  }

  async #open(
    probed: readonly DeviceCapabilities[],
    choices: readonly TrackerChoice[],
    { token }: MoverAnswer<"dirtmap">,
    context: MoverContext,
  ): Promise<PageMove> {
    const { machine, design, transport, channels, bandwidth } = this.#parts;
    const { signal, opened } = context;
    const sender = await transport.openSender({ memory: machine.memory, token, channels, signal });
    opened.add("the page channels closed", () => sender[Symbol.asyncDispose]());
    sender.setBandwidth(bandwidth);
    // The last thing that may refuse: from here on, tracking may have changed how devices are attached.
    const tracking = await openDesign(design, machine, choices, { signal });
    opened.add("the trackers switched off", () => tracking[Symbol.asyncDispose]());
    return new PageMove({ ...this.#parts, probed, sender, tracking }, context);
  }
}

/** {@link PageMoverParts} of a migration that is agreed. */
interface PageMoveParts extends PageMoverParts {
  readonly probed: readonly DeviceCapabilities[];
  readonly sender: PageSender;
  readonly tracking: DirtySource;
}

const NOTHING_SUSPENDED: Suspension = { devices: [], suspendedMs: () => 0, resume: async () => {} };

/** One machine's memory on its way, by rounds of pages. */
class PageMove implements MemoryMove {
  readonly comparison: MoveComparison;
  readonly #parts: PageMoveParts;
  readonly #context: MoverContext;
  readonly #progress: ProgressMeter;
  /** Pages that the next round must send. */
  readonly #pending: RamBitmap;
  #suspension = NOTHING_SUSPENDED;
  /** Of devices whose outage is over, since the machine runs at the destination. */
  readonly #suspendedMs = new Map<string, number>();
  #round = 0;
  #readAtMs = 0;
  #vcpusPaused = false;
  #lastRead: DirtyRead | undefined;
  /** The last read is told of once the machine runs again, since counting takes time; nothing is read in between. */
  #publishLastRead = () => {};

  constructor(parts: PageMoveParts, context: MoverContext) {
    this.#parts = parts;
    this.#context = context;
    this.#progress = new ProgressMeter(context.clock);
    this.#pending = new RamBitmap(parts.machine.memory);
    this.comparison = { when: parts.verify, compare: (root, signal) => this.#compare(root, signal) };
  }

  async start(): Promise<ReadonlySet<string>> {
    const { clock, enter, signal, timeouts } = this.#context;
    await enter("suspending");
    await this.#suspend();
    await enter("tracking");
    await within(timeouts.deviceMs, "the start of the trackers", this.#parts.tracking.start(signal));
    this.#readAtMs = clock.elapsedMs;
    return new Set(this.#suspension.devices);
  }

  /** Stops the devices that nothing tracks and that the operator would rather have silent. */
  async #suspend(): Promise<void> {
    const { machine, tracking } = this.#parts;
    const suspending = suspendDevices(machine, tracking.choices);
    try {
      this.#suspension = await within(this.#context.timeouts.deviceMs, "the suspension of devices", suspending);
    } catch (error) {
      // If it comes about after all, it is undone.
      suspending.then((late) => late.resume()).catch(() => {});
      throw error;
    }
  }

  /** Rounds until what is left can be moved within the downtime limit. */
  async converge(states: PrecopiedStates): Promise<void> {
    const { tracking, afterRead } = this.#parts;
    const { signal, timeouts } = this.#context;
    const history: RoundFacts[] = [];
    this.#pending.setAll();
    for (; ; this.#round++) {
      const round = this.#round;
      const sent = await this.#send("pre-copy");
      const drained = await states.send();
      signal.throwIfAborted();

      // Reads and clears first; the next round copies after.
      const read = await within(timeouts.deviceMs, "the dirty pages", tracking.read({ quiesced: false }));
      afterRead(round, read.dirty);
      this.#noteFailures(read);
      if (round === 0) this.#noteUnread(read);
      this.#pending.clear();
      this.#pending.or(read.dirty);
      if (read.always !== null) subtract(this.#pending, read.always);

      const remaining = read.dirty.bytes;
      this.#report("pre-copy", sent, remaining, read);
      publishRead(read, this.#readBounds());
      history.push({
        ...sent,
        ms: Math.max(sent.ms, 0.001),
        remainingBytes: remaining,
        alwaysDirtyBytes: read.always?.bytes ?? 0,
        owners: this.#owners(read),
      });
      const conditions = this.#conditions(read, await states.expectedBytes());
      const verdict = judge(history, conditions);
      this.#progress.noteRead(verdict.expectedDowntimeMs, read);
      if (verdict.kind === "does-not-converge") throw doesNotConverge(verdict, conditions, this.#ways());
      // What devices can still send while they run is not left for the downtime, within reason.
      if (verdict.kind === "switch-over" && (drained || history.length >= conditions.maxRounds)) return;
    }
  }

  /** Pauses the vCPUs, stops all devices, and reads the trackers for the last time. */
  async stop(stopDevices: () => Promise<void>): Promise<void> {
    const { machine, tracking, afterRead } = this.#parts;
    const { deviceMs } = this.#context.timeouts;
    this.#round++;
    this.#vcpusPaused = true;
    await within(deviceMs, "the pause of the vCPUs", machine.vcpus.pause());
    await stopDevices();
    const read = await within(deviceMs, "the last dirty pages", tracking.read({ quiesced: true, final: true }));
    afterRead(this.#round, read.dirty);
    this.#noteFailures(read);
    this.#pending.or(read.dirty);
    this.#lastRead = read;
    const bounds = this.#readBounds();
    this.#publishLastRead = () => publishRead(read, bounds);
  }

  async finish(sendStates: () => Promise<void>): Promise<FinishedMove> {
    const saving = this.#parts.machine.vcpus.saveState();
    const [sent, state] = await Promise.all([
      this.#send("stop-copy"),
      within(this.#context.timeouts.deviceMs, "the state of the vCPUs", saving),
      sendStates(),
    ]);
    this.#report("stop-copy", sent, 0, this.#lastRead);
    return { state, round: this.#round };
  }

  /** Compares this memory, which nothing writes any more, with the destination's as it was before GO. */
  async #compare(expectedRoot: string | undefined, signal?: AbortSignal): Promise<MemoryComparison> {
    const { machine, sender, tracking } = this.#parts;
    const { peer, timeouts } = this.#context;
    const table = new DigestTable(machine.memory);
    const digesting = sender.digest();
    digesting.catch(() => {});
    while (!table.add(await peer.expect(["DIGESTS"], timeouts.peerMs, signal)));
    if (rootDigest(table.digests) !== expectedRoot) {
      throw new DirtmapError("the destination's page digests are not those that it was ready with", {
        code: "BAD_DIGESTS",
      });
    }
    const ours = await within(timeouts.peerMs, "the digests of this memory", digesting, signal);
    const owners = (arena: number, page: number) => tracking.ledger.ownersOf(arena, page);
    return compareDigests(machine.memory, ours, table.digests, owners);
  }

  async takeBack(devicesBack: Promise<unknown>): Promise<void> {
    const { report } = this.#context;
    await devicesBack;
    await report.tried("suspended devices running again", this.#suspension.resume());
    if (!this.#vcpusPaused) return;
    this.#vcpusPaused = false;
    await report.tried("the vCPUs running again", this.#parts.machine.vcpus.resume());
  }

  async gone(): Promise<void> {
    for (const device of this.#suspension.devices) {
      this.#suspendedMs.set(device, this.#suspension.suspendedMs(device));
    }
    this.#tellLastRead();
  }

  conclude(): DeviceReport[] {
    const { machine, tracking } = this.#parts;
    this.#progress.stop();
    this.#tellLastRead();
    return tracking.choices.map(({ device, tracker, reason, alternatives }) => ({
      id: device,
      model: machine.devices.find(({ id }) => id === device)?.model ?? "",
      tracker,
      granule: tracking.granuleOf(device),
      reason,
      alternatives,
      ...(tracking.ledger.device(device) ?? { pagesReported: null, pagesExclusive: null, readMs: 0 }),
      suspendedMs: rounded(this.#suspendedMs.get(device) ?? this.#suspension.suspendedMs(device)),
    }));
  }

  /** Once. */
  #tellLastRead(): void {
    this.#publishLastRead();
    this.#publishLastRead = () => {};
  }

  async #send(phase: RoundReport["phase"]): Promise<SentRound> {
    const { sender } = this.#parts;
    const { peer, signal } = this.#context;
    const round = this.#round;
    this.#progress.begin(round, sender, this.#pending.bytes);
    await peer.send({ type: "ROUND_BEGIN", round, phase, pages: this.#pending.count() });
    // Its own deadlines bound it; an abort doesn't wait for frames in flight.
    const sending = sender.sendRound(round, this.#pending, signal);
    const sent = await within(UNTIL_LOST, "the end of the round", sending, signal);
    const { pages, zeroPages, bytes } = sent;
    await peer.send({ type: "ROUND_END", round, pages, zeroPages, bytes });
    return sent;
  }

  #report(phase: RoundReport["phase"], sent: SentRound, remaining: number, read: DirtyRead | undefined): void {
    this.#context.report.round({ round: this.#round, phase, ...sent, remaining, byDevice: read?.byOwner ?? {} });
  }

  /** When the trackers were read, and how long after the read before. */
  #readBounds(): ReadBounds {
    const atMs = this.#context.clock.elapsedMs;
    const elapsedMs = atMs - this.#readAtMs;
    this.#readAtMs = atMs;
    return { atMs, round: this.#round, elapsedMs };
  }

  /** Logs that can be read only when their device is stopped: no estimate knows what is in them. */
  #noteUnread({ unread }: DirtyRead): void {
    for (const owner of unread) {
      this.#context.report.warn(
        `the log of ${owner} can be read only once it is stopped: what it wrote is moved in the downtime`,
      );
    }
  }

  #noteFailures({ failures }: DirtyRead): void {
    for (const { owner, error } of failures) {
      this.#context.report.warn(
        `the tracker of ${owner} failed in round ${this.#round}, all that it covers counted as dirty: ${explain(error)}`,
      );
    }
  }

  #conditions(read: DirtyRead, deviceStateBytes: number): Conditions {
    const { machine, downtimeLimitMs, maxRounds, bandwidth, verify } = this.#parts;
    const verifiedFirst = verify === "before" ? machine.memory.bytes : 0;
    return { downtimeLimitMs, maxRounds, bandwidth, deviceStateBytes, fixedMs: fixedDowntime(read.ms, verifiedFirst) };
  }

  /** What is known of the devices, for advice that can work. */
  #ways(): Parameters<typeof doesNotConverge>[2] {
    const { design, probed } = this.#parts;
    const ways = probed.map(({ id, migration, trackers }) => ({
      device: id,
      stops: migration === "unknown" ? migration : migration?.stopCopy === true,
      trackers: (["iommu", "device", "pinned"] as const).filter((kind) => trackers[kind].available === true),
    }));
    return { ways, design: design === "type1" ? design : null };
  }

  /** Who reported how much, with the devices' own names where a container reports for all that it can't follow. */
  #owners({ byOwner, always }: DirtyRead): RoundFacts["owners"] {
    const untracked = this.#parts.tracking.choices
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
}

/** Takes `other`'s pages out of `from`. */
function subtract(from: RamBitmap, other: RamBitmap): void {
  from.arenas.forEach((words, arena) => {
    const away = other.arenas[arena];
    for (let i = 0; i < words.length; i++) words[i] &= ~away[i];
  });
}
