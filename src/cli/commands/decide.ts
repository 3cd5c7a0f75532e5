import type { Command } from "commander";
import { EXIT_CODES } from "../exit-codes.js";
import { printResult, runCommand, warn } from "../output.js";

interface DecideOptions {
  readonly journal?: string;
  readonly json?: boolean;
}

/*
 * `resume` may be said only of a destination that does not run: the source waits for its answer first, where that may
 * still come. `abort` is obeyed at once.
 */

/** `dirtmap resume`: the operator takes an undecided migration's machine back. */
export function addResume(program: Command): void {
  addDecision(program, "resume", {
    description: "Takes the machine back after a handover that was not confirmed",
    when: "Only when it is certain that the destination does not run the machine, and never will: it was stopped for good.",
  });
}

/** `dirtmap abort`: the operator gives an undecided migration's machine up at the source. */
export function addAbort(program: Command): void {
  addDecision(program, "abort", {
    description: "Gives the source's machine up after a handover that was not confirmed",
    when: "Only when the machine runs at the destination, or is not wanted any more: the source's memory is let go.",
  });
}

function addDecision(
  program: Command,
  decision: "resume" | "abort",
  { description, when }: { description: string; when: string },
): void {
  program
    .command(decision)
    .description(description)
    .argument("[id]", "the migration, as `dirtmap list` names it; without it those that wait are listed")
    .option("--journal <folder>", "where the migration keeps its journal, if not in the default place")
    .option("--json", "print the result as JSON")
    .addHelpText(
      "after",
      `\n${when}\n\nExamples:\n  dirtmap ${decision} 1f0c93ab\n  dirtmap ${decision} 1f0c93ab --journal /var/lib/dirtmap --json`,
    )
    .action((id: string | undefined, { journal, json = false }: DecideOptions) =>
      runCommand({ json }, async () => {
        if (id === undefined) {
          const { printJournals } = await import("../run/shared/print-journals.js");
          printJournals(journal, { show: ({ standing }) => standing === "waits", json });
          warn(`nothing was decided: say which migration, \`dirtmap ${decision} ID\``);
          return EXIT_CODES.usage.code;
        }
        const [{ sendDecision }, { defaultJournalDirectory }] = await Promise.all([
          import("../../migration/decision.js"),
          import("../../migration/journal-directory.js"),
        ]);
        const message = await sendDecision(journal ?? defaultJournalDirectory(), id, decision);
        printResult({ migration: id, decision, message }, { json, text: (safe) => safe.message });
        return EXIT_CODES.done.code;
      }),
    );
}
