import { defaultJournalDirectory } from "../../../migration/journal-directory.js";
import { type ListedJournal, listJournals, type Standing } from "../../../migration/journals.js";
import { printResult } from "../../output.js";
import { journalsText } from "../../text/journals-text.js";

const ORDER: readonly Standing[] = ["waits", "unknown", "in-progress", "over"];

/** Prints what is known of migrations by their journals, those first that wait for a decision. */
export function printJournals(
  journal: string | undefined,
  { show, json }: { show: (listed: ListedJournal) => boolean; json: boolean },
): void {
  const directory = journal ?? defaultJournalDirectory();
  const now = Date.now();
  const shown = listJournals(directory)
    .filter(show)
    .sort((a, b) => ORDER.indexOf(a.standing) - ORDER.indexOf(b.standing));
  const migrations = shown.map(({ record, ...listed }) => ({
    ...listed,
    state: record?.state ?? null,
    at: record?.at ?? null,
    ageMs: record === null ? null : Math.max(0, now - Date.parse(record.at)),
    pid: record?.process.pid ?? null,
    host: record?.process.host ?? null,
    peer: record?.peer ?? null,
  }));
  printResult({ directory, migrations }, { json, text: (safe) => journalsText(safe.directory, safe.migrations) });
}
