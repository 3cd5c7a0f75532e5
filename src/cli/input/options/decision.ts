import type { Command } from "commander";
import { addJournalOption, type JournalOption } from "./places.js";

/** What decides a migration that was not confirmed. */
export interface DecisionInput extends JournalOption {
  /** Absent: those that wait are listed. */
  readonly id?: string;
  readonly json?: boolean;
}

/** Adds the argument and the options of {@link DecisionInput}. @param when the operator may decide so */
export function addDecisionOptions(command: Command, when: string): Command {
  const decide = `dirtmap ${command.name()}`;
  return addJournalOption(
    command.argument("[id]", "the migration, as `dirtmap list` names it; without it, list those that wait"),
  )
    .option("--json", "print the result as JSON")
    .addHelpText(
      "after",
      `\n${when}\n\nExamples:\n  ${decide} 1f0c93ab\n  ${decide} 1f0c93ab --journal /var/lib/dirtmap --json`,
    );
}
