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
 * Migrates a running machine and returns what happened. The machine runs at the end in exactly one place, or, where the
 * result is `indeterminate`, nowhere here: the source stays paused. Until the destination is READY any error, and the signal,
 * leave the source running.
 * @throws UsageError where nothing was started: no such destination, an incompatible one, a policy that can't be kept
 */
export async function migrate(options: MigrateOptions): Promise<MigrationReport> {
  const source = await import("./source.js");
  return await source.migrate(options);
}

/**
 * Receives one machine from a source that has connected. Where it runs in the end, it is the caller's; otherwise it is
 * discarded, and a record says so before the source is told. It never runs without the source's GO.
 */
export async function receive(options: ReceiveOptions): Promise<ReceiveResult> {
  const destination = await import("./destination.js");
  return await destination.receive(options);
}

/**
 * Listens for sources. Control connections and channels come to the same port; port 0 is any that is free.
 * @param args.onRefused is told of connections that were turned away
 * @throws UsageError `PORT_IN_USE`, `PORT_FORBIDDEN`, `BAD_ADDRESS`, `NO_CREDENTIALS`
 */
export async function listen(
  args: Parameters<typeof import("./transport/listener.js")["listen"]>[0],
): Promise<Listener> {
  const listener = await import("./transport/listener.js");
  return await listener.listen(args);
}

/**
 * Tells the source of an undecided migration what the operator decided, as `dirtmap resume` and `dirtmap abort` do, and
 * returns its answer as a sentence. If its process has ended, `abort` is recorded in its place.
 * @param directory where its journal is
 * @param greetingMs milliseconds for which a process that stands still is waited for. Default: 10 000
 * @throws UsageError `NO_SUCH_MIGRATION`, `NOT_UNDECIDED`; DirtmapError `DECISION_REFUSED`, with the source's words;
 * `SOURCE_ENDED` where the machine ended with its process; `SOURCE_SILENT`, `SOURCE_NOT_LISTENING`, `SOURCE_ELSEWHERE`
 * where nothing was decided; `NO_ANSWER` where it isn't known
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

/** Lists the journals of a directory, the latest first. One that can't be read is listed, too. @throws the system's error */
export async function listJournals(directory: string): Promise<ListedJournal[]> {
  const journals = await import("./journals.js");
  return journals.listJournals(directory);
}

/**
 * Removes journals that have been over for 30 days, and what processes that ended left beside them. Never one that waits for
 * a decision, or whose process lives or can't be seen from here. Returns the names of the files removed.
 * @throws the system's error
 */
export async function pruneJournals(directory: string): Promise<string[]> {
  const journals = await import("./journals.js");
  return journals.pruneJournals(directory);
}
