import { PAGE_SIZE } from "../memory/address.js";
import type { Diagnosis, MigrationEvent, MigrationPhase, OwnerRead } from "../migration/events.js";
import { covers, deviceOwner, devicesOf, type Owner, parseOwner, trackerOf } from "../tracking/owner.js";

/*
 * What is known of a run, made of its devices and its events alone: the one reducer behind the live view, `dirtmap top`, the
 * metrics and the dashboard's page, whether events come from this process or from a feed. Pure; the page has this module, too.
 */

/** One device of a run, as its header describes it. */
export interface RunDevice {
  readonly id: string;
  readonly model: string;
  readonly tracker: string;
  /** Bytes per dirty bit; null: none, or not known. */
  readonly granule: number | null;
  /** Stopped for the length of the migration, so that it needs no tracker. */
  readonly suspended?: boolean | undefined;
}

/** An event of a run; `lost` tells of those that a feed left out because its reader was too slow. */
export type RunEvent = MigrationEvent | { readonly type: "lost"; readonly events: number };

/** What one owner's tracker reported in a read. */
export interface OwnerReading extends OwnerRead {
  /** Dirtied since the read before. */
  readonly bytesPerSecond: number;
}

/** One tracker's owner over the run, or a device that nothing was read of. */
export interface OwnerState {
  /** As reads name it. */
  readonly name: string;
  readonly owner: Owner;
  /** A tracker's kind, or `container`; `suspended` of a device that is stopped; `unknown` of one that the header lacks. */
  readonly tracker: string;
  /** Of its devices, each once, joined by '+'; empty for vCPUs. */
  readonly model: string;
  /** Bytes per dirty bit; null: none, or not known. */
  readonly granule: number | null;
  /** What the last read said; null: nothing, or not of this owner. */
  readonly last: OwnerReading | null;
  readonly peakBytesPerSecond: number;
  /** The sums over all reads. */
  readonly total: {
    readonly reads: number;
    readonly reported: number;
    readonly exclusive: number;
    readonly readMs: number;
  };
}

/** A run, as far as it has told of itself. */
export interface RunState {
  readonly devices: readonly RunDevice[];
  /** null: it told of none; a machine that is only watched has none. */
  readonly phase: MigrationPhase | null;
  /** null: not known yet, or nothing is migrated. */
  readonly round: number | null;
  /** In this round. */
  readonly sentBytes: number;
  readonly remainingBytes: number | null;
  /** Sent; null, as of the next: not known yet. */
  readonly bytesPerSecond: number | null;
  readonly expectedDowntimeMs: number | null;
  /** Milliseconds from the run's beginning to its newest event. */
  readonly atMs: number;
  /** From the read before the last one to that; 0: nothing was read. */
  readonly elapsedMs: number;
  readonly reads: number;
  /** Owners in the order in which reads first named them, then the devices that no read tells of. */
  readonly owners: readonly OwnerState[];
  /** Migration states of devices, by their names, as their VMM told them. */
  readonly deviceStates: Readonly<Record<string, string>>;
  /** Whether a migration that is watched will end; null: nobody judges. */
  readonly diagnosis: Diagnosis | null;
  /** Events that a feed left out. */
  readonly lost: number;
}

/** A run of which nothing but its devices is known. */
export function startOfRun(devices: readonly RunDevice[]): RunState {
  return {
    devices,
    phase: null,
    round: null,
    sentBytes: 0,
    remainingBytes: null,
    bytesPerSecond: null,
    expectedDowntimeMs: null,
    atMs: 0,
    elapsedMs: 0,
    reads: 0,
    owners: unread(devices, []),
    deviceStates: {},
    diagnosis: null,
    lost: 0,
  };
}

/** The state after an event. */
export function afterEvent(state: RunState, event: RunEvent): RunState {
  switch (event.type) {
    case "phase":
      return { ...state, phase: event.phase, atMs: event.atMs };
    case "round":
      // What remains is the next round's, of which nothing was sent.
      return { ...state, round: event.round.round, sentBytes: 0, remainingBytes: event.round.remaining };
    case "progress": {
      const { atMs, round, sentBytes, remainingBytes, bytesPerSecond, expectedDowntimeMs } = event;
      return { ...state, atMs, round, sentBytes, remainingBytes, bytesPerSecond, expectedDowntimeMs };
    }
    case "read":
      return afterRead(state, event);
    case "device":
      return { ...state, atMs: event.atMs, deviceStates: { ...state.deviceStates, [event.device]: event.state } };
    case "diagnosis":
      return { ...state, atMs: event.atMs, diagnosis: event };
    case "lost":
      return { ...state, lost: state.lost + event.events };
  }
}

/** Owners that the last read told of. */
export function ownersRead({ owners }: Pick<RunState, "owners">): (OwnerState & { readonly last: OwnerReading })[] {
  return owners.flatMap((owner) => (owner.last === null ? [] : [{ ...owner, last: owner.last }]));
}

function afterRead(state: RunState, { atMs, round, elapsedMs, owners }: MigrationEvent & { type: "read" }): RunState {
  const known = state.owners.filter(({ total }) => total.reads > 0);
  const named = Object.keys(owners).filter((name) => !known.some((owner) => owner.name === name));
  const read = [...known, ...named.map((name) => ownerState(state.devices, name, parseOwner(name)))].map((owner) =>
    Object.hasOwn(owners, owner.name) ? withReading(owner, owners[owner.name], elapsedMs) : { ...owner, last: null },
  );
  return {
    ...state,
    atMs,
    // A read ends a round, and may be told of once the next is under way.
    round: round === null ? state.round : Math.max(round, state.round ?? 0),
    elapsedMs,
    reads: state.reads + 1,
    owners: [...read, ...unread(state.devices, read)],
  };
}

function withReading(owner: OwnerState, read: OwnerRead, elapsedMs: number): OwnerState {
  const bytesPerSecond = (read.reported * PAGE_SIZE * 1000) / Math.max(elapsedMs, 1);
  const { reads, reported, exclusive, readMs } = owner.total;
  return {
    ...owner,
    last: { ...read, bytesPerSecond },
    peakBytesPerSecond: Math.max(owner.peakBytesPerSecond, bytesPerSecond),
    total: {
      reads: reads + 1,
      reported: reported + read.reported,
      exclusive: exclusive + read.exclusive,
      readMs: readMs + read.readMs,
    },
  };
}

/** The devices that no owner covers. A suspended one is none's, although a container has it. */
function unread(devices: readonly RunDevice[], read: readonly OwnerState[]): OwnerState[] {
  return devices
    .filter(({ id, suspended = false }) => suspended || !read.some(({ owner }) => covers(owner, id)))
    .map(({ id }) => ownerState(devices, id, deviceOwner(id)));
}

function ownerState(devices: readonly RunDevice[], name: string, owner: Owner): OwnerState {
  const own = devices.filter(({ id }) => devicesOf(owner).includes(id));
  const tracker = trackerOf(owner, () => {
    const [device] = own;
    return device?.suspended === true ? "suspended" : (device?.tracker ?? "unknown");
  });
  // In a domain, a device with a log of its own has that log's granule.
  const like = own.find((device) => device.tracker === tracker);
  return {
    name,
    owner,
    tracker,
    model: [...new Set(own.map(({ model }) => model))].join("+"),
    granule: owner.kind === "cpu" ? PAGE_SIZE : (like?.granule ?? null),
    last: null,
    peakBytesPerSecond: 0,
    total: { reads: 0, reported: 0, exclusive: 0, readMs: 0 },
  };
}
