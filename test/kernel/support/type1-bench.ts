import { readFileSync, writeFileSync } from "node:fs";
import { ROOTS } from "../../../src/linux/roots.js";
import { readGroup } from "../../../src/linux/sysfs/group.js";
import { LinuxType1Container } from "../../../src/linux/type1/container.js";
import { createArena } from "../../../src/memory/arena.js";
import { UndoStack } from "../../../src/tracking/undo.js";
import { ARENA_BYTES, type Type1Bench, type Type1Host } from "../../conformance/type1.js";
import { bindToVfioPci, createMtty, type TestDevice } from "./vfio-devices.js";

const DMA_ENTRY_LIMIT = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";

/** What a container is told of a device in sysfs. @throws Error for one without a group */
export function type1Device({ name, sysfs }: Pick<TestDevice, "name" | "sysfs">, mdev: boolean) {
  const group = readGroup(ROOTS, sysfs);
  if (group === null) throw new Error(`${name} is in no IOMMU group`);
  return { id: name, group, mdev };
}

/** This machine's kernel, whose containers get mdevs of mtty, and these PCI devices. */
export function kernelType1({ passthrough }: { passthrough: readonly string[] }): Type1Host {
  return {
    passthrough: passthrough.length > 0,
    async open({ mappings } = {}): Promise<Type1Bench> {
      const undo = new UndoStack();
      try {
        if (mappings !== undefined) {
          const before = readFileSync(DMA_ENTRY_LIMIT, "utf8");
          writeFileSync(DMA_ENTRY_LIMIT, String(mappings));
          undo.add("restore the limit", async () => writeFileSync(DMA_ENTRY_LIMIT, before));
        }
        return await openBench(passthrough, undo);
      } catch (error) {
        return undo.undoBecauseOf(error);
      }
    },
  };
}

async function openBench(passthrough: readonly string[], undo: UndoStack): Promise<Type1Bench> {
  const letGo = (device: TestDevice) => {
    undo.add(`let go of ${device.name}`, () => device[Symbol.asyncDispose]());
    return device;
  };
  const devices = passthrough.map((address) => letGo(bindToVfioPci(address)));
  // mtty has 24 ports; a bench needs few of them, and an mdev can't be removed while it is open.
  const mdevs = [createMtty(), createMtty()].map(letGo);
  const container = await LinuxType1Container.open();
  undo.add("close the container", () => container[Symbol.asyncDispose]());
  const add = async (device: TestDevice, mdev: boolean) => {
    await container.addDevice(type1Device(device, mdev));
    return () => container.removeDevice(device.name);
  };
  let added = 0;
  return {
    container,
    arena: createArena(ARENA_BYTES),
    addMdev: () => add(mdevs[added++], true),
    addPassthrough: (which) => add(devices[which], false),
    [Symbol.asyncDispose]: () => undo.undo(),
  };
}
