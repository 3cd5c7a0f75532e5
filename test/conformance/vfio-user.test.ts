import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll } from "vitest";
import { PCI_COMMAND, PCI_COMMAND_MASTER, REGION } from "../../src/devices/pci-model.js";
import type { ObjectId, VfioDevice } from "../../src/host/host.js";
import { ArenaFile } from "../../src/iommufd/arena-file.js";
import { type Iova, MiB } from "../../src/memory/address.js";
import { DmaMemory } from "../../src/memory/dma-memory.js";
import type { DmaTarget } from "../../src/vfio-user/client/connection.js";
import { VfioUserDevice } from "../../src/vfio-user/client/device.js";
import type { DmaMapping, MappedDevice } from "../../src/vfio-user/client/dma-mappings.js";
import { VfioUserHost } from "../../src/vfio-user/client/host.js";
import { VfioUserIommufd } from "../../src/vfio-user/client/iommufd.js";
import { proxyDevice } from "../../src/vfio-user/proxy/proxy.js";
import type { DmaMode } from "../../src/vfio-user/server/client-memory.js";
import { type DeviceServer, serveDevice } from "../../src/vfio-user/server/server.js";
import { type FixtureDevice, type IommufdFixture, iommufdConformance } from "./iommufd.js";
import { MAPPED, type VfioBench, type VfioFixture, vfioConformance } from "./vfio.js";

function served(device: VfioDevice): VfioUserDevice {
  if (device instanceof VfioUserDevice) return device;
  throw new Error("not a device of a vfio-user server");
}

/**
 * Sockets of two servers of one model, which live as long as the tests of the file.
 * @param proxy with which each is reached by way of a proxy; null: it is reached itself
 */
function servers(
  model: string,
  { options, proxy }: { options: Readonly<Record<string, number>>; proxy: DmaMode | null },
): string[] {
  const directory = mkdtempSync(join(tmpdir(), "dirtmap-vfio-user-"));
  const paths = Array.from({ length: 2 }, (_, i) => join(directory, `${model}${i}`));
  const running: DeviceServer[] = [];
  beforeAll(async () => {
    for (const path of paths) {
      const server = proxy === null ? path : `${path}-served`;
      running.push(await serveDevice({ model, path: server, options }));
      if (proxy !== null) running.push(await proxyDevice({ server, path, dma: proxy }));
    }
  });
  afterAll(async () => {
    for (const server of running.reverse()) await server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  return paths;
}

/** @param options with which it is idle: what conformance asks for is no DMA's business */
function conformance(
  model: string,
  options: Readonly<Record<string, number>>,
  what: Pick<VfioFixture, "migration" | "dmaLogging">,
  proxy: DmaMode | null = null,
): void {
  const [first, second] = servers(model, { options, proxy });
  const memory = DmaMemory.allocate(4 * MiB, { kind: "memfd" });
  const span = { arena: memory.arena, offset: memory.offset, length: Number(MAPPED.length) };
  const way = proxy === null ? "" : ` behind a proxy (--dma ${proxy})`;
  vfioConformance(`vfio-user ${model}${way}`, {
    ...what,
    mdev: false,
    resets: true,
    twins: true,
    afterBadState: "ERROR",
    dataSizeIsExact: true,
    failToStop: null,
    async open(): Promise<VfioBench> {
      const host = new VfioUserHost([
        { path: first, id: "a" },
        { path: second, id: "b" },
      ]);
      const iommufd = await host.openIommufd();
      const ioases = [await iommufd.allocIoas(), await iommufd.allocIoas()] as const;
      for (const ioas of ioases) await iommufd.map(ioas, span, { iova: MAPPED.iova, readable: true, writeable: true });
      return {
        iommufd,
        ioases,
        devices: [await host.openDevice("a"), await host.openDevice("b")],
        reopen: () => host.openDevice("a"),
        [Symbol.asyncDispose]: () => host[Symbol.asyncDispose](),
      };
    },
    async mark(device) {
      await served(device).regionWrite(REGION.CONFIG, PCI_COMMAND, Uint8Array.of(PCI_COMMAND_MASTER));
    },
    async isMarked(device) {
      const [command] = await served(device).regionRead(REGION.CONFIG, PCI_COMMAND, 1);
      return (command & PCI_COMMAND_MASTER) !== 0;
    },
  });
}

conformance("mlx5", { rate: 0 }, { migration: { stopCopy: true, p2p: true, preCopy: true }, dmaLogging: true });
conformance("nic", { rate: 0 }, { migration: { stopCopy: true, p2p: true, preCopy: false }, dmaLogging: false });

/** What is promised of a device holds of another program's as well, as seen through a proxy. */
for (const proxy of ["auto", "messages"] as const) {
  const migration = { stopCopy: true, p2p: true, preCopy: true };
  conformance("mlx5", { rate: 0 }, { migration, dmaLogging: true }, proxy);
  // Its own server has no log: the proxy has one.
  conformance(
    "nic",
    { rate: 0 },
    { migration: { ...migration, preCopy: false }, dmaLogging: proxy === "messages" },
    proxy,
  );
}

conformance("dma-engine", {}, { migration: { stopCopy: true, p2p: true, preCopy: true }, dmaLogging: true });

/** A device whose DMA goes by messages, without the socket in between. */
class FakeDevice implements MappedDevice {
  readonly id = "fake";
  readonly byMessages: boolean;
  readonly mapped = new Map<Iova, DmaMapping>();
  target: DmaTarget | null = null;

  constructor(byMessages: boolean) {
    this.byMessages = byMessages;
  }

  async map(iova: Iova, mapping: DmaMapping): Promise<void> {
    this.mapped.set(iova, mapping);
  }

  async unmap(iova: Iova): Promise<void> {
    this.mapped.delete(iova);
  }
}

iommufdConformance("vfio-user host", async (): Promise<IommufdFixture> => {
  const iommufd = new VfioUserIommufd();
  const memory = DmaMemory.allocate(4 * MiB, { kind: "memfd" });
  return {
    iommufd,
    memory: { arena: memory.arena, offset: memory.offset, length: memory.length },

    async addDevice(pt, { dirtyTracking = true } = {}): Promise<FixtureDevice> {
      const device = new FakeDevice(dirtyTracking);
      const id = iommufd.bindServed(device);
      let hwpt: ObjectId = await iommufd.attachDevice(id, pt);
      return {
        id,
        get hwpt() {
          return hwpt;
        },
        async attach(next) {
          hwpt = await iommufd.attachDevice(id, next);
          return hwpt;
        },
        unbind: () => iommufd.unbindDevice(id),
        write(iova) {
          const refused = device.target?.write(iova, Uint8Array.of(1)) ?? null;
          if (refused !== null) throw new Error(`the write to ${iova} was refused: ${refused}`);
        },
      };
    },

    openFile: async (bytes) => new ArenaFile({ arena: memory.arena, offset: memory.offset, length: bytes }),
    allocLargeHwpt: null,

    async [Symbol.asyncDispose]() {
      await iommufd[Symbol.asyncDispose]();
      memory[Symbol.dispose]();
    },
  };
});
