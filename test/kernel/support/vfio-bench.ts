import type { VfioDevice } from "../../../src/host/host.js";
import { LinuxIommufd } from "../../../src/linux/linux-iommufd.js";
import { LinuxVfioDevice } from "../../../src/linux/vfio/device.js";
import { createArena } from "../../../src/memory/arena.js";
import { MAPPED, type VfioBench } from "../../conformance/vfio.js";
import type { TestDevice } from "./vfio-devices.js";

/** Opens a device of the kernel under test. */
export function openLinux({ name, cdev }: TestDevice, model: string): Promise<LinuxVfioDevice> {
  return LinuxVfioDevice.open({ id: name, model, cdev });
}

/** A bench for the conformance suite: two devices of the kernel, and their memory mapped in two IOASes. */
export async function openLinuxBench(first: TestDevice, second: TestDevice, model: string): Promise<VfioBench> {
  const iommufd = await LinuxIommufd.open();
  const arena = createArena(Number(MAPPED.length));
  const ioases = [await iommufd.allocIoas(), await iommufd.allocIoas()] as const;
  const span = { arena, offset: 0, length: Number(MAPPED.length) };
  for (const ioas of ioases) await iommufd.map(ioas, span, { iova: MAPPED.iova, readable: true, writeable: true });
  const opened = [await openLinux(first, model), await openLinux(second, model)];
  return {
    iommufd,
    ioases,
    devices: [opened[0], opened[1]],
    reopen: async () => {
      opened.push(await openLinux(first, model));
      return opened[opened.length - 1];
    },
    [Symbol.asyncDispose]: async () => {
      for (const device of opened) await device[Symbol.asyncDispose]();
      await iommufd[Symbol.asyncDispose]();
    },
  };
}

/** The device, for what only a Linux one has. */
export function linux(device: VfioDevice): LinuxVfioDevice {
  if (device instanceof LinuxVfioDevice) return device;
  throw new Error("not a device of this kernel");
}
