import { explain } from "../../errors.js";
import type { MachineDescription } from "../../host/description.js";
import { type MigrationEvent, migrationEvents, type ReadEvent } from "../../migration/events.js";
import { newMigrationId } from "../../migration/journal.js";
import type { MigrationReport } from "../../migration/report.js";
import type { RunConditions } from "../../observe/conditions.js";
import type { RunHeader } from "../../observe/feed/schema.js";
import type { TrackerChoice } from "../../tracking/choice.js";
import type { StoreOption } from "../input/options/places.js";
import { openStoreOf } from "./store.js";

/*
 * What a run leaves besides its report: a live feed while it goes on, and its reads in the store afterwards. Neither may
 * harm the run: what goes wrong with them is a note.
 */

/** Reads that are kept of a run; of a longer one every second, every fourth … */
const MAX_READS = 2000;

/** The header of a migration. */
export function migrationHeader(
  {
    id,
    scenario,
    startedAt,
    downtimeLimitMs,
  }: { id: string; scenario: string; startedAt: Date; downtimeLimitMs: number },
  description: MachineDescription,
  choices: readonly TrackerChoice[],
): RunHeader {
  return { ...headerOf({ id, kind: "migration", scenario, startedAt }, description, choices), downtimeLimitMs };
}

/** The header of the migration of a QEMU guest. */
export function guestHeader(
  { id, startedAt, downtimeLimitMs }: { id: string; startedAt: Date; downtimeLimitMs: number },
  memoryBytes: number,
  devices: readonly Pick<RunHeader["devices"][number], "id" | "model" | "tracker" | "granule">[],
): RunHeader {
  return {
    run: id,
    kind: "migration",
    scenario: "QEMU guest",
    host: "qemu",
    startedAt: startedAt.toISOString(),
    devices: devices.map((device) => ({ ...device, domain: null })),
    memoryBytes,
    downtimeLimitMs,
  };
}

/** The header of a machine that is watched, and not migrated. */
export function watchHeader(
  { scenario, startedAt }: { scenario: string; startedAt: Date },
  description: MachineDescription,
  choices: readonly TrackerChoice[],
): RunHeader {
  return headerOf({ id: newMigrationId(), kind: "watch", scenario, startedAt }, description, choices);
}

function headerOf(
  { id, kind, scenario, startedAt }: { id: string; kind: string; scenario: string; startedAt: Date },
  { memory, devices }: MachineDescription,
  choices: readonly TrackerChoice[],
): RunHeader {
  return {
    run: id,
    kind,
    scenario,
    host: "emulated",
    startedAt: startedAt.toISOString(),
    devices: choices.map(({ device, tracker, granule, domain, suspend }) => ({
      id: device,
      model: devices.find((described) => described.id === device)?.model ?? "",
      tracker,
      granule,
      domain: domain?.key ?? null,
      ...(suspend ? { suspended: true } : {}),
    })),
    memoryBytes: memory,
  };
}

/** Collects the reads that this process's run publishes, until it is disposed. */
export class ReadRecorder implements Disposable {
  #reads: ReadEvent[] = [];
  /** Of so many reads one is kept. */
  #stride = 1;
  #seen = 0;
  readonly #listener = (event: unknown) => this.#note(event as MigrationEvent);

  constructor() {
    migrationEvents.subscribe(this.#listener);
  }

  get reads(): readonly ReadEvent[] {
    return this.#reads;
  }

  [Symbol.dispose](): void {
    migrationEvents.unsubscribe(this.#listener);
  }

  #note(event: MigrationEvent): void {
    if (event.type !== "read") return;
    if (this.#seen++ % this.#stride !== 0) return;
    this.#reads.push(event);
    if (this.#reads.length < MAX_READS) return;
    this.#reads = this.#reads.filter((_, index) => index % 2 === 0);
    this.#stride *= 2;
  }
}

/** Keeps a migration, however it ended, unless that was not wanted. Never throws: the migration is over. */
export function keepMigration(
  option: StoreOption,
  {
    header,
    report,
    reads,
    conditions,
  }: { header: RunHeader; report: MigrationReport; reads: readonly ReadEvent[]; conditions: RunConditions },
  note: (text: string) => void,
): void {
  try {
    using store = openStoreOf(option);
    const { run: name, kind, scenario, host, startedAt } = header;
    store?.saveRun({ kind, name, scenario, host, startedAt, result: report.result, header, report, reads, conditions });
  } catch (error) {
    note(`this run is not in the store: ${explain(error)}`);
  }
}
