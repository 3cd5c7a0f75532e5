import { afterEvent, ownersRead, type RunDevice, type RunEvent, type RunState, startOfRun } from "../run-state.js";

/*
 * What `dirtmap top` knows: a run's state, what writers count themselves, and where memory was dirtied lately. Made of events
 * alone. Pure.
 */

/** What is looked at. */
export interface TopHeader {
  /** A scenario's name, or what was asked for. */
  readonly title: string;
  readonly host: string;
  readonly memoryBytes: number | null;
  readonly devices: readonly RunDevice[];
}

/** What writers counted themselves since the last time: the devices' own counters, and the vCPUs'. Bytes. */
export interface WrittenEvent {
  readonly type: "written";
  readonly atMs: number;
  readonly elapsedMs: number;
  readonly bytes: Readonly<Record<string, number>>;
}

export type TopEvent = RunEvent | WrittenEvent;

export interface TopState {
  readonly header: TopHeader;
  readonly run: RunState;
  /** Bytes per second by the writers' own counters; empty where nobody tells. */
  readonly written: Readonly<Record<string, number>>;
  /** Pages dirtied per stretch of RAM: the last read's, and less and less of those before. */
  readonly heat: readonly number[];
}

/** What is left of the heat with each read. */
const COOLING = 0.5;

export function startOf(header: TopHeader): TopState {
  return { header, run: startOfRun(header.devices), written: {}, heat: [] };
}

/** The state after an event. */
export function after(state: TopState, event: TopEvent): TopState {
  if (event.type === "written") {
    const { atMs, elapsedMs, bytes } = event;
    return { ...state, run: { ...state.run, atMs, elapsedMs }, written: perSecond(bytes, elapsedMs) };
  }
  const run = afterEvent(state.run, event);
  return { ...state, run, heat: event.type === "read" ? cooled(state.heat, run) : state.heat };
}

/** Per kind of tracker, what its owners dirtied together, and what reading them took. */
export function byTracker({ run }: TopState): { tracker: string; bytesPerSecond: number; readMs: number }[] {
  const sums = new Map<string, { tracker: string; bytesPerSecond: number; readMs: number }>();
  for (const { tracker, last } of ownersRead(run)) {
    const sum = sums.get(tracker) ?? { tracker, bytesPerSecond: 0, readMs: 0 };
    sums.set(tracker, {
      tracker,
      bytesPerSecond: sum.bytesPerSecond + last.bytesPerSecond,
      readMs: sum.readMs + last.readMs,
    });
  }
  return [...sums.values()];
}

function cooled(before: readonly number[], run: RunState): number[] {
  const heats = ownersRead(run).map(({ last }) => last.heat);
  const buckets = Math.max(before.length, ...heats.map(({ length }) => length), 0);
  return Array.from({ length: buckets }, (_, i) => {
    const now = heats.reduce((sum, heat) => sum + (heat[i] ?? 0), 0);
    const rest = (before[i] ?? 0) * COOLING + now;
    return rest < 0.5 ? 0 : rest;
  });
}

function perSecond(bytes: Readonly<Record<string, number>>, elapsedMs: number): Record<string, number> {
  return Object.fromEntries(
    Object.entries(bytes).map(([writer, count]) => [writer, (count * 1000) / Math.max(elapsedMs, 1)]),
  );
}
