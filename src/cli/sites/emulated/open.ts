import { layoutWorkload } from "../../../emulated/layout.js";
import { createEmulatedMachine, type EmulatedMachine } from "../../../emulated/machine.js";
import { isServed, type MachineDescription, platformOf } from "../../../host/description.js";
import { layoutRegions } from "../../../memory/guest-memory.js";
import { withDisks } from "./disks.js";
import { openReplays } from "./replays.js";

/*
 * Machines on the emulated host, as hosts.ts describes them.
 */

export async function openMachine(
  description: MachineDescription,
  options: { paused?: boolean; side?: "source" | "destination" },
): Promise<EmulatedMachine> {
  const { side = "source" } = options;
  // Once they are open, the files need no name.
  using disks = side === "source" ? withDisks(description) : undefined;
  const machine = disks?.description ?? description;
  const replays = await openReplays(machine);
  const served = machine.devices.some(isServed)
    ? await (await import("../vfio-user/served-devices.js")).openServed(machine, side)
    : undefined;
  return await createEmulatedMachine(machine, { ...options, replays, ...(served === undefined ? {} : { served }) });
}

export async function openScripted(description: MachineDescription): Promise<EmulatedMachine> {
  return await createEmulatedMachine(description, { feed: false });
}

export function checkWorkload(description: MachineDescription): void {
  layoutWorkload(description, layoutRegions(description.memory, platformOf(description)));
}
