import type { Command } from "commander";
import { addBenchDesigns } from "./bench/designs.js";
import { addBenchTrackers } from "./bench/trackers.js";

/** `dirtmap bench`: measures. Each subcommand has a file of its own. */
export function addBench(program: Command): void {
  const command = program
    .command("bench")
    .description("Measures the trackers of devices, and compares designs")
    .addHelpText(
      "after",
      "\nExamples:\n  dirtmap bench trackers --help\n  dirtmap bench trackers --quick\n  dirtmap bench designs --quick",
    );
  for (const add of [addBenchTrackers, addBenchDesigns]) add(command);
}
