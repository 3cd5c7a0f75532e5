import { type Command, Option } from "commander";
import { DEFAULTS } from "../../../defaults.js";
import { parseSize } from "../../../units.js";
import { P2P } from "./choices.js";
import { argument, choice, wholeNumber } from "./values.js";

/** The scenario's machine, and what differs from the scenario. */
export interface MachineOptions {
  readonly scenario: string;
  readonly memory?: number;
  readonly seed?: number;
  readonly p2p?: (typeof P2P)[number];
}

/** Adds the options of {@link MachineOptions}. */
export function addMachineOptions(command: Command): Command {
  return command
    .addOption(
      new Option(
        "-s, --scenario <name|file>",
        "take the machine and its workload from a scenario; see `dirtmap scenarios`",
      ).default(DEFAULTS.scenario, DEFAULTS.scenario),
    )
    .option("--memory <size>", "set the guest memory: 512M, 1G … (default: the scenario's)", argument(parseSize))
    .option(
      "--seed <number>",
      "set the seed of disks and of the memory's first content (default: the scenario's)",
      wholeNumber(0, 0xffffffff),
    )
    .addOption(choice("--p2p <mode>", P2P, "P2P mode", "allow peer-to-peer DMA", " (default: the scenario's)"));
}
