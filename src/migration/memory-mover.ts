import type { AttachedDevice, Machine, Vcpus } from "../host/host.js";
import type { MachineShape } from "../host/shape.js";
import type { PhaseClock } from "./clock.js";
import type { Timeouts } from "./deadline.js";
import type { MigrationPhase } from "./events.js";
import type { Opened } from "./opened.js";
import type { Peer } from "./peer.js";
import type { DeviceReport, MemoryComparison, MigrationReport, RoundReport } from "./report.js";
import type { ControlMessageOf, MoverAnswer, MoverKind, MoverOffer } from "./stream/messages.js";
import type { MigrationPlace } from "./undecided.js";

/*
 * A migration has two halves. One is the same for all machines: the agreement, the devices' states, the handover, the journals
 * and the report (source.ts, destination.ts). The other moves the memory and the vCPUs, and is plugged in here. Dirtmap's own
 * tracks, sends rounds of pages and compares (page-mover.ts, page-arrival.ts); an outside one has somebody else do that, as
 * QEMU does with its own migration stream.
 *
 *   source                                               destination
 *   plan        what HELLO says; nothing is touched      build, shape, open    checks and builds, and answers ACCEPT
 *   open        may still refuse
 *   start       what is written from now on is moved
 *   (devices go to PRE_COPY)                             (devices go to RESUMING)
 *   converge    until the rest fits a downtime           takeRound             own rounds only
 *   stop        vCPUs, then the devices                  (devices take their states)
 *   finish      the rest of memory; the guest's state
 *   PREPARE ──────────────────────────────────────────▶  arrived               all memory is here; devices load meanwhile
 *                                                        load                  the guest's state
 *           ◀────────────────────────────────────────── READY
 *   gone, or takeBack                                    (devices run, then the vCPUs)
 */

/** What of a machine the migration itself handles: its devices. A `Machine` is one, and so is an outside VMM's guest. */
export interface MovedMachine extends Pick<Machine, "mayP2p"> {
  readonly devices: readonly Pick<AttachedDevice, "id" | "model" | "vfio">[];
}

/** A machine at the destination: built, paused, and not run before GO. Disposing it discards it. */
export interface ArrivingMachine extends MovedMachine, AsyncDisposable {
  readonly vcpus: Pick<Vcpus, "pause" | "resume">;
}

/** What a migration gives its mover at the source. */
export interface MoverContext {
  /** Which migration it is, and where its journal lies. */
  readonly place: MigrationPlace;
  /** The control connection; an outside mover has no messages of its own on it. */
  readonly peer: Peer;
  /** Fires on cancel, and when the destination is lost: whatever is under way must end. */
  readonly signal: AbortSignal;
  readonly timeouts: Timeouts;
  readonly clock: PhaseClock;
  /** Begins a phase. */
  enter(phase: MigrationPhase): Promise<void>;
  readonly report: {
    warn(text: string): void;
    round(round: RoundReport): void;
    /** Awaits something that must not keep the rest from being done: if it fails or takes too long, it is a warning. */
    tried(what: string, doing: PromiseLike<void>): Promise<void>;
  };
  /** What is added here is closed when the migration is over, however it ends. */
  readonly opened: Opened;
}

/** States of devices while these run, as far as they can be moved by then. */
export interface PrecopiedStates {
  /**
   * Sends what there is now. Resolves once the destination's devices have taken it: a device that refuses does so here, while
   * the machine runs. True: up to the streams' temporary ends; false: there is more that is better sent before the stop.
   */
  send(): Promise<boolean>;
  /** Bytes that the devices expect to send once they are stopped. @throws DirtmapError for a state that is too large */
  expectedBytes(): Promise<number>;
}

/** Moves a machine's memory and its vCPUs: all of it but the devices' states. */
export interface MemoryMover<Kind extends MoverKind = MoverKind> {
  /** What the report says about how the memory was tracked, also of a migration that never began. */
  readonly tracking: Pick<MigrationReport, "design" | "policy">;
  /** The machine does not end with this process; the mover leaves a note of it: see outliving.ts. */
  readonly outlives?: boolean;
  /** Finds out whether the machine can be moved at all, and changes nothing. @throws UsageError if it can't */
  plan(): Promise<MovePlan<Kind>>;
}

/** A move that nobody has agreed to yet. */
export interface MovePlan<Kind extends MoverKind = MoverKind> {
  readonly offer: MoverOffer<Kind>;
  /** What the guest can tell its machine by. A mover that sees to memory and vCPUs itself leaves these out. */
  readonly shape: MachineShape;
  /**
   * The destination has accepted. The last step that may refuse; it does nothing to the machine that closing what it adds to
   * `context.opened` would not undo.
   */
  open(answer: MoverAnswer<Kind>, context: MoverContext): Promise<MemoryMove>;
}

