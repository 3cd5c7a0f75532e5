import { sendDecision } from "../../../migration/decision.js";
import { defaultJournalDirectory } from "../../../migration/journal-directory.js";
import type { FindMachine } from "../../../migration/outliving.js";
import { EXIT_CODES } from "../../exit-codes.js";
import type { DecisionInput } from "../../input/options/decision.js";
import { printResult, warn } from "../../output.js";
import type { Run } from "../../run-command.js";
import { printJournals } from "./print-journals.js";

/**
 * Decides an undecided migration. `resume` may be said only of a destination that does not run: the source waits for the
 * destination's answer first, if that may still come. `abort` is obeyed at once.
 */
export function deciding(decision: "resume" | "abort"): Run<DecisionInput> {
  return async ({ id, journal, json = false }) => {
    if (id === undefined) {
      printJournals(journal, { show: ({ standing }) => standing === "waits", json });
      warn(`nothing was decided: say which migration, \`dirtmap ${decision} ID\``);
      return EXIT_CODES.usage.code;
    }
    const message = await sendDecision(journal ?? defaultJournalDirectory(), id, decision, undefined, findGuest);
    printResult({ migration: id, decision, message }, { json, text: (safe) => safe.message });
    return EXIT_CODES.done.code;
  };
}

/** Guests of QEMU are the machines that outlive their process; what moves one is loaded only for it. */
const findGuest: FindMachine = async (note, migration) =>
  (await import("../../../qemu/left-guest.js")).LeftGuest.find(note, migration);
