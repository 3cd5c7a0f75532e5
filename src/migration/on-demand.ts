import type { Decision } from "./decision.js";
import type { ReceiveOptions, ReceiveResult } from "./destination.js";
import type { ListedJournal } from "./journals.js";
import type { MigrationReport } from "./report.js";
import type { MigrateOptions } from "./source.js";
import type { Listener } from "./transport/listener.js";

/*
 * What the main door has of a migration. Each function loads its module when it is called: who only has trackers chosen
 * and read loads nothing that moves a machine. Inside the package the modules are imported themselves.
 */

/**
 * Migrates a running machine and returns the report. At the end the machine runs in exactly one place. If the result is
 * `indeterminate`, it does not run here: the source stays paused. Until the source gives the machine up, after READY, any error
 * and the signal leave the source running.
 * @throws UsageError if nothing was started: no such destination, an incompatible one, a policy that can't be followed
 */
export async function migrate(options: MigrateOptions): Promise<MigrationReport> {
  const source = await import("./source.js");
  return await source.migrate(options);
}

/**
 * Receives one machine from a source that has connected. If the machine runs in the end, it belongs to the caller. Otherwise
 * it is discarded, and the journal says so before the source is told. It never runs without the source's GO.
 */
export async function receive(options: ReceiveOptions): Promise<ReceiveResult> {
  const destination = await import("./destination.js");
  return await destination.receive(options);
}

/**
 * Listens for sources. Control connections and channels come to the same port. With port 0 the system chooses a free one.
 * @param args.onRefused is called with the error of each connection that was turned away
 * @throws UsageError `PORT_IN_USE`, `PORT_FORBIDDEN`, `BAD_ADDRESS`, `NO_CREDENTIALS`
 */
export async function listen(
  args: Parameters<typeof import("./transport/listener.js")["listen"]>[0],
): Promise<Listener> {
  const listener = await import("./transport/listener.js");
  return await listener.listen(args);
}

/**
 * Sends the operator's decision to the source of an undecided migration, as `dirtmap resume` and `dirtmap abort` do, and returns
 * the answer as a sentence. If the source's process has ended, `abort` is recorded in its place.
 * @param directory the folder of its journal
 * @param greetingMs the longest wait for a process that does not respond, in milliseconds. Default: 10 000
 * @throws UsageError `NO_SUCH_MIGRATION`, `NOT_UNDECIDED`; DirtmapError `DECISION_REFUSED`, with the source's words;
 * `SOURCE_ENDED` if the machine ended with its process; `SOURCE_SILENT`, `SOURCE_NOT_LISTENING`, `SOURCE_ELSEWHERE` if nothing
 * was decided; `NO_ANSWER` if it is unknown whether it was
 */
export async function sendDecision(
  directory: string,
  migration: string,
  decision: Decision,
  greetingMs?: number,
): Promise<string> {
  const decisions = await import("./decision.js");
  return await decisions.sendDecision(directory, migration, decision, greetingMs);
}

/** Lists the journals of a folder, the latest first, including those that can't be read. @throws the system's error */
export async function listJournals(directory: string): Promise<ListedJournal[]> {
  const journals = await import("./journals.js");
  return journals.listJournals(directory);
}

/**
 * Removes journals that have been over for 30 days, and files that ended processes left beside them. Never removes a journal
 * that waits for a decision, or whose process lives or can't be seen from here. Returns the names of the files removed.
 * @throws the system's error
 */
export async function pruneJournals(directory: string): Promise<string[]> {
  const journals = await import("./journals.js");
  return journals.pruneJournals(directory);
}
