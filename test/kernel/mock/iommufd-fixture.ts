import { DirtyBitmap } from "../../../src/bitmap/dirty-bitmap.js";
import type { ObjectId } from "../../../src/host/host.js";
import { LinuxIommufd } from "../../../src/linux/linux-iommufd.js";
import { MemfdFile } from "../../../src/linux/memfd-file.js";
import { MiB, PAGE_SIZE } from "../../../src/memory/address.js";
import { DmaMemory, HUGE_2M } from "../../../src/memory/dma-memory.js";
import { isErrno } from "../../../src/uapi/errno.js";
import type { FixtureDevice, IommufdFixture } from "../../conformance/iommufd.js";
import { addMockDevice, allocHugeHwpt, markDirty, replaceMockDomain } from "../mock-iommu.js";
import { MOCK_HUGE_PAGE_SIZE } from "../uapi/iommufd-test.js";

/** The linux host's iommufd, with devices behind the kernel's mock IOMMU. */
export async function openMockFixture(): Promise<IommufdFixture & { readonly iommufd: LinuxIommufd }> {
  const iommufd = LinuxIommufd.open();
  const memories: DmaMemory[] = [];
  const allocate = (...args: Parameters<typeof DmaMemory.allocate>): DmaMemory => {
    const memory = DmaMemory.allocate(...args);
    memories.push(memory);
    return memory;
  };
  return {
    iommufd,
    memory: allocate(4 * MiB),

    async addDevice(pt, options): Promise<FixtureDevice> {
      const mock = addMockDevice(iommufd.fd, pt, options);
      let hwpt: ObjectId = mock.hwpt;
      return {
        id: mock.device,
        get hwpt() {
          return hwpt;
        },
        async attach(next) {
          hwpt = replaceMockDomain(iommufd.fd, mock, next);
          return hwpt;
        },
        unbind: () => iommufd.destroy(mock.selftest),
        write(iova) {
          const page = iova - (iova % BigInt(PAGE_SIZE));
          const mark = new DirtyBitmap({ iova: page, length: BigInt(PAGE_SIZE), granule: PAGE_SIZE });
          mark.set(0);
          try {
            markDirty(iommufd.fd, hwpt, mark);
          } catch (error) {
            // The mock says so where tracking is off, when a device's write sets no bit.
            if (!isErrno(error, "EINVAL")) throw error;
          }
        },
      };
    },

    async openFile(bytes) {
      return MemfdFile.create(bytes);
    },

    async allocLargeHwpt({ device, ioas }) {
      const hwpt = allocHugeHwpt(iommufd.fd, { device, ioas, dirtyTracking: true });
      const memory = allocate(HUGE_2M, { kind: "hugetlb", pageBytes: HUGE_2M });
      return { hwpt, leafBytes: MOCK_HUGE_PAGE_SIZE, memory };
    },

    async [Symbol.asyncDispose]() {
      await iommufd[Symbol.asyncDispose]();
      for (const memory of memories) memory[Symbol.dispose]();
    },
  };
}
