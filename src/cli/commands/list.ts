import type { Command } from "commander";
import { EXIT_CODES } from "../exit-codes.js";
import { runCommand } from "../output.js";

interface ListOptions {
  readonly journal?: string;
  readonly all?: boolean;
  readonly json?: boolean;
}

const EXAMPLES = `
Examples:
  dirtmap list
  dirtmap list --all
  dirtmap list --journal /var/lib/dirtmap --json | jq -r '.migrations[] | select(.standing == "waits") | .commands[]'

Both sides of a migration keep a journal. Those that are over are removed after 30 days, when a migration starts or this
command runs; never one that may still need a decision, whose process lives or can't be seen from here, or that can't be
read.
`;

/** `dirtmap list`: the migrations of a journal folder, and what they wait for. */
export function addList(program: Command): void {
  program
    .command("list")
    .description("Lists migrations that wait for a decision, or go on, by their journals")
    .option("--journal <folder>", "where migrations keep their journals, if not in the default place")
    .option("--all", "list those that are over, too")
    .option("--json", "print the result as JSON")
    .addHelpText("after", EXAMPLES)
    .action(({ journal, all = false, json = false }: ListOptions) =>
      runCommand({ json }, async () => {
        const [{ tidyUp }, { printJournals }] = await Promise.all([
          import("../kept/tidy.js"),
          import("../run/shared/print-journals.js"),
        ]);
        await tidyUp(journal);
        printJournals(journal, { show: all ? () => true : ({ standing }) => standing !== "over", json });
        return EXIT_CODES.done.code;
      }),
    );
}
