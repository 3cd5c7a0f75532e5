import { randomUUID } from "node:crypto";
import { closeSync, existsSync, fdatasyncSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { DirtmapError, explain, UsageError } from "../errors.js";
import { safeText } from "../safe-text.js";
import { makeFolder } from "../sys/output-file.js";
import { MAX_IDENTITY_TEXT, thisProcess } from "../sys/process-identity.js";
import { writeAll, writeWholeFile } from "../sys/whole-file.js";
import { SOFTWARE } from "./software.js";

/*
 * What each side of a migration must remember over a crash: whether it may run the machine. A journal is a file of a few
 * slots, each for a record in JSON, padded to a line of its own; the last whole one counts. The file is whole and on disk
 * before the migration starts, so that a later record, written while the machine stands still, costs one write in place
 * and one flush of data, and finds its room. A record that a crash has torn is no JSON and doesn't count.
 */

/** Raised when journals change so that another Dirtmap could misread them. The first line of a journal always has it. */
export const JOURNAL_VERSION = 2;

/** `given-up`: the source must not run the machine again, unless the destination or the operator gives it back. */
export const SOURCE_RECORDS = ["running", "given-up", "gone"] as const;
/** Only `running` may have run. `loading` and `ready` never did. `discarded`: never did and never will. */
export const DESTINATION_RECORDS = ["loading", "ready", "running", "discarded"] as const;

const MIGRATION_ID = /^[0-9a-z-]{1,64}$/;
const identityText = z.string().max(MAX_IDENTITY_TEXT);
const common = {
  schemaVersion: z.literal(JOURNAL_VERSION),
  /** Which Dirtmap wrote it. */
  software: z.string().max(128),
  migration: z.string().regex(MIGRATION_ID),
  /** The process that wrote it. */
  process: z.strictObject({
    pid: z.int().min(1),
    started: identityText,
    boot: identityText,
    host: identityText,
  }),
  /** The other side, as a person would look for it. */
  peer: z.string().max(256),
  at: z.iso.datetime(),
};
const recordSchema = z.discriminatedUnion("side", [
  z.strictObject({ ...common, side: z.literal("source"), state: z.enum(SOURCE_RECORDS) }),
  z.strictObject({ ...common, side: z.literal("destination"), state: z.enum(DESTINATION_RECORDS) }),
]);

/** The contents of a journal's file. */
export type JournalRecord = z.output<typeof recordSchema>;
export type SourceRecord = (typeof SOURCE_RECORDS)[number];
export type DestinationRecord = (typeof DESTINATION_RECORDS)[number];
/** The two sides of a migration. */
export type Side = JournalRecord["side"];

/** Records are a few hundred bytes; what others name in them makes them at most about 2000. */
const SLOT_BYTES = 2048;
/** A side records at most four states. */
const SLOTS = 8;
const FILE_BYTES = SLOT_BYTES * SLOTS;

/** A migration's id: short enough to type, and for the path of a UNIX socket. */
export function newMigrationId(): string {
  return randomUUID().slice(0, 8);
}

/** The file of one side's journal. */
export function journalPath(directory: string, migration: string, side: Side): string {
  return join(directory, `${migration}.${side}.json`);
}

/** The migration and side whose journal a file of the directory is; null for any other file. */
export function journalOf(file: string): { migration: string; side: Side } | null {
  const [, migration, side] = /^([0-9a-z-]{1,64})\.(source|destination)\.json$/.exec(file) ?? [];
  return migration === undefined ? null : { migration, side: side as Side };
}

/** Refuses what cannot be an id, so that no path is made of it. @throws UsageError `NO_SUCH_MIGRATION` */
export function checkMigrationId(migration: string): void {
  if (MIGRATION_ID.test(migration)) return;
  throw new UsageError(`'${migration}' is no migration's id`, {
    code: "NO_SUCH_MIGRATION",
    remedy: "`dirtmap list` shows those that wait for a decision",
  });
}

/** One side's durable state. `State` is what this side may record. */
export class Journal<State extends SourceRecord | DestinationRecord> {
  readonly path: string;
  readonly #base: Pick<JournalRecord, "migration" | "peer" | "side">;

  private constructor(directory: string, side: Side, migration: string, peer: string) {
    this.path = journalPath(directory, migration, side);
    this.#base = { migration, peer: peer.slice(0, 256), side };
  }

  /**
   * Makes a source's journal and records `running`. It is whole and on disk, or nothing is left of it.
   * @throws UsageError `JOURNAL` where the directory can't be written, or for an id used before
   */
  static source(directory: string, migration: string, peer: string): Journal<SourceRecord> {
    return Journal.#create(new Journal<SourceRecord>(directory, "source", migration, peer), directory, "running");
  }

  /** Makes a destination's journal and records `loading`. @throws UsageError `JOURNAL` */
  static destination(directory: string, migration: string, peer: string): Journal<DestinationRecord> {
    const journal = new Journal<DestinationRecord>(directory, "destination", migration, peer);
    return Journal.#create(journal, directory, "loading");
  }

  /** Goes on with a source's journal that is there already; records nothing. */
  static reopenSource(directory: string, { migration, peer }: JournalRecord): Journal<SourceRecord> {
    return new Journal<SourceRecord>(directory, "source", migration, peer);
  }

  static #create<State extends SourceRecord | DestinationRecord>(
    journal: Journal<State>,
    directory: string,
    state: State,
  ): Journal<State> {
    const whole = Buffer.alloc(FILE_BYTES, " ");
    journal.#slot(state).copy(whole);
    try {
      makeFolder(directory, { mode: 0o700 });
      writeWholeFile(journal.path, whole, { mode: 0o600, exclusive: true });
    } catch (cause) {
      if (existsSync(journal.path)) {
        throw new UsageError(`there is a journal ${journal.path} already`, {
          code: "JOURNAL",
          remedy: "each migration has an id of its own: start it again",
        });
      }
      throw new UsageError(`the journal ${journal.path} can't be written: ${explain(cause)}`, {
        code: "JOURNAL",
        remedy: `give a directory with --journal that can be written and has ${FILE_BYTES / 1024} KiB of room`,
        cause,
      });
    }
    return journal;
  }

  /**
   * Returns when the state is on disk. Blocks for the flush (a millisecond or so): what follows must not happen before.
   * @throws DirtmapError `DECIDED` where the machine was given up for good: nothing is recorded after that. The file
   * system's error; then the state on disk is the old one or the new one, whole
   */
  record(state: State): void {
    const file = openSync(this.path, "r+");
    try {
      const slots = slotsOf(readFileSync(file));
      if (state !== "gone" && lastOf(slots)?.state === "gone") {
        throw new DirtmapError(`${this.path} has the machine as given up for good`, { code: "DECIDED" });
      }
      if (slots.length >= SLOTS) throw new Error("the journal is full");
      writeAll(file, this.#slot(state), slots.length * SLOT_BYTES);
      fdatasyncSync(file);
    } finally {
      closeSync(file);
    }
  }

  #slot(state: State): Buffer {
    const record = {
      schemaVersion: JOURNAL_VERSION,
      software: SOFTWARE,
      ...this.#base,
      process: thisProcess(),
      at: new Date().toISOString(),
      state,
    };
    const slot = Buffer.alloc(SLOT_BYTES, " ");
    const line = Buffer.from(JSON.stringify(record));
    if (line.length >= SLOT_BYTES) throw new Error(`a record of ${line.length} bytes`);
    line.copy(slot);
    slot[SLOT_BYTES - 1] = 0x0a;
    return slot;
  }
}

