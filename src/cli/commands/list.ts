import type { Command } from "commander";
import { addJournalOption, type JournalOption } from "../input/options/places.js";
import { runBy } from "../run-command.js";

export interface ListInput extends JournalOption {
  readonly all?: boolean;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap list
  dirtmap list --all
  dirtmap list --journal /var/lib/dirtmap --json | jq -r '.migrations[] | select(.standing == "waits") | .commands[]'

Both sides of a migration keep a journal. A journal of a migration that is over is removed after 30 days, when a migration
starts or this command runs. A journal stays if it may still need a decision, if its process lives or can't be seen from
here, or if it can't be read.
`;

/** `dirtmap list`: the migrations of a journal folder, and what they wait for. */
export function declareList(program: Command): Command {
  const command = addJournalOption(
    program.command("list").description("list the migrations that go on, or wait for a decision, by their journals"),
  )
    .option("--all", "list migrations that are over, too")
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES);
  return runBy<ListInput>(command, () => import("../run/list.js"));
}
