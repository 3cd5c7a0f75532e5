import { homedir } from "node:os";
import { join } from "node:path";

/** Returns the default folder of journals: `$XDG_STATE_HOME/dirtmap`, or `~/.local/state/dirtmap`. */
export function defaultJournalDirectory(): string {
  return join(process.env.XDG_STATE_HOME ?? join(homedir(), ".local", "state"), "dirtmap");
}

/** Days for which finished journals are kept, because the operator of a source elsewhere may need them. */
export const KEPT_DAYS = 30;
