import type { Command } from "commander";
import { addDecisionOptions, type DecisionInput } from "../input/options/decision.js";
import { runBy } from "../run-command.js";

/** `dirtmap abort`: the operator gives an undecided migration's machine up at the source. */
export function declareAbort(program: Command): Command {
  const command = program
    .command("abort")
    .description("give the machine up at the source, after a handover that was not confirmed");
  addDecisionOptions(
    command,
    "Only when the machine runs at the destination, or is no longer wanted: the source's memory is let go.",
  );
  return runBy<DecisionInput>(command, () => import("../run/abort.js"));
}
