import { homedir } from "node:os";
import { join } from "node:path";

/** Where journals are kept if nothing else is said: `$XDG_STATE_HOME/dirtmap`, or `~/.local/state/dirtmap`. */
export function defaultJournalDirectory(): string {
  return join(process.env.XDG_STATE_HOME ?? join(homedir(), ".local", "state"), "dirtmap");
}

/** Days for which journals that are over are kept: the operator of a source elsewhere may need what they tell. */
export const KEPT_DAYS = 30;
