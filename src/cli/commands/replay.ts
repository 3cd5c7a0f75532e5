import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { exitCodesHelp } from "../exit-codes.js";
import { addPolicyOptions, type PolicyOptions } from "../input/options/policy.js";
import { addViewOptions, type ViewOptions } from "../input/options/watch.js";
import { runBy } from "../run-command.js";

export interface ReplayInput extends PolicyOptions, ViewOptions {
  readonly trace: string;
}

const NOTES = `
Examples:
  dirtmap replay production.dtrc
  dirtmap replay production.dtrc --tracker vf0=device --duration 10s
  dirtmap migrate --scenario production.dtrc --predict
  dirtmap plan --scenario production.dtrc
  dirtmap predict --trace production.dtrc --bandwidth 10Gbit

The machine has as much memory as the recorded one had, and a device for each owner in the trace. Each device writes the
pages that its owner dirtied, at the times at which it did, over and over. A trace can be given to every command that takes
a scenario, and a scenario's devices can replay traces, too (model: replay, trace: FILE, owner: vf0).
`;

/** `dirtmap replay`: a machine that does what a trace says, and what its trackers see of it. */
export function declareReplay(program: Command): Command {
  const command = program
    .command("replay")
    .argument("<trace>", "the trace that `dirtmap record` wrote")
    .description("run a machine that dirties memory as a trace says, and show what its trackers see");
  addViewOptions(addPolicyOptions(command), DEFAULTS.viewIntervalMs).addHelpText(
    "after",
    `${NOTES}\n${exitCodesHelp()}`,
  );
  return runBy<ReplayInput>(command, () => import("../run/replay.js"));
}
