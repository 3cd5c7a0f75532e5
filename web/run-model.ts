import type { ReadEvent } from "./src/migration/events.js";
import type { RoundReport } from "./src/migration/report.js";
import type { KnownConditions } from "./src/observe/conditions.js";
import type { FeedEvent, RunHeader } from "./src/observe/feed/schema.js";
import {
  afterEvent,
  type OwnerReading,
  type OwnerState,
  ownersRead,
  type RunState,
  startOfRun,
} from "./src/observe/run-state.js";
import type { PastRun } from "./src/observe/server/api-schema.js";

/*
 * A run as the page shows it: its state, as all views have it, and what plots need of the time before. The same for one in
 * progress and for one that is over.
 */

export type { FeedEvent, OwnerState, PastRun, RoundReport, RunHeader };

/** Reads that a live run shows: a minute at ten a second. */
const MAX_READS = 600;

/** One read of the trackers, as plots use it. */
export interface ReadColumn {
  readonly atMs: number;
  readonly round: number | null;
  readonly seconds: number;
  /** Pages per stretch of RAM, over all owners: a page that two report counts twice. */
  readonly sum: readonly number[];
  /** By the owners' names. */
  readonly owners: ReadonlyMap<string, OwnerReading>;
}

/** A run as the page shows it. */
export class RunModel {
  readonly header: RunHeader;
  readonly rounds: RoundReport[] = [];
  columns: ReadColumn[] = [];
  state: RunState;
  /** Changes with each event. */
  version = 0;
  readonly #keep: number;

  /** @param keep reads at most, the newest */
  constructor(header: RunHeader, keep = MAX_READS) {
    this.header = header;
    this.state = startOfRun(header.devices);
    this.#keep = keep;
  }

  get phase(): string {
    return this.state.phase ?? (this.header.kind === "watch" ? "watching" : "connecting");
  }

  /** Owners that a read told of. */
  get ownersRead(): OwnerState[] {
    return this.state.owners.filter(({ total }) => total.reads > 0);
  }

  add(event: FeedEvent): void {
    this.version++;
    this.state = afterEvent(this.state, event);
    if (event.type === "round") this.rounds.push(event.round);
    if (event.type === "read") this.#addColumn(event);
  }

  #addColumn({ atMs, round, elapsedMs }: ReadEvent): void {
    const owners = new Map(ownersRead(this.state).map(({ name, last }) => [name, last]));
    const heats = [...owners.values()].map(({ heat }) => heat);
    const buckets = Math.max(1, ...heats.map(({ length }) => length));
    const sum = Array.from({ length: buckets }, (_, i) => heats.reduce((pages, heat) => pages + (heat[i] ?? 0), 0));
    this.columns.push({ atMs, round, seconds: Math.max(elapsedMs, 1) / 1000, sum, owners });
    if (this.columns.length > this.#keep) this.columns.shift();
  }
}

/** Bytes per second that an owner dirtied before a read. */
export function rateOf({ owners }: ReadColumn, name: string): number {
  return owners.get(name)?.bytesPerSecond ?? 0;
}

/** What is known of a run's conditions: an older Dirtmap kept only what its report says. */
export function conditionsOf({ conditions, report, header }: PastRun): KnownConditions {
  const { memoryBytes, downtimeLimitMs } = header ?? {};
  return conditions ?? { design: report?.design, memoryBytes, downtimeLimitMs };
}

/** The model of a run that is over. */
export function modelOf({ header, report, reads, ...summary }: PastRun): RunModel {
  const { name: run, kind, scenario, host, startedAt } = summary;
  const unknown = { run, kind, scenario, host, startedAt, devices: [], memoryBytes: 0 };
  const model = new RunModel(header ?? unknown, Number.POSITIVE_INFINITY);
  for (const read of reads) model.add(read);
  for (const round of report?.rounds ?? []) model.add({ type: "round", round });
  return model;
}
