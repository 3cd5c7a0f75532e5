import { existsSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { explain } from "../errors.js";
import { isAlive, lives } from "../sys/process-identity.js";
import { decisionCommand } from "./decision.js";
import { type JournalRecord, journalOf, readJournal, type Side } from "./journal.js";
import { KEPT_DAYS } from "./journal-directory.js";
import { noteOf, notePath } from "./outliving.js";

/*
 * All journals of a directory: which of them wait for the operator, and which are over and may be removed.
 */

/**
 * The state of a journal. `in-progress`: its process lives, and there is nothing to decide. `waits`: it waits for the operator.
 * `over`: there is nothing left to decide here. `unknown`: it can't be read, or its process can't be seen from here.
 */
export type Standing = "in-progress" | "waits" | "over" | "unknown";

/** A journal in a list: the state of one side of a migration. */
export interface ListedJournal {
  readonly migration: string;
  readonly side: Side;
  readonly standing: Standing;
  /** Null if the journal can't be read. */
  readonly record: JournalRecord | null;
  /** True if the process that wrote it lives; null if that can't be told from here. */
  readonly alive: boolean | null;
  /** The meaning for the operator, as a sentence without its full stop. */
  readonly says: string;
  /** The commands that the operator may type; empty if there is nothing to decide here. */
  readonly commands: readonly string[];
}

/** Every journal of a directory, the latest first. One that can't be read is listed, too. */
export function listJournals(directory: string): ListedJournal[] {
  return filesOf(directory)
    .flatMap((file) => journalOf(file) ?? [])
    .flatMap(({ migration, side }) => listed(directory, migration, side) ?? [])
    .sort((a, b) => (b.record?.at ?? "").localeCompare(a.record?.at ?? ""));
}

function filesOf(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}

/** Null: it was removed meanwhile. */
function listed(directory: string, migration: string, side: Side): ListedJournal | null {
  try {
    const record = readJournal(directory, migration, side);
    if (record === null) return null;
    const alive = lives(record.process);
    return { migration, side, record, alive, ...standingOf(record, alive, directory) };
  } catch (error) {
    return { migration, side, record: null, alive: null, standing: "unknown", says: explain(error), commands: [] };
  }
}

/** What a record means, given that its process lives or not. */
function standingOf(
  record: JournalRecord,
  alive: boolean | null,
  directory: string,
): Pick<ListedJournal, "standing" | "says" | "commands"> {
  const { migration, peer, process } = record;
  const unseen = `its process ran on ${process.host}, and can't be seen from here`;
  const [resume, abort] = (["resume", "abort"] as const).map((decision) =>
    decisionCommand(decision, migration, directory),
  );
  const outlives = record.side === "source" && existsSync(notePath(directory, migration));
  if (outlives && alive === false && record.state === "running") {
    const says = "its process has ended, and its VMM may stand still: `resume` lets it run as before";
    return { standing: "waits", says, commands: [resume] };
  }
  if (record.side === "source" && record.state === "given-up") {
    if (alive === null) return { standing: "waits", says: `given up; ${unseen}`, commands: [resume, abort] };
    if (!alive && outlives) {
      const says = `paused in its VMM: \`resume\` if the machine does not run at ${peer} and never will, \`abort\` if it does`;
      return { standing: "waits", says, commands: [resume, abort] };
    }
    if (!alive) {
      const says = `its process has ended, and its memory with it: the machine runs at ${peer} or nowhere`;
      return { standing: "waits", says, commands: [abort] };
    }
    const says = `paused: \`resume\` if the machine does not run at ${peer} and never will, \`abort\` if it does`;
    return { standing: "waits", says, commands: [resume, abort] };
  }
  const over = record.state === "gone" || record.state === "discarded";
  const standing: Standing = over || alive === false ? "over" : alive ? "in-progress" : "unknown";
  const says = alive === null && !over ? unseen : whatIsOver(record, alive === true);
  return { standing, says, commands: [] };
}

function whatIsOver({ side, state }: JournalRecord, alive: boolean): string {
  switch (state) {
    case "running":
      return alive ? "the machine runs here" : "the machine ran here until its process ended";
    case "gone":
      return "the machine is given up here for good";
    case "discarded":
      return "the machine never ran here and never will";
    default:
      if (alive) return "the machine is on its way";
      return side === "destination" ? "the machine never ran here and never will" : "the machine was given up";
  }
}

const KEPT_MS = KEPT_DAYS * 86_400_000;

/** How long a socket without a journal is left alone: its journal may be newer than the look at the journals. */
const ORPHAN_MS = 60_000;

/**
 * Removes journals that have been over for {@link KEPT_DAYS} days; sockets and half-made journals of processes that have
 * ended. Never a journal that waits for a decision, whose process lives or can't be seen from here, or that this Dirtmap
 * can't read. Returns what was removed, as file names.
 */
export function pruneJournals(directory: string, now = Date.now()): string[] {
  const journals = listJournals(directory);
  const removed: string[] = [];
  const remove = (file: string) => {
    rmSync(join(directory, file), { force: true });
    removed.push(file);
  };
  for (const { migration, side, standing, record } of journals) {
    const age = now - Date.parse(record?.at ?? "");
    if (standing !== "over" || age <= KEPT_MS) continue;
    remove(`${migration}.${side}.json`);
    if (side === "source" && existsSync(notePath(directory, migration))) remove(`${migration}.machine.json`);
  }
  const sources = new Map(journals.filter(({ side }) => side === "source").map((each) => [each.migration, each]));
  for (const file of filesOf(directory)) {
    const noted = noteOf(file);
    if (noted !== null && !sources.has(noted) && ageOf(join(directory, file), now) > ORPHAN_MS) remove(file);
    const [, socketOf] = /^([0-9a-z-]{1,64})\.sock$/.exec(file) ?? [];
    const [, writer] = /^\.?[0-9a-z-]{1,64}\.(?:source|destination|machine)\.json\.(\d{1,10})\.tmp$/.exec(file) ?? [];
    if (writer !== undefined && !isAlive(Number(writer))) remove(file);
    if (socketOf === undefined) continue;
    const source = sources.get(socketOf);
    if (source === undefined ? ageOf(join(directory, file), now) > ORPHAN_MS : source.alive === false) remove(file);
  }
  return removed;
}

function ageOf(path: string, now: number): number {
  return now - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? now);
}
