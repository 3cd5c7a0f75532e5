import { Type1Container } from "../../src/emulated/type1/container.js";
import { TestBench } from "../support/iommu.js";
import { ARENA_BYTES, describeType1 } from "./type1.js";

const MDEV_PORT = 2;

describeType1("emulated", {
  passthrough: true,
  async open({ mappings } = {}) {
    const bench = new TestBench({ format: "amd-v1", ports: 3, ramBytes: ARENA_BYTES });
    const { physical, iommu } = bench;
    const container = new Type1Container({ physical, ...(mappings === undefined ? {} : { maxMappings: mappings }) });
    const add = async (device: Parameters<Type1Container["addDevice"]>[0]) => {
      await container.addDevice(device);
      return () => container.removeDevice(device.port);
    };
    return {
      container,
      arena: bench.ram,
      addMdev: () => add({ port: MDEV_PORT, iommu: null, pinnedScope: true, callbacks: { unmap: async () => {} } }),
      addPassthrough: (which) => add({ port: which, iommu, pinnedScope: false }),
      [Symbol.asyncDispose]: () => bench[Symbol.asyncDispose](),
    };
  },
});
