import type { EmulatedMachine } from "../emulated/machine.js";
import type { MachineDescription } from "../host/description.js";

/*
 * The only place that picks a concrete host.
 */

export type { EmulatedMachine } from "../emulated/machine.js";

/**
 * Builds the machine on the emulated host.
 * @param options.paused its vCPUs and devices are not started: what a destination needs
 * @throws UsageError `MEMORY_DOES_NOT_FIT` and others, for a description that can't be built
 */
export async function openMachine(
  description: MachineDescription,
  options: { paused?: boolean } = {},
): Promise<EmulatedMachine> {
  const { createEmulatedMachine } = await import("../emulated/machine.js");
  return await createEmulatedMachine(description, options);
}
