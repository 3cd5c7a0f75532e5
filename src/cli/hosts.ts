import type { MachineDescription } from "../host/description.js";
import type { Host, Machine } from "../host/host.js";

/*
 * The only place that picks a concrete host.
 */

/** A machine, and the host that its devices are of. */
export type HostedMachine = Machine & { readonly host: Host };

/**
 * Builds the machine on the emulated host.
 * @param options.paused its vCPUs and devices are not started: what a destination needs
 * @throws UsageError `MEMORY_DOES_NOT_FIT` and others, for a description that can't be built
 */
export async function openMachine(
  description: MachineDescription,
  options: { paused?: boolean; incarnation?: string } = {},
): Promise<HostedMachine> {
  const { createEmulatedMachine } = await import("../emulated/host.js");
  return await createEmulatedMachine(description, options);
}
