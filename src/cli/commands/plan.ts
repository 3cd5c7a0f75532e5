import type { Command } from "commander";
import { EXIT_CODES } from "../exit-codes.js";
import { addMachineOptions, addPolicyOptions, type MachineOptions, type PolicyOptions } from "../options.js";
import { printResult, runCommand } from "../output.js";

/** `dirtmap plan`: which tracker each device would get, and why. */
export function addPlan(program: Command): void {
  const command = program
    .command("plan")
    .description(
      "Shows the tracker, granule and domain that each device would get, with the reason and the alternatives",
    );
  addPolicyOptions(addMachineOptions(command))
    .option("--json", "print the result as JSON")
    .addHelpText(
      "after",
      "\nExamples:\n  dirtmap plan\n  dirtmap plan --policy device-first\n" +
        "  dirtmap plan --scenario nic-pair --tracker vf0=iommu --granule vf0=4K\n" +
        "  dirtmap plan --scenario case-c --untracked nic0=everything --json",
    )
    .action(({ json = false, ...options }: MachineOptions & PolicyOptions & { json?: boolean }) =>
      runCommand({ json }, async () => {
        const { checkMemory, readRequest } = await import("../request.js");
        const { scenario, description, policy, design } = readRequest(options);
        checkMemory(description, 1);
        const [{ openMachine }, { probeMachine }, { chooseTrackers }, { planText }] = await Promise.all([
          import("../hosts.js"),
          import("../../tracking/probe.js"),
          import("../../tracking/policy.js"),
          import("../plan-text.js"),
        ]);
        await using machine = await openMachine(description, { paused: true });
        const devices = chooseTrackers(await probeMachine(machine), policy);
        printResult({ scenario, design, policy, devices }, { json, text: () => planText(devices, policy) });
        return EXIT_CODES.done.code;
      }),
    );
}
