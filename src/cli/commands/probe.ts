import type { Command } from "commander";
import { EXIT_CODES } from "../exit-codes.js";
import { addMachineOptions, type MachineOptions } from "../options.js";
import { printResult, runCommand } from "../output.js";

/** `dirtmap probe`: what each device can do. */
export function addProbe(program: Command): void {
  const command = program
    .command("probe")
    .description("Lists each device with every tracker that it has or lacks, and its capability flags");
  addMachineOptions(command)
    .option("--json", "print the result as JSON")
    .addHelpText(
      "after",
      "\nExamples:\n  dirtmap probe\n  dirtmap probe --scenario case-c\n  dirtmap probe --scenario ./my.yaml --json",
    )
    .action(({ json = false, ...options }: MachineOptions & { json?: boolean }) =>
      runCommand({ json }, async () => {
        const { checkMemory, readRequest } = await import("../request.js");
        const { scenario, description } = readRequest(options);
        checkMemory(description, 1);
        const [{ openMachine }, { probeMachine }, { probeText }] = await Promise.all([
          import("../hosts.js"),
          import("../../tracking/probe.js"),
          import("../plan-text.js"),
        ]);
        await using machine = await openMachine(description, { paused: true });
        const devices = await probeMachine(machine);
        const { name: host } = machine.host;
        printResult({ scenario, host, devices }, { json, text: () => probeText(devices) });
        return EXIT_CODES.done.code;
      }),
    );
}
