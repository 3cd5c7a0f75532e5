import { readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { DirtmapError, explain, UsageError } from "../errors.js";
import { makeFolder } from "../sys/output-file.js";
import { writeWholeFile } from "../sys/whole-file.js";

/*
 * A machine that does not end with the process that moves it: an outside VMM's guest. Beside the source's journal lies a note that
 * says how it is found again, from before anything of it is touched until it is known where it runs. What the note says is its
 * mover's affair.
 */

/** Devices of a guest, with their sockets and settings: a few KiB. */
const MAX_NOTE_BYTES = 64 * 1024;

/** What came of taking a machine back. */
export interface TakenBack {
  /** As a sentence. */
  readonly said: string;
  /** False: the machine runs, and taking it back once more may bring back what it still lacks. */
  readonly isWhole: boolean;
}

/** Such a machine, found again by its note. */
export interface OutlivingMachine extends AsyncDisposable {
  /** It runs here again, as before the migration or as far as can be. @throws DirtmapError where it does not run */
  takeBack(): Promise<TakenBack>;
  /** It never runs here again. Returns what became of it, as a sentence; what could not be done is part of that. */
  giveUp(): Promise<string>;
}

/** Finds it. @throws DirtmapError `MACHINE_ENDED` where it is there no more */
export type FindMachine = (note: unknown, migration: string) => Promise<OutlivingMachine>;

/** The file of a migration's note. */
export function notePath(directory: string, migration: string): string {
  return join(directory, `${migration}.machine.json`);
}

/** The migration whose note a file of the directory is; null for any other file. */
export function noteOf(file: string): string | null {
  return /^([0-9a-z-]{1,64})\.machine\.json$/.exec(file)?.[1] ?? null;
}

/** On disk, whole, when it returns. @throws UsageError `JOURNAL` */
export function writeNote(directory: string, migration: string, note: unknown): void {
  const path = notePath(directory, migration);
  const text = `${JSON.stringify(note)}\n`;
  try {
    if (Buffer.byteLength(text) > MAX_NOTE_BYTES) throw new Error(`it has more than ${MAX_NOTE_BYTES} bytes`);
    makeFolder(directory, { mode: 0o700 });
    writeWholeFile(path, text, { mode: 0o600 });
  } catch (cause) {
    throw new UsageError(`${path} can't be written: ${explain(cause)}`, {
      code: "JOURNAL",
      remedy: "give a directory with --journal that can be written",
      cause,
    });
  }
}

/** Null where there is none. @throws DirtmapError `JOURNAL` for one that can't be read */
export function readNote(directory: string, migration: string): unknown {
  const path = notePath(directory, migration);
  try {
    const size = statSync(path, { throwIfNoEntry: false })?.size;
    if (size === undefined) return null;
    if (size > MAX_NOTE_BYTES) throw new Error(`it has ${size} bytes`);
    return JSON.parse(readFileSync(path, "utf8")) as unknown;
  } catch (cause) {
    throw new DirtmapError(`${path} can't be read: ${explain(cause)}`, {
      code: "JOURNAL",
      remedy: "let the machine go on by hand: its devices first, then its VMM",
      cause,
    });
  }
}

/** It is known where the machine runs. */
export function removeNote(directory: string, migration: string): void {
  rmSync(notePath(directory, migration), { force: true });
}
