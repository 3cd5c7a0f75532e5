import { shellWord } from "../../shell-word.js";

/** Something that stands between a device, or the whole host, and its use. */
export interface Obstacle {
  /** A stable, upper-case name that programs may test. */
  readonly code: string;
  /** What is the matter: a clause, without a full stop. */
  readonly message: string;
  /** What would change it: a phrase in the imperative. */
  readonly remedy: string;
  /** Shell commands that do it, in this order, as root; none where it takes more than commands. */
  readonly commands: readonly string[];
  /** What the host loses by these commands besides: clauses, without a full stop. */
  readonly warnings: readonly string[];
}

/** An obstacle, of which commands and warnings may be left out. */
export function obstacle(
  given: Pick<Obstacle, "code" | "message" | "remedy"> & Partial<Pick<Obstacle, "commands" | "warnings">>,
): Obstacle {
  return { commands: [], warnings: [], ...given };
}

/** A command that writes a value to a file of sysfs. */
export function echo(value: string, path: string): string {
  return `echo ${shellWord(value)} > ${shellWord(path)}`;
}
