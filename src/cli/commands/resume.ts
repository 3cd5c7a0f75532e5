import type { Command } from "commander";
import { addDecisionOptions, type DecisionInput } from "../input/options/decision.js";
import { runBy } from "../run-command.js";

/** `dirtmap resume`: the operator takes an undecided migration's machine back. */
export function declareResume(program: Command): Command {
  const command = program
    .command("resume")
    .description("take the machine back to the source, after a handover that was not confirmed");
  addDecisionOptions(
    command,
    "Only when it is certain that the destination does not run the machine, and never will: it was stopped for good.",
  );
  return runBy<DecisionInput>(command, () => import("../run/resume.js"));
}
