import type { Command } from "commander";
import { addHostOptions, type HostOptions } from "../input/options/host.js";
import { addMachineOptions, type MachineOptions } from "../input/options/machine.js";
import { runBy } from "../run-command.js";

export interface ProbeInput extends HostOptions, MachineOptions {
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap probe
  dirtmap probe --scenario case-c
  dirtmap probe --scenario ./my.yaml --json
  dirtmap probe --host linux
  dirtmap probe --host linux --device 3b:00.1 --json
  dirtmap probe --host vfio-user:/run/user/1000/mlx5,/run/user/1000/nic

With --host linux it shows what is or could be assigned on this machine, and what is missing for it. It opens devices that
are on a VFIO driver and that nobody uses, asks them, and closes them again, which resets them. It touches nothing else.

With --host vfio-user:PATH it asks devices that \`dirtmap device\` or another server serves at these sockets. Dirtmap's own
servers are asked over their control sockets, even while a client uses them, and nothing changes. A device of another
server is opened, which resets it.
`;

/** `dirtmap probe`: what each device can do. */
export function declareProbe(program: Command): Command {
  const command = program
    .command("probe")
    .description("list each device with the trackers that it has or lacks, and its capability flags");
  addHostOptions(addMachineOptions(command), "all")
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES);
  return runBy<ProbeInput>(command, () => import("../run/probe.js"));
}
