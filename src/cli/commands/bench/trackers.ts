import type { Command } from "commander";
import { addHostOptions, type HostOptions } from "../../input/options/host.js";
import { addMachineOptions, type MachineOptions } from "../../input/options/machine.js";
import { addLinkOptions, type LinkOptions } from "../../input/options/migration.js";
import { addReportOption, addStoreOption, type ReportOption, type StoreOption } from "../../input/options/places.js";
import { orScenario } from "../../input/options/values.js";
import { runBy } from "../../run-command.js";

export interface BenchTrackersInput extends HostOptions, MachineOptions, LinkOptions, StoreOption, ReportOption {
  readonly output?: string;
  readonly quick?: boolean;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap bench trackers
  dirtmap bench trackers --scenario nic-pair --quick --output bench.json
  dirtmap bench trackers --device vf0 --bandwidth 25Gbit --downtime-limit 50ms
  dirtmap bench trackers --host linux --device 3b:00.1 --memory 4G
  dirtmap bench trackers --host vfio-user:/run/user/1000/mlx5 --json

It measures each tracker of each device: what starting, reading and stopping it costs, how many of its DMA writes the device
loses while it is tracked, and how exact the tracker is. From that it estimates a migration. \`dirtmap recommend\` decides by
it. The result is kept in the store, and with --output also in a file.

On the emulated host a model is measured. With --host linux it opens devices that are on a VFIO driver and that nobody uses,
which resets them. No driver tells them to do DMA, so only the cost to the reader can be measured.
`;

/** `dirtmap bench trackers`: what each tracker of each device costs, and how exact it is. */
export function declareBenchTrackers(bench: Command): Command {
  const command = bench
    .command("trackers")
    .description("measure each tracker of each device: what it costs, and how exact it is");
  addHostOptions(addMachineOptions(command), "all that can be measured");
  addReportOption(
    addStoreOption(addLinkOptions(command, orScenario), { optional: true }).option(
      "-o, --output <file>",
      "write the result to this file, for `dirtmap recommend --from`",
    ),
  )
    .option("--quick", "measure with few repetitions: in seconds instead of minutes, with wider ranges")
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES);
  return runBy<BenchTrackersInput>(command, () => import("../../run/bench/trackers.js"));
}
