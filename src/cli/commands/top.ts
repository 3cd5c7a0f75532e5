import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { EXIT_CODES, exitCodesHelp } from "../exit-codes.js";
import {
  addHostOptions,
  addIntervalOption,
  addMachineOptions,
  addPolicyOptions,
  durationWithin,
  type HostOptions,
  type MachineOptions,
  OBSERVE_MS,
  type PolicyOptions,
  refuseOptions,
  servedSockets,
} from "../input/options.js";
import { runCommand } from "../output.js";

export interface TopOptions extends HostOptions, MachineOptions, PolicyOptions {
  readonly run?: string;
  readonly interval: number;
  readonly duration?: number;
  readonly once?: boolean;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap top                              a migration that is under way on this machine
  dirtmap top --run 2d45d78b
  dirtmap top --scenario mixed             a scenario's machine, watched and not migrated
  dirtmap top --scenario mixed --once --json
  dirtmap top --host vfio-user:./vf0.sock  what a served device writes, by its own counters

Dirty bits have one reader. Of a run that is under way the ledger of its owner is shown, through its feed; a scenario's machine is
started for this, and its trackers are read. A served device's log is never read here: whoever started it would lose what is
taken. Its counters are shown instead. There is no --host linux: a guest's HWPTs and logs belong to its VMM, and there is no way
in from outside; a VMM that is written with Dirtmap's library publishes a feed.
`;

/** `dirtmap top`: who dirties how much, live. */
export function addTop(program: Command): void {
  const command = program.command("top").description("Shows live who dirties how much memory, and where");
  addHostOptions(addPolicyOptions(addMachineOptions(command)), "none", { served: true }).option(
    "--run <id>",
    "a run that is under way (default: the newest)",
  );
  addViewOptions(command)
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`)
    .action((options: TopOptions) =>
      runCommand({ json: options.json === true, onInterrupt: () => {}, endsWithReader: true }, async (signal) => {
        const { showFeed, showScenario, showServed } = await import("../run/top.js");
        const sockets = servedSockets(options.host);
        if (options.host === "linux") await refuseLinux();
        if (sockets !== null) {
          refuseOptions(command, [...OF_MACHINES, "run"], `--host ${options.host} has devices, and no machine`);
          await showServed(sockets, options, signal);
        } else if (command.getOptionValueSource("scenario") === "cli") {
          refuseOptions(command, ["run"], "--scenario starts a machine of its own");
          await showScenario(options, signal);
        } else {
          refuseOptions(command, OF_MACHINES, "a run that is under way has its machine; add --scenario to start one");
          await showFeed(options, signal);
        }
        return EXIT_CODES.done.code;
      }),
    );
}

/** Adds the options that say how long, how often, and how it is shown. */
export function addViewOptions(command: Command): Command {
  return addIntervalOption(command, DEFAULTS.viewIntervalMs)
    .option("--duration <duration>", "how long (default: until Ctrl-C, or the run's end)", durationWithin(OBSERVE_MS))
    .option("--once", "show the first interval, and end")
    .option("--json", "a JSON object a line, for each interval");
}

const OF_MACHINES = [
  "scenario",
  "memory",
  "seed",
  "p2p",
  "policy",
  "tracker",
  "granule",
  "domain",
  "untracked",
  "design",
];

async function refuseLinux(): Promise<never> {
  const { UsageError } = await import("../../errors.js");
  throw new UsageError("the trackers of a guest on this machine's devices belong to its VMM, and have one reader", {
    code: "NOT_THE_READER",
    remedy: "follow a run of Dirtmap's (--run), or served devices (--host vfio-user:PATH)",
  });
}
