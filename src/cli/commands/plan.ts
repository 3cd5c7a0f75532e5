import type { Command } from "commander";
import { addHostOptions, type HostOptions } from "../input/options/host.js";
import { addMachineOptions, type MachineOptions } from "../input/options/machine.js";
import { addPolicyOptions, type PolicyOptions } from "../input/options/policy.js";
import { addVmmOption, type VmmOption } from "../input/options/vmm.js";
import { runBy } from "../run-command.js";

export interface PlanInput extends HostOptions, MachineOptions, PolicyOptions, VmmOption {
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap plan
  dirtmap plan --policy device-first
  dirtmap plan --policy measured:recommendation.json
  dirtmap plan --scenario nic-pair --tracker vf0=iommu --granule vf0=4K
  dirtmap plan --scenario case-c --untracked nic0=everything --json
  dirtmap plan --host linux
  dirtmap plan --host linux --device 3b:00.1 3b:00.2 --tracker 3b:00.1=device
  dirtmap plan --host linux --only qemu | grep -v '^#'
  dirtmap plan --host vfio-user:/run/user/1000/mlx5,/run/user/1000/nic --untracked everything

With --host linux it plans for devices of this machine that one guest is to get, and prints the options of QEMU and the
domain XML of libvirt that do the same. A device that can't be asked yet is planned from sysfs, and marked as a guess.

With --host vfio-user:PATH it plans for devices that are served at these sockets, and asks them as \`dirtmap probe\` does.
`;

/** `dirtmap plan`: which tracker each device would get, and why. */
export function declarePlan(program: Command): Command {
  const command = program
    .command("plan")
    .description(
      "show the tracker, granule and domain that each device would get, with the reason and the alternatives",
    );
  addVmmOption(addHostOptions(addPolicyOptions(addMachineOptions(command)), "all on a VFIO driver"))
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES);
  return runBy<PlanInput>(command, () => import("../run/plan.js"));
}
