import type { Command } from "commander";

/** `dirtmap bench`: holds the commands that measure. */
export function declareBench(program: Command): Command {
  return program
    .command("bench")
    .description("measure the trackers of devices, or compare designs")
    .addHelpText(
      "after",
      "\nExamples:\n  dirtmap bench trackers --help\n  dirtmap bench trackers --quick\n  dirtmap bench designs --quick",
    );
}
