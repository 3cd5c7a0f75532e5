import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { exitCodesHelp } from "../exit-codes.js";
import { addHostOption, type HostOptions } from "../input/options/host.js";
import { addMachineOptions, type MachineOptions } from "../input/options/machine.js";
import { addPolicyOptions, type PolicyOptions } from "../input/options/policy.js";
import { addViewOptions, type ViewOptions } from "../input/options/watch.js";
import { runBy } from "../run-command.js";

export interface TopInput extends Omit<HostOptions, "device">, MachineOptions, PolicyOptions, ViewOptions {
  readonly run?: string;
}

const NOTES = `
Examples:
  dirtmap top                              a migration that is under way on this machine
  dirtmap top --run 2d45d78b
  dirtmap top --scenario mixed             a scenario's machine, watched and not migrated
  dirtmap top --scenario mixed --once --json
  dirtmap top --host vfio-user:./vf0.sock  what a served device writes, by its own counters

Dirty bits have one reader. For a run that is under way, the ledger of its owner is shown, through its feed. A scenario's
machine is started for this command, which reads its trackers. A served device's log is never read here, because the log's
owner would lose what is taken: its counters are shown instead. There is no --host linux: a guest's HWPTs and logs belong to
its VMM, and there is no way in from outside. A VMM that is written with Dirtmap's library publishes a feed.
`;

/** `dirtmap top`: who dirties how much, live. */
export function declareTop(program: Command): Command {
  const command = program.command("top").description("show live which devices dirty how much memory, and where");
  addHostOption(addPolicyOptions(addMachineOptions(command))).option(
    "--run <id>",
    "follow this run that is under way (default: the newest)",
  );
  addViewOptions(command, DEFAULTS.viewIntervalMs).addHelpText("after", `${NOTES}\n${exitCodesHelp()}`);
  return runBy<TopInput>(command, () => import("../run/top.js"));
}
