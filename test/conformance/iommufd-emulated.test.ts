import { EmulatedIommufd } from "../../src/emulated/iommufd.js";
import type { ObjectId } from "../../src/host/host.js";
import { ArenaFile } from "../../src/iommufd/arena-file.js";
import { MiB, pageOf } from "../../src/memory/address.js";
import { createArena } from "../../src/memory/arena.js";
import { TestBench } from "../support/iommu.js";
import { type FixtureDevice, type IommufdFixture, iommufdConformance } from "./iommufd.js";

const PORTS = 4;

iommufdConformance("emulated host", async (): Promise<IommufdFixture> => {
  const bench = new TestBench({ format: "amd-v1", ports: PORTS, ramBytes: 64 * MiB });
  const weak = new TestBench({ format: "amd-v1", ports: PORTS, dirtyTracking: false, physical: bench.physical });
  const iommufd = new EmulatedIommufd({ physical: bench.physical, inFlight: bench.inFlight });
  let ports = 0;
  return {
    iommufd,
    memory: { arena: bench.ram, offset: 0, length: 4 * MiB },

    async addDevice(pt, { dirtyTracking = true } = {}): Promise<FixtureDevice> {
      const port = ports++;
      const id = await iommufd.bindDevice({ port, iommu: dirtyTracking ? bench.iommu : weak.iommu, mdev: null });
      let hwpt: ObjectId = await iommufd.attachDevice(id, pt);
      const dma = bench.port(port);
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
          const fault = dma.write(pageOf(iova), 0, Uint8Array.of(1), 0, 1);
          if (fault !== null) throw new Error(`the write to ${iova} was refused: ${fault}`);
        },
      };
    },

    async openFile(bytes) {
      const arena = createArena(bytes);
      bench.physical.register(arena, { kind: "ram" });
      return new ArenaFile({ arena, offset: 0, length: bytes });
    },

    async allocLargeHwpt({ device, ioas }) {
      const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
      return { hwpt, leafBytes: 2 * MiB, memory: { arena: bench.ram, offset: 8 * MiB, length: 2 * MiB } };
    },

    async [Symbol.asyncDispose]() {
      await iommufd[Symbol.asyncDispose]();
      await bench[Symbol.asyncDispose]();
      await weak[Symbol.asyncDispose]();
    },
  };
});
