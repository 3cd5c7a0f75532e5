import type { Command } from "commander";
import { VMMS } from "./choices.js";
import { choice } from "./values.js";

/** Of a plan or recommendation only what a VMM is given. */
export interface VmmOption {
  readonly only?: (typeof VMMS)[number];
}

/** Adds `--only`. */
export function addVmmOption(command: Command): Command {
  return command.addOption(
    choice("--only <vmm>", VMMS, "VMM", "print only the options that make a VMM do the same").conflicts("json"),
  );
}
