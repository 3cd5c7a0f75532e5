import { PAGE_SIZE } from "../../memory/address.js";
import type { MigrationEvent } from "../../migration/events.js";

/*
 * What `dirtmap top` knows: made of the events of a run alone, whether they come from this process's trackers or from
 * another's feed. Pure.
 */

/** What is looked at. */
export interface TopHeader {
  /** A scenario's name, or what was asked for. */
  readonly title: string;
  readonly host: string;
  readonly memoryBytes: number | null;
  readonly devices: readonly TopDevice[];
}

export interface TopDevice {
  readonly id: string;
  readonly model: string;
  readonly tracker: string;
  /** Bytes per dirty bit; null: none, or not known. */
  readonly granule: number | null;
}

/** What writers counted themselves since the last time: the devices' own counters, and the vCPUs'. Bytes. */
export interface WrittenEvent {
  readonly type: "written";
  readonly atMs: number;
  readonly elapsedMs: number;
  readonly bytes: Readonly<Record<string, number>>;
}

export type TopEvent = MigrationEvent | WrittenEvent | { readonly type: "lost"; readonly events: number };

/** One tracker's owner, as its last read and those before tell. */
export interface TopOwner {
  readonly owner: string;
  readonly tracker: string;
  readonly granule: number | null;
  /** Bytes dirtied per second in the last interval. */
  readonly bytesPerSecond: number;
  readonly peakBytesPerSecond: number;
  /** Of the last read's pages, the share that no other tracker reported; null where it reported none. */
  readonly exclusive: number | null;
  readonly readMs: number;
  readonly heat: readonly number[];
}

export interface TopState {
  readonly header: TopHeader;
  readonly phase: string | null;
  readonly round: number | null;
  readonly atMs: number;
  /** Of the last read; 0 before it. */
  readonly elapsedMs: number;
  readonly reads: number;
  readonly owners: readonly TopOwner[];
  /** Bytes per second by the writers' own counters; empty where nobody tells. */
  readonly written: Readonly<Record<string, number>>;
  /** Pages dirtied per stretch of RAM: the last read's, and less and less of those before. */
  readonly heat: readonly number[];
  /** Events that a feed left out because this reader was too slow. */
  readonly lost: number;
}

/** What is left of the heat with each read. */
const COOLING = 0.5;

export function startOf(header: TopHeader): TopState {
  return {
    header,
    phase: null,
    round: null,
    atMs: 0,
    elapsedMs: 0,
    reads: 0,
    owners: [],
    written: {},
    heat: [],
    lost: 0,
  };
}

/** The state after an event. */
export function after(state: TopState, event: TopEvent): TopState {
  switch (event.type) {
    case "phase":
      return { ...state, phase: event.phase, atMs: event.atMs };
    case "lost":
      return { ...state, lost: state.lost + event.events };
    case "written":
      return {
        ...state,
        atMs: event.atMs,
        elapsedMs: event.elapsedMs,
        written: perSecond(event.bytes, event.elapsedMs),
      };
    case "read": {
      const { atMs, round, elapsedMs } = event;
      const before = new Map(state.owners.map((owner) => [owner.owner, owner]));
      const owners = Object.entries(event.owners).map(([owner, { reported, exclusive, readMs, heat }]): TopOwner => {
        const bytesPerSecond = (reported * PAGE_SIZE * 1000) / Math.max(elapsedMs, 1);
        return {
          owner,
          ...trackerOf(state.header, owner),
          bytesPerSecond,
          peakBytesPerSecond: Math.max(bytesPerSecond, before.get(owner)?.peakBytesPerSecond ?? 0),
          exclusive: reported === 0 ? null : exclusive / reported,
          readMs,
          heat,
        };
      });
      const heat = cooled(state.heat, owners);
      return { ...state, atMs, round, elapsedMs, reads: state.reads + 1, owners, heat };
    }
    default:
      return state;
  }
}

/** Per kind of tracker, what its owners dirtied together, and what reading them took. */
export function byTracker({ owners }: TopState): { tracker: string; bytesPerSecond: number; readMs: number }[] {
  const sums = new Map<string, { tracker: string; bytesPerSecond: number; readMs: number }>();
  for (const { tracker, bytesPerSecond, readMs } of owners) {
    const sum = sums.get(tracker) ?? { tracker, bytesPerSecond: 0, readMs: 0 };
    sums.set(tracker, {
      tracker,
      bytesPerSecond: sum.bytesPerSecond + bytesPerSecond,
      readMs: sum.readMs + readMs,
    });
  }
  return [...sums.values()];
}

/** The devices that an owner stands for: several share a domain. */
export function membersOf(owner: string): string[] {
  return owner.replace(/^domain:/, "").split("+");
}

function trackerOf({ devices }: TopHeader, owner: string): { tracker: string; granule: number | null } {
  if (owner === "cpu") return { tracker: "cpu", granule: PAGE_SIZE };
  const ids = membersOf(owner);
  const members = devices.filter(({ id }) => ids.includes(id));
  if (ids.length > 1) return { tracker: "iommu", granule: members[0]?.granule ?? null };
  return { tracker: members[0]?.tracker ?? owner, granule: members[0]?.granule ?? null };
}

function cooled(before: readonly number[], owners: readonly TopOwner[]): number[] {
  const buckets = Math.max(before.length, ...owners.map(({ heat }) => heat.length), 0);
  return Array.from({ length: buckets }, (_, i) => {
    const now = owners.reduce((sum, { heat }) => sum + (heat[i] ?? 0), 0);
    const rest = (before[i] ?? 0) * COOLING + now;
    return rest < 0.5 ? 0 : rest;
  });
}

function perSecond(bytes: Readonly<Record<string, number>>, elapsedMs: number): Record<string, number> {
  return Object.fromEntries(
    Object.entries(bytes).map(([writer, count]) => [writer, (count * 1000) / Math.max(elapsedMs, 1)]),
  );
}