/**
 * A move under way. The methods are called in this order, each once the one before has resolved. `takeBack` comes in place of the
 * next one, if one has failed or the destination doesn't run the machine. Each waits for nothing without bound, and rejects when
 * `context.signal` fires: nobody else ends a wait for a VMM that doesn't answer.
 */
export interface MemoryMove {
  /**
   * What is written from now on, by vCPUs and devices, is moved. Begins the phases `suspending` and `tracking`, as far as it has
   * them. Returns the ids of devices that it has stopped and that {@link takeBack} lets run again.
   */
  start(): Promise<ReadonlySet<string>>;
  /**
   * Resolves when what is left fits the downtime, and sends the devices' states meanwhile, at times of its own choosing. An
   * outside mover may come back with the vCPUs stopped: in QEMU's `pre-switchover`.
   * @throws DirtmapError `DOES_NOT_CONVERGE`
   */
  converge(states: PrecopiedStates): Promise<void>;
  /** When the vCPUs stood still, by performance.now(), if {@link converge} came back with them stopped. */
  readonly pausedAt?: number | undefined;
  /** Stops the vCPUs, then all devices by `stopDevices`. When it resolves, nothing writes the memory any more. */
  stop(stopDevices: () => Promise<void>): Promise<void>;
  /**
   * Moves the rest of memory, and has the devices' states sent by `sendStates`. Resolves when these are sent; the rest of memory
   * may then still be on its way, as {@link FinishedMove.completed} says.
   */
  finish(sendStates: () => Promise<void>): Promise<FinishedMove>;
  /** null: the two memories can't be compared. */
  readonly comparison: MoveComparison | null;
  /** The devices run again; now so do those that {@link start} stopped, and the vCPUs. What can't be done is a warning. */
  takeBack(): Promise<void>;
  /** The machine is the destination's for good. */
  gone(): Promise<void>;
  /** The migration is over, whatever became of the machine. Returns what the report says about the devices. Never throws. */
  conclude(): readonly DeviceReport[];
}

/** What the destination needs besides the memory and the devices' states. */
export interface FinishedMove {
  /** State of the guest that is in neither: the vCPUs', or what only the mover's other end can read. */
  readonly state: Uint8Array;
  /** The last round; absent for a mover without rounds. */
  readonly round?: number;
  /** Resolves when this side has nothing more to send. The machine is not given up before. Absent: that is so already. */
  readonly completed?: Promise<void>;
}

/** Compares the source's memory, which is stopped, with the destination's as it was before it ran. */
export interface MoveComparison {
  readonly when: "before" | "after";
  /** @param rootDigest what READY said */
  compare(rootDigest: string | undefined, signal?: AbortSignal): Promise<MemoryComparison>;
}

/** The destination's side of a mover: what it must know before it accepts. */
export interface MemoryDestination<M extends ArrivingMachine, Kind extends MoverKind = MoverKind> {
  readonly kind: Kind;
  /** Builds the machine, or takes one that waits. @throws DirtmapError why not: the source is refused with it */
  build(offer: MoverOffer<Kind>): Promise<M>;
  /** What the guest can tell the machine by; compared with what HELLO says. */
  shape(machine: M): Promise<MachineShape>;
  /** Memory may arrive from now on. */
  open(machine: M, offer: MoverOffer<Kind>): Promise<{ answer: MoverAnswer<Kind>; arrival: MemoryArrival }>;
}

/** Memory on its way in. */
export interface MemoryArrival extends AsyncDisposable {
  /** Rejects when memory can no longer arrive whole; never resolves before dispose. */
  readonly failed: Promise<never>;
  /** Takes a message about a round; null: there are no rounds, and such a message is refused. */
  readonly takeRound: ((message: ControlMessageOf<"ROUND_BEGIN" | "ROUND_END">) => Promise<void>) | null;
  /** PREPARE: resolves once all memory has arrived, and nothing more can. @param round what PREPARE says */
  arrived(round: number | undefined): Promise<void>;
  /**
   * Loads the guest's state (VCPU_STATE), beside the devices or after them.
   * @param devicesLoaded resolves when all devices have theirs, and are in STOP
   * @returns what READY says that the memory holds; undefined: nothing
   */
  load(state: Uint8Array, devicesLoaded: Promise<void>): Promise<string | undefined>;
  /** What the source compares its memory with; null: nothing. */
  readonly comparison: { readonly when: "before" | "after"; messages(): Iterable<ControlMessageOf<"DIGESTS">> } | null;
}
