import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { exitCodesHelp } from "../exit-codes.js";
import { addMachineOptions, type MachineOptions } from "../input/options/machine.js";
import { addPolicyOptions, type PolicyOptions } from "../input/options/policy.js";
import { addWatchOptions, type WatchOptions } from "../input/options/watch.js";
import { runBy } from "../run-command.js";

export interface RecordInput extends MachineOptions, PolicyOptions, WatchOptions {
  readonly output: string;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap record --output mixed.dtrc
  dirtmap record --scenario nic-pair --interval 20ms --duration 1m --output nic-pair.dtrc
  dirtmap predict --trace nic-pair.dtrc --bandwidth 10Gbit
  dirtmap replay nic-pair.dtrc

The trace says which pages each tracker's owner dirtied in each interval, and nothing of what was written (docs/trace.md).
Ctrl-C ends it early; what was recorded until then is kept.

There is no --host linux here: only a guest's VMM can read the trackers of its devices, because each has one reader. A VMM
that is written with Dirtmap's library records with TraceWriter (dirtmap/evidence).
`;

/** `dirtmap record`: what each device dirtied per interval, in a file. */
export function declareRecord(program: Command): Command {
  const command = program
    .command("record")
    .description("record which pages each device dirties, interval by interval, to replay them or predict from them");
  addWatchOptions(addPolicyOptions(addMachineOptions(command)), {
    durationMs: DEFAULTS.recordMs,
    intervalMs: DEFAULTS.recordIntervalMs,
  })
    .requiredOption("-o, --output <file>", "write the trace to this file")
    .option("--json", "print the result as JSON")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`);
  return runBy<RecordInput>(command, () => import("../run/record.js"));
}
