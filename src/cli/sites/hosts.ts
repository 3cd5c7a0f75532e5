import type { EmulatedMachine } from "../../emulated/machine.js";
import { UsageError } from "../../errors.js";
import { isServed, type MachineDescription, platformOf } from "../../host/description.js";
import type { ReplaySchedule } from "../../host/replay-schedule.js";
import type { LinuxHost } from "../../linux/host.js";
import { layoutRegions } from "../../memory/guest-memory.js";
import type { VfioUserHost } from "../../vfio-user/client/host.js";
import { withDisks } from "./emulated/disks.js";

/*
 * The only place that picks a concrete host.
 */

export type { EmulatedMachine } from "../../emulated/machine.js";

/**
 * Builds the machine on the emulated host. A disk without a file gets one that is gone with the machine; who migrates it names
 * files that both sides reach ({@link withDisks}).
 * @param options.paused its vCPUs and devices are not started: what a destination needs
 * @param options.side whose sockets are meant, of devices that run in other processes; default: the source's
 * @throws UsageError `MEMORY_DOES_NOT_FIT` and others, for a description that can't be built
 */
export async function openMachine(
  description: MachineDescription,
  options: { paused?: boolean; side?: "source" | "destination" } = {},
): Promise<EmulatedMachine> {
  const { createEmulatedMachine } = await import("../../emulated/machine.js");
  const { side = "source" } = options;
  // Once they are open, the files need no name.
  using disks = side === "source" ? withDisks(description) : undefined;
  const machine = disks?.description ?? description;
  const replays = await replaysOf(machine);
  if (!machine.devices.some(isServed)) return await createEmulatedMachine(machine, { ...options, replays });
  const { openServed } = await import("./vfio-user/served-devices.js");
  const served = await openServed(machine, side);
  return await createEmulatedMachine(machine, { ...options, replays, ...(served === undefined ? {} : { served }) });
}

async function replaysOf(description: MachineDescription): Promise<ReadonlyMap<string, ReplaySchedule>> {
  if (!description.devices.some(({ model }) => model === "replay")) return new Map();
  return await (await import("./emulated/replays.js")).openReplays(description);
}

/**
 * Checks that a machine's devices and vCPUs find room for their buffers.
 * @throws UsageError `MEMORY_DOES_NOT_FIT`
 */
export async function checkWorkload(description: MachineDescription): Promise<void> {
  const { layoutWorkload } = await import("../../emulated/layout.js");
  layoutWorkload(description, layoutRegions(description.memory, platformOf(description)));
}

/** Builds a machine on the emulated host whose devices are all in this process, and to whose NICs nobody sends. */
export async function openScripted(description: MachineDescription): Promise<EmulatedMachine> {
  const { createEmulatedMachine } = await import("../../emulated/machine.js");
  return await createEmulatedMachine(description, { feed: false });
}

/**
 * The host that is this machine's kernel.
 * @throws UsageError `NO_LINUX_HOST` where that is no Linux, or system calls can't be made
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
 * Devices behind vfio-user sockets.
 * @throws UsageError `BAD_OPTION` for a socket that is named twice
 */
export async function openVfioUserHost(sockets: readonly string[]): Promise<VfioUserHost> {
  const { VfioUserHost } = await import("../../vfio-user/client/host.js");
  return new VfioUserHost(sockets.map((path) => ({ path })));
}
