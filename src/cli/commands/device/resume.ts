import type { Command } from "commander";
import { runBy } from "../../run-command.js";

export interface DeviceResumeInput {
  readonly socket: string;
  readonly reset?: boolean;
  readonly json?: boolean;
}

const NOTES = `
Only when it is certain that the machine does not run at the migration's other side, and never will. A device whose
migration is still connected is refused: end that first.

Examples:
  dirtmap device resume ./mlx5
  dirtmap device resume ./mlx5 --reset --json`;

/** `dirtmap device resume`: the operator lets a device run that a migration has left stopped. */
export function declareDeviceResume(device: Command): Command {
  const command = device
    .command("resume")
    .description("let a served device run again that a migration has left stopped")
    .argument("<socket>", "the path of the device's socket")
    .option("--reset", "put it into the state after power-on first: its guest's driver has to start it anew")
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES);
  return runBy<DeviceResumeInput>(command, () => import("../../run/device/resume.js"));
}
