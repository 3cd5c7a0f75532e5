import type { MigrationReport, RoundReport } from "../dist/src/migration/report.js";
import type { KnownConditions, RunConditions } from "../dist/src/observe/conditions.js";
import type { FeedEvent, FeedHeader } from "../dist/src/observe/feed/schema.js";

/*
 * What is known of a run, made of its header and its events: the same for one in progress and for one that is over.
 */

export type { FeedEvent, FeedHeader, MigrationReport, RoundReport };
export type ReadEvent = Extract<FeedEvent, { type: "read" }>;
export type Progress = Extract<FeedEvent, { type: "progress" }>;

export const PAGE_SIZE = 4096;

/** Reads that a live run shows: a minute at ten a second. */
const MAX_READS = 600;

/** One tracker's owner, over the run. */
export interface Owner {
  /** With the ledger's name: a device, `cpu`, `domain:a+b`. */
  readonly key: string;
  readonly label: string;
  readonly tracker: string;
  readonly model: string;
  readonly granule: number | null;
  reported: number;
  exclusive: number;
  readMs: number;
  reads: number;
}

/** One read of the trackers, as plots use it. */
export interface ReadColumn {
  readonly atMs: number;
  readonly round: number | null;
  readonly seconds: number;
  /** Pages per stretch of RAM, over all owners: a page that two report counts twice. */
  readonly sum: Float32Array;
  readonly owners: ReadonlyMap<
    string,
    { readonly heat: Float32Array; readonly reported: number; readonly readMs: number }
  >;
}

/** A run as the page shows it. */
export class RunModel {
  readonly header: FeedHeader;
  readonly owners = new Map<string, Owner>();
  readonly rounds: RoundReport[] = [];
  readonly phases: { phase: string; atMs: number }[] = [];
  columns: ReadColumn[] = [];
  progress: Progress | null = null;
  text = "";
  lost = 0;
  /** Changes with each event. */
  version = 0;
  readonly #keep: number;

  /** @param keep reads at most, the newest */
  constructor(header: FeedHeader, keep = MAX_READS) {
    this.header = header;
    this.#keep = keep;
  }

  get phase(): string {
    return this.phases.at(-1)?.phase ?? "connecting";
  }

  add(event: FeedEvent): void {
    this.version++;
    switch (event.type) {
      case "phase":
        this.phases.push({ phase: event.phase, atMs: event.atMs });
        this.text = event.text ?? "";
        break;
      case "round":
        this.rounds.push(event.round);
        break;
      case "progress":
        this.progress = event;
        break;
      case "read":
        this.#addRead(event);
        break;
      case "lost":
        this.lost += event.events;
        break;
    }
  }

  #addRead({ atMs, round, elapsedMs, owners }: ReadEvent): void {
    const sum = new Float32Array(bucketsOf(owners));
    const column = new Map<string, { heat: Float32Array; reported: number; readMs: number }>();
    for (const [key, { reported, exclusive, readMs, heat }] of Object.entries(owners)) {
      const owner = this.#owner(key);
      owner.reported += reported;
      owner.exclusive += exclusive;
      owner.readMs += readMs;
      owner.reads++;
      column.set(key, { heat: new Float32Array(heat), reported, readMs });
      for (let i = 0; i < heat.length; i++) sum[i] = (sum[i] ?? 0) + (heat[i] ?? 0);
    }
    this.columns.push({ atMs, round, seconds: Math.max(elapsedMs, 1) / 1000, sum, owners: column });
    if (this.columns.length > this.#keep) this.columns.shift();
  }

  #owner(key: string): Owner {
    const known = this.owners.get(key);
    if (known !== undefined) return known;
    const label = key.replace(/^domain:/, "");
    const members = label.split("+");
    const devices = this.header.devices.filter(({ id }) => members.includes(id));
    const one = devices.length === 1 ? devices[0] : undefined;
    const made: Owner = {
      key,
      label,
      tracker: devices.length > 0 ? [...new Set(devices.map(({ tracker }) => tracker))].join("+") : key,
      model: [...new Set(devices.map(({ model }) => model))].join("+"),
      granule: one?.granule ?? null,
      reported: 0,
      exclusive: 0,
      readMs: 0,
      reads: 0,
    };
    this.owners.set(key, made);
    return made;
  }
}

/** Bytes per second that an owner dirtied before a read. */
export function rateOf({ seconds, owners }: ReadColumn, owner: string): number {
  return ((owners.get(owner)?.reported ?? 0) * PAGE_SIZE) / seconds;
}

function bucketsOf(owners: ReadEvent["owners"]): number {
  return Math.max(1, ...Object.values(owners).map(({ heat }) => heat.length));
}

/** A run that is over, as the API gives it. */
export interface PastRun {
  readonly id: number;
  readonly name: string;
  readonly kind: string;
  readonly scenario: string;
  readonly host: string;
  readonly startedAt: string;
  readonly result: string;
  readonly totalMs: number | null;
  readonly downtimeMs: number | null;
  readonly header: FeedHeader;
  readonly report: Partial<MigrationReport> & { readonly predicted?: Predicted | null };
  readonly reads: readonly ReadEvent[];
  /** null: kept by a Dirtmap that did not record them. */
  readonly conditions: RunConditions | null;
}

/** What is known of a run's conditions: an older Dirtmap kept only what its report says. */
export function conditionsOf({ conditions, report, header }: PastRun): KnownConditions {
  const { memoryBytes, downtimeLimitMs } = header;
  return conditions ?? { design: report.design, memoryBytes, downtimeLimitMs };
}

/** What was foreseen of a migration before it began. */
export interface Predicted {
  readonly converges: boolean;
  readonly rounds: number;
  readonly downtimeMs: number | null;
  /** From the first page sent until the destination runs. */
  readonly movingMs: number | null;
  readonly inTheWay: readonly string[];
}

/** The model of a run that is over. */
export function modelOf({ header, report, reads }: PastRun): RunModel {
  const model = new RunModel(header, Number.POSITIVE_INFINITY);
  for (const read of reads) model.add(read);
  for (const round of report.rounds ?? [])
    model.add({ type: "round", round: { ...round, byDevice: { ...round.byDevice } } });
  let atMs = 0;
  for (const { phase, ms } of report.phases ?? []) {
    model.phases.push({ phase, atMs });
    atMs += ms;
  }
  return model;
}
