import { randomUUID } from "node:crypto";
import {
  closeSync,
  existsSync,
  fdatasyncSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  writeSync,
} from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { DirtmapError, UsageError } from "../errors.js";
import { makeFolder } from "../output-file.js";

/*
 * What each side of a migration must remember over a crash: whether it may run the machine. A journal is a file of a few
 * slots, each for a record in JSON, padded to a line of its own; the last whole one counts. The file has its full
 * size from the start, so that a later record, written while the machine stands still, costs one write in place and one
 * flush of data. A record that a crash has torn is no JSON and doesn't count.
 */

/** `given-up`: the source must not run the machine again, unless the destination or the operator gives it back. */
export const SOURCE_RECORDS = ["running", "given-up", "gone"] as const;
/** Only `running` may have run. `loading` and `ready` never did. `discarded`: never did and never will. */
export const DESTINATION_RECORDS = ["loading", "ready", "running", "discarded"] as const;

const common = {
  schemaVersion: z.literal(1),
  migration: z.string().regex(/^[0-9a-z-]{1,64}$/),
  /** The process that wrote it. */
  pid: z.int().min(1),
  /** The other side, as a person would look for it. */
  peer: z.string().max(256),
  at: z.string().max(64),
};
const recordSchema = z.discriminatedUnion("side", [
  z.strictObject({ ...common, side: z.literal("source"), state: z.enum(SOURCE_RECORDS) }),
  z.strictObject({ ...common, side: z.literal("destination"), state: z.enum(DESTINATION_RECORDS) }),
]);

/** What a journal's file holds. */
export type JournalRecord = z.output<typeof recordSchema>;
export type SourceRecord = (typeof SOURCE_RECORDS)[number];
export type DestinationRecord = (typeof DESTINATION_RECORDS)[number];
export type Side = JournalRecord["side"];

/** Records are a few hundred bytes; the peer's name makes them at most about 1800. */
const SLOT_BYTES = 2048;
/** A side records at most four states. */
const SLOTS = 8;
const FILE_BYTES = SLOT_BYTES * SLOTS;

/** A migration's id: short enough to type, and for the path of a UNIX socket. */
export function newMigrationId(): string {
  return randomUUID().slice(0, 8);
}

/** Where journals are kept if nothing else is said: `$XDG_STATE_HOME/dirtmap`, or `~/.local/state/dirtmap`. */
export function defaultJournalDirectory(): string {
  return join(process.env.XDG_STATE_HOME ?? join(homedir(), ".local", "state"), "dirtmap");
}

/** The file of one side's journal. */
export function journalPath(directory: string, migration: string, side: Side): string {
  return join(directory, `${migration}.${side}.json`);
}

/** One side's durable state. `State` is what this side may record. */
export class Journal<State extends SourceRecord | DestinationRecord> {
  readonly path: string;
  readonly #base: Pick<JournalRecord, "migration" | "peer" | "side">;
  readonly #directory: string;

  private constructor(directory: string, side: Side, migration: string, peer: string) {
    this.path = journalPath(directory, migration, side);
    this.#directory = directory;
    this.#base = { migration, peer: peer.slice(0, 256), side };
  }

  /** Makes a source's journal and records `running`. @throws UsageError `JOURNAL` where the directory can't be written, or for an id used before */
  static source(directory: string, migration: string, peer: string): Journal<SourceRecord> {
    return Journal.#create(new Journal<SourceRecord>(directory, "source", migration, peer), "running");
  }

  /** Makes a destination's journal and records `loading`. @throws UsageError `JOURNAL` */
  static destination(directory: string, migration: string, peer: string): Journal<DestinationRecord> {
    return Journal.#create(new Journal<DestinationRecord>(directory, "destination", migration, peer), "loading");
  }

  /** Goes on with a source's journal that is there already; records nothing. */
  static reopenSource(directory: string, { migration, peer }: JournalRecord): Journal<SourceRecord> {
    return new Journal<SourceRecord>(directory, "source", migration, peer);
  }

  static #create<State extends SourceRecord | DestinationRecord>(
    journal: Journal<State>,
    state: State,
  ): Journal<State> {
    if (existsSync(journal.path)) {
      throw new UsageError(`there is a journal ${journal.path} already`, {
        code: "JOURNAL",
        remedy: "each migration has an id of its own: start it again",
      });
    }
    try {
      makeFolder(journal.#directory, { mode: 0o700 });
      journal.#begin(state);
    } catch (cause) {
      throw new UsageError(`the journal ${journal.path} can't be written: ${(cause as Error).message}`, {
        code: "JOURNAL",
        remedy: "give a directory that can be written with --journal",
        cause,
      });
    }
    return journal;
  }

  /**
   * Returns when the state is on disk. Blocks for the flush (a millisecond or so): what follows must not happen before.
   * @throws the file system's error; then the state on disk is the old one or the new one, whole
   */
  record(state: State): void {
    const file = openSync(this.path, "r+");
    try {
      const used = slotsOf(readFileSync(file)).length;
      if (used >= SLOTS) throw new Error("the journal is full");
      writeSync(file, this.#slot(state), 0, SLOT_BYTES, used * SLOT_BYTES);
      fdatasyncSync(file);
    } finally {
      closeSync(file);
    }
  }

  /** Makes the file with its first record, whole or not at all. */
  #begin(state: State): void {
    const temporary = `${this.path}.${process.pid}.tmp`;
    const file = openSync(temporary, "w", 0o600);
    try {
      writeSync(file, Buffer.concat([this.#slot(state), Buffer.alloc(FILE_BYTES - SLOT_BYTES, " ")]));
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(temporary, this.path);
    const directory = openSync(this.#directory, "r");
    try {
      fsyncSync(directory);
    } finally {
      closeSync(directory);
    }
  }

  #slot(state: State): Buffer {
    const record = { schemaVersion: 1, ...this.#base, pid: process.pid, at: new Date().toISOString(), state };
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
 * @throws DirtmapError `JOURNAL` for a file that is no journal: nothing can be concluded from it
 */
export function readJournal(directory: string, migration: string, side: Side): JournalRecord | null {
  const path = journalPath(directory, migration, side);
  let file: Buffer;
  try {
    file = readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw new DirtmapError(`the journal ${path} can't be read: ${(error as Error).message}`, { code: "JOURNAL" });
  }
  const records = file.length > FILE_BYTES ? [] : slotsOf(file).map(parseRecord);
  const record = records.findLast((found) => found !== null) ?? null;
  if (record === null) {
    throw new DirtmapError(`${path} is not a migration's journal`, {
      code: "JOURNAL",
      remedy: "find out by hand on which side the machine runs",
    });
  }
  return record;
}

/** May the side that wrote this record run the machine, as far as the record tells, without asking anybody? */
export function mayRun(record: JournalRecord): boolean {
  return record.state === "running";
}
