import { PCI_COMMAND, PCI_COMMAND_MASTER, REGION } from "../../src/devices/pci-model.js";
import { enableBusMaster } from "../../src/devices/workload.js";
import type { ObjectId, VfioDevice } from "../../src/host/host.js";
import { MiB, pageOf } from "../../src/memory/address.js";
import { createArena } from "../../src/memory/arena.js";
import type { FakeDevice, FakeDeviceOptions } from "../support/fake-host/device.js";
import { FakeHost, LARGE_LEAF } from "../support/fake-host/host.js";
import { type FixtureDevice, type IommufdFixture, iommufdConformance } from "./iommufd.js";
import { MAPPED, type VfioBench, type VfioFixture, vfioConformance } from "./vfio.js";

/* The host that other tests take for any host: it keeps to the same contract. */

/** Of each kind; more than a test binds. */
const DEVICES = 4;

iommufdConformance("fake host", async (): Promise<IommufdFixture> => {
  const ram = createArena(64 * MiB);
  const devices = Array.from({ length: 2 * DEVICES }, (_, i) => ({ id: `dev${i}`, iommuTracks: i < DEVICES }));
  const host = new FakeHost(devices, [ram]);
  const iommufd = await host.openIommufd();
  const opened: FakeDevice[] = [];
  const used = { true: 0, false: DEVICES };
  return {
    iommufd,
    memory: { arena: ram, offset: 0, length: 4 * MiB },

    async addDevice(pt, { dirtyTracking = true } = {}): Promise<FixtureDevice> {
      const device = await host.openDevice(`dev${used[`${dirtyTracking}`]++}`);
      opened.push(device);
      const id = await device.bind(iommufd);
      let hwpt: ObjectId = await device.attach(pt);
      return {
        id,
        get hwpt() {
          return hwpt;
        },
        async attach(next) {
          hwpt = await device.attach(next);
          return hwpt;
        },
        unbind: () => device[Symbol.asyncDispose](),
        write(iova) {
          const fault = device.dma(pageOf(iova));
          if (fault !== null) throw new Error(`the write to ${iova} was refused: ${fault}`);
        },
      };
    },

    openFile: (bytes) => host.openFile(bytes),

    async allocLargeHwpt({ device, ioas }) {
      const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
      return { hwpt, leafBytes: LARGE_LEAF, memory: { arena: ram, offset: 8 * MiB, length: 2 * MiB } };
    },

    async [Symbol.asyncDispose]() {
      for (const device of opened) await device[Symbol.asyncDispose]();
      await iommufd[Symbol.asyncDispose]();
      await host[Symbol.asyncDispose]();
    },
  };
});

function conformance(name: string, device: Omit<FakeDeviceOptions, "id">, what: Pick<VfioFixture, "migration">): void {
  const arena = createArena(4 * MiB);
  const span = { arena, offset: 0, length: Number(MAPPED.length) };
  vfioConformance(`fake host, ${name}`, {
    ...what,
    mdev: device.mdev === true,
    dmaLogging: device.log !== undefined,
    resets: true,
    twins: true,
    afterBadState: "ERROR",
    dataSizeIsExact: true,
    failToStop: (failing: VfioDevice) => {
      (failing as FakeDevice).failNext({ from: what.migration?.p2p === true ? "RUNNING_P2P" : "RUNNING", to: "STOP" });
    },
    async open(): Promise<VfioBench> {
      const ids = ["a", "b"];
      const host = new FakeHost(
        ids.map((id) => ({ ...device, ...what, id })),
        [arena],
      );
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
          for (const each of opened) await each[Symbol.asyncDispose]();
          await iommufd[Symbol.asyncDispose]();
          await host[Symbol.asyncDispose]();
        },
      };
    },
    mark: (marked) => enableBusMaster(marked),
    isMarked: async (marked) => {
      const [command] = await marked.regionRead(REGION.CONFIG, PCI_COMMAND, 1);
      return (command & PCI_COMMAND_MASTER) !== 0;
    },
  });
}

conformance("a device with a log", { log: {} }, { migration: { stopCopy: true, p2p: true, preCopy: true } });
conformance("a device without P2P states", {}, { migration: { stopCopy: true, p2p: false, preCopy: false } });
conformance("a device that can't migrate", { log: {} }, { migration: null });
conformance("an mdev", { mdev: true, log: {} }, { migration: { stopCopy: true, p2p: true, preCopy: true } });
