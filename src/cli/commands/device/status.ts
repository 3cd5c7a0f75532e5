import type { Command } from "commander";
import { runBy } from "../../run-command.js";

export interface DeviceStatusInput {
  readonly socket: string;
  readonly json?: boolean;
}

/** `dirtmap device status`: what a served device does, and who has moved it. */
export function declareDeviceStatus(device: Command): Command {
  const command = device
    .command("status")
    .description("tell what state a served device is in, which client moved it there, and what can be done about it")
    .argument("<socket>", "the path of the device's socket")
    .option("--json", "print the result as JSON")
    .addHelpText("after", "\nExamples:\n  dirtmap device status ./mlx5\n  dirtmap device status ./mlx5 --json");
  return runBy<DeviceStatusInput>(command, () => import("../../run/device/status.js"));
}
