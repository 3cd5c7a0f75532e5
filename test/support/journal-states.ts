import { readFileSync } from "node:fs";
import { journalPath, type Side } from "../../src/migration/journal.js";

/** Every state that a side recorded, in order: the last is what readJournal() returns. */
export function statesOf(directory: string, migration: string, side: Side): string[] {
  return readFileSync(journalPath(directory, migration, side), "utf8")
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => (JSON.parse(line) as { state: string }).state);
}
