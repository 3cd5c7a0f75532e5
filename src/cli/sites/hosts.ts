import type { EmulatedMachine } from "../../emulated/machine.js";
import { UsageError } from "../../errors.js";
import type { MachineDescription } from "../../host/description.js";
import type { LinuxHost } from "../../linux/host.js";
import type { VfioUserHost } from "../../vfio-user/client/host.js";

/*
 * The only place that picks a concrete host. Each is loaded once it is picked: it depends on what the operator asks for, and
 * Linux's can't be loaded everywhere.
 */

export type { EmulatedMachine } from "../../emulated/machine.js";

const emulated = () => import("./emulated/open.js");

/**
 * Builds the machine on the emulated host. A disk without a file gets one that is gone with the machine. To be
 * migrated, a machine has disks with files that both sides reach (emulated/disks.ts).
 * @param options.paused its vCPUs and devices are not started: what a destination needs
 * @param options.side whose sockets are meant, of devices that run in other processes; default: the source's
 * @throws UsageError `MEMORY_DOES_NOT_FIT` and others, for a description that can't be built
 */
export async function openMachine(
  description: MachineDescription,
  options: { paused?: boolean; side?: "source" | "destination" } = {},
): Promise<EmulatedMachine> {
  return await (await emulated()).openMachine(description, options);
}

/** Builds a machine on the emulated host whose devices are all in this process, and to whose NICs nobody sends. */
export async function openScripted(description: MachineDescription): Promise<EmulatedMachine> {
  return await (await emulated()).openScripted(description);
}

/**
 * Checks that a machine's devices and vCPUs find room for their buffers.
 * @throws UsageError `MEMORY_DOES_NOT_FIT`
 */
export async function checkWorkload(description: MachineDescription): Promise<void> {
  (await emulated()).checkWorkload(description);
}

/**
 * Opens the host that is this machine's kernel.
 * @throws UsageError `NO_LINUX_HOST` if this is no Linux, or system calls can't be made
 */
export async function openLinuxHost(): Promise<LinuxHost> {
  if (process.platform !== "linux") {
    throw new UsageError(`--host linux needs Linux, and this is ${process.platform}`, {
      code: "NO_LINUX_HOST",
      remedy: "run it on the machine whose devices are meant, or leave out --host for the emulated host",
    });
  }
  try {
    await import("../../sys/libc.js");
  } catch (cause) {
    throw new UsageError("--host linux makes system calls through the package koffi, which can't be loaded here", {
      code: "NO_LINUX_HOST",
      remedy: "install the packages on this machine (npm ci): koffi brings a binary per platform",
      cause,
    });
  }
  const { LinuxHost } = await import("../../linux/host.js");
  return new LinuxHost();
}

/**
 * Opens the host of the devices behind vfio-user sockets.
 * @throws UsageError `BAD_OPTION` for a socket that is named twice
 */
export async function openVfioUserHost(sockets: readonly string[]): Promise<VfioUserHost> {
  const { VfioUserHost } = await import("../../vfio-user/client/host.js");
  return new VfioUserHost(sockets.map((path) => ({ path })));
}