/** What was ever written to the slots, in order. */
function slotsOf(file: Buffer): string[] {
  const slots = Array.from({ length: Math.ceil(file.length / SLOT_BYTES) }, (_, slot) =>
    file.toString("utf8", slot * SLOT_BYTES, (slot + 1) * SLOT_BYTES).trim(),
  );
  return slots.slice(0, slots.findLastIndex((text) => text !== "") + 1);
}

/** The record that counts; null if there is none. */
function lastOf(slots: readonly string[]): JournalRecord | null {
  return slots.map(parseRecord).findLast((found) => found !== null) ?? null;
}

/** The record in a slot; null for one that a crash has torn. */
function parseRecord(text: string): JournalRecord | null {
  try {
    return recordSchema.parse(JSON.parse(text));
  } catch {
    return null;
  }
}

/**
 * Reads one side's journal; null where there is none.
 * @throws DirtmapError `JOURNAL` for a file that is no journal, or not a whole one: nothing can be concluded from it;
 * `JOURNAL_VERSION` for another Dirtmap's
 */
export function readJournal(directory: string, migration: string, side: Side): JournalRecord | null {
  checkMigrationId(migration);
  const path = journalPath(directory, migration, side);
  let file: Buffer;
  let size: number;
  try {
    ({ size } = statSync(path));
    file = firstBytes(path, Math.min(size, FILE_BYTES));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw new DirtmapError(`the journal ${path} can't be read: ${explain(error)}`, { code: "JOURNAL" });
  }
  refuseOtherVersion(path, file);
  if (size !== FILE_BYTES) throw noJournal(`${path} is not a whole journal: it has ${size} of ${FILE_BYTES} bytes`);
  const record = lastOf(slotsOf(file));
  if (record === null || record.migration !== migration || record.side !== side) {
    throw noJournal(`${path} is not this migration's journal`);
  }
  return record;
}

function firstBytes(path: string, bytes: number): Buffer {
  const fd = openSync(path, "r");
  try {
    const into = Buffer.alloc(bytes);
    return into.subarray(0, readSync(fd, into, 0, bytes, 0));
  } finally {
    closeSync(fd);
  }
}

function noJournal(message: string): DirtmapError {
  return new DirtmapError(message, { code: "JOURNAL", remedy: "find out by hand on which side the machine runs" });
}

const versionSchema = z.object({ schemaVersion: z.int(), software: z.string().max(128).optional() });

/** All versions have the number in their first line. @throws DirtmapError `JOURNAL_VERSION` */
function refuseOtherVersion(path: string, file: Buffer): void {
  let found: z.output<typeof versionSchema>;
  try {
    found = versionSchema.parse(JSON.parse(file.toString("utf8").split("\n")[0]));
  } catch {
    return;
  }
  const { schemaVersion, software } = found;
  if (schemaVersion === JOURNAL_VERSION) return;
  const age = schemaVersion < JOURNAL_VERSION ? "an older" : "a newer";
  const name = software === undefined ? "Dirtmap" : `Dirtmap (${safeText(software)})`;
  throw new DirtmapError(
    `the journal ${path} is ${age} ${name}'s: it has version ${schemaVersion}, and ${SOFTWARE} reads ${JOURNAL_VERSION}`,
    { code: "JOURNAL_VERSION", remedy: "decide with the Dirtmap that wrote it, then remove the file" },
  );
}
