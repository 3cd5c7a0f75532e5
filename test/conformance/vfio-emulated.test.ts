import { afterAll } from "vitest";
import { PCI_COMMAND, PCI_COMMAND_MASTER, REGION } from "../../src/devices/pci-model.js";
import { enableBusMaster } from "../../src/devices/workload.js";
import { EmulatedHost } from "../../src/emulated/host.js";
import { layoutWorkload } from "../../src/emulated/layout.js";
import { EmulatedVfioDevice } from "../../src/emulated/vfio/device.js";
import type { MachineDescription } from "../../src/host/description.js";
import type { VfioDevice } from "../../src/host/host.js";
import { MiB, PAGE_SIZE } from "../../src/memory/address.js";
import { createGuestMemory } from "../../src/memory/guest-memory.js";
import { machineOf } from "../support/machines.js";
import { MAPPED, type VfioBench, type VfioFixture, vfioConformance } from "./vfio.js";

type DeviceInput = Parameters<typeof machineOf>[0][number];

/** Idle: what conformance asks for is no DMA's business. */
const LOAD = { rate: 0, footprint: 64 * PAGE_SIZE };

/** A host with two devices of one model; its threads are started once for all tests. */
function hostOf(description: MachineDescription) {
  const memory = createGuestMemory(description.memory);
  const host = new EmulatedHost({
    description,
    layout: layoutWorkload(description, memory.regions),
    memory,
    incarnation: 1,
    onDeath: (error) => {
      throw error;
    },
  });
  const span = { arena: memory.arenas[0], offset: Number(MAPPED.iova), length: Number(MAPPED.length) };
  const open = async (): Promise<VfioBench> => {
    const iommufd = await host.openIommufd();
    const ioases = [await iommufd.allocIoas(), await iommufd.allocIoas()] as const;
    for (const ioas of ioases) await iommufd.map(ioas, span, { iova: MAPPED.iova, readable: true, writeable: true });
    const opened = [await host.openDevice("a"), await host.openDevice("b")];
    return {
      iommufd,
      ioases,
      devices: [opened[0], opened[1]],
      reopen: async () => {
        opened.push(await host.openDevice("a"));
        return opened[opened.length - 1];
      },
      [Symbol.asyncDispose]: async () => {
        for (const device of opened) await device[Symbol.asyncDispose]();
        await iommufd[Symbol.asyncDispose]();
      },
    };
  };
  return { host, open };
}

function emulated(device: VfioDevice): EmulatedVfioDevice {
  if (device instanceof EmulatedVfioDevice) return device;
  throw new Error("not an emulated device");
}

function conformance(
  device: Omit<DeviceInput, "id" | "load">,
  what: Pick<VfioFixture, "mdev" | "migration" | "dmaLogging">,
): void {
  const devices = ["a", "b"].map((id) => ({ ...device, id, load: LOAD }) as DeviceInput);
  const description = machineOf(devices, { memory: 8 * MiB, vcpus: { count: 0 } });
  const { host, open } = hostOf(description);
  afterAll(() => host[Symbol.asyncDispose]());
  vfioConformance(`emulated ${device.model}`, {
    ...what,
    open,
    mark: (marked) => enableBusMaster(emulated(marked)),
    isMarked: async (marked) => {
      const [command] = await emulated(marked).regionRead(REGION.CONFIG, PCI_COMMAND, 1);
      return (command & PCI_COMMAND_MASTER) !== 0;
    },
    failToStop: (failing) => {
      const from = what.migration?.p2p === true ? "RUNNING_P2P" : "RUNNING";
      emulated(failing).failNext({ from, to: "STOP" });
    },
    resets: true,
    twins: true,
    afterBadState: "ERROR",
    dataSizeIsExact: true,
  });
}

conformance({ model: "mlx5", iommu: "iommu0" } as DeviceInput, {
  mdev: false,
  migration: { stopCopy: true, p2p: true, preCopy: true },
  dmaLogging: true,
});
conformance({ model: "nic", iommu: "iommu0" } as DeviceInput, {
  mdev: false,
  migration: { stopCopy: true, p2p: true, preCopy: false },
  dmaLogging: false,
});
conformance({ model: "vgpu", vram: 64 * 1024 } as DeviceInput, {
  mdev: true,
  migration: { stopCopy: true, p2p: true, preCopy: true },
  dmaLogging: true,
});
