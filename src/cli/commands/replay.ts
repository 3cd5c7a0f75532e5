import { resolve } from "node:path";
import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { EXIT_CODES, exitCodesHelp } from "../exit-codes.js";
import { addPolicyOptions, type PolicyOptions } from "../input/options.js";
import { runCommand } from "../output.js";
import { addViewOptions, type TopOptions } from "./top.js";

const NOTES = `
Examples:
  dirtmap replay production.dtrc
  dirtmap replay production.dtrc --tracker vf0=device --duration 10s
  dirtmap migrate --scenario production.dtrc --predict
  dirtmap plan --scenario production.dtrc
  dirtmap predict --trace production.dtrc --bandwidth 10Gbit

The machine has as much memory as the recorded one had, and a device for each owner of the trace, which writes the pages that it
dirtied, when it did, over and over. It can be given wherever a scenario can; a scenario's devices can replay traces too
(model: replay, trace: FILE, owner: vf0).
`;

/** `dirtmap replay`: a machine that does what a trace says, and what its trackers see of it. */
export function addReplay(program: Command): void {
  const command = program
    .command("replay <trace>")
    .description("Runs a machine that dirties memory as a trace has it, and shows what its trackers see");
  addViewOptions(addPolicyOptions(command))
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`)
    .action((trace: string, options: PolicyOptions & Pick<TopOptions, "interval" | "duration" | "once" | "json">) =>
      runCommand({ json: options.json === true, onInterrupt: () => {}, endsWithReader: true }, async (signal) => {
        const [{ showScenario }, { traceScenario }] = await Promise.all([
          import("../run/top.js"),
          import("../../scenario/trace.js"),
        ]);
        const path = resolve(trace);
        // Another file would be taken for a scenario.
        traceScenario(path);
        const tooLarge = "replay it on a machine with more memory, or predict from it (dirtmap predict --trace FILE)";
        await showScenario({ ...options, host: DEFAULTS.host, scenario: path }, signal, tooLarge);
        return EXIT_CODES.done.code;
      }),
    );
}
