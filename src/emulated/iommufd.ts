import { SoftwareIommufd } from "../iommufd/iommufd.js";
import type { CpuPages } from "../iommufd/iova-allocator.js";
import type { InFlight } from "../memory/in-flight.js";
import type { PhysicalMemory } from "./physical-memory.js";

/** The emulated host's /dev/iommu: its IOMMUs have page tables, and what it maps has physical addresses. */
export class EmulatedIommufd extends SoftwareIommufd {
  /** @param args.inFlight of all ports, where the emulated IOMMU waits for DMA to land */
  constructor(args: { physical: PhysicalMemory; inFlight: InFlight; cpuPages?: CpuPages }) {
    const { physical, inFlight, ...rest } = args;
    super({ reaches: (arena) => physical.frameOf(arena, 0) >= 0, mdevs: inFlight, ...rest });
  }
}
