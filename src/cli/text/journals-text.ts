import type { ListedJournal } from "../../migration/journals.js";
import { table } from "../../observe/table.js";

/** What `dirtmap list` prints: a line per migration, and below it what it means and what may be typed. */
export function journalsText(
  directory: string,
  migrations: readonly (Omit<ListedJournal, "record"> & {
    readonly state: string | null;
    readonly ageMs: number | null;
    readonly pid: number | null;
  })[],
): string {
  if (migrations.length === 0) return `no migration in ${directory} waits or goes on`;
  const [head, ...rows] = table([
    ["migration", "side", "state", "age", "process"],
    ...migrations.map(({ migration, side, state, ageMs, pid, alive }) => [
      migration,
      side,
      state ?? "?",
      ageMs === null ? "?" : ageText(ageMs),
      pid === null ? "?" : `${pid} ${alive === null ? "?" : alive ? "lives" : "has ended"}`,
    ]),
  ]);
  const details = migrations.map(({ says, commands }) => [says, ...commands].map((line) => `    ${line}`));
  return [head, ...rows.flatMap((row, i) => [row, ...details[i]])].join("\n");
}

/** An age for people, in its largest unit: `12 s`, `3 min`, `5 h`, `29 d`. */
function ageText(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 2 * 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}
