import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { ObjectId } from "../../src/host/host.js";
import { LinuxIommufd } from "../../src/linux/linux-iommufd.js";
import { MiB } from "../../src/memory/address.js";
import { createArena } from "../../src/memory/arena.js";
import type { DmaMemory } from "../../src/memory/dma-memory.js";
import { addressOf } from "../../src/sys/address.js";
import { ioctl } from "../../src/sys/ioctl.js";
import {
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
  iommu_hwpt_get_dirty_bitmap,
} from "../../src/uapi/iommufd.js";
import type { MockKind } from "../differential/mock-kind.js";
import type { Rig } from "../differential/side.js";
import { Units } from "../differential/units.js";
import { addMockDevice, allocHugeHwpt, type MockDevice, markDirty, replaceMockDomain } from "./mock-iommu.js";

/**
 * Where the kernel writes bitmaps: at a page's start, and with pages behind that are nobody's, since it may set bits up
 * to the end of the last page.
 */
const scratch = createArena(4 * MiB);

/** The kernel's side of the differential test: an iommufd of its own, with mock devices. */
export class KernelRig implements Rig {
  readonly iommufd = LinuxIommufd.open();
  readonly units = new Units(1);
  readonly memory: Rig["memory"];
  readonly ioPage: number;
  readonly #kind: MockKind;
  readonly #devices = new Map<ObjectId, MockDevice>();

  constructor(kind: MockKind, memory: DmaMemory) {
    this.#kind = kind;
    this.memory = memory;
    this.ioPage = kind.ioPage;
  }

  async addDevice(pt: ObjectId, dirtyTracking: boolean): ReturnType<Rig["addDevice"]> {
    const made = addMockDevice(this.iommufd.fd, pt, { dirtyTracking });
    this.#devices.set(made.device, made);
    return { own: made.selftest, device: made.device, hwpt: made.hwpt };
  }

  async replace(device: ObjectId, pt: ObjectId): Promise<ObjectId> {
    return replaceMockDomain(this.iommufd.fd, this.#device(device), pt);
  }

  async removeDevice(device: ObjectId): Promise<void> {
    await this.iommufd.destroy(this.#device(device).selftest);
    this.#devices.delete(device);
  }

  async allocHwpt({ onIoas, ...args }: Parameters<Rig["allocHwpt"]>[0]): Promise<ObjectId> {
    // What stands on an HWPT is a nested one, which takes other data.
    if (this.#kind.automatic || !onIoas) return this.iommufd.allocHwpt(args);
    return allocHugeHwpt(this.iommufd.fd, args);
  }

  async mark(hwpt: ObjectId, granules: DirtyBitmap): Promise<void> {
    markDirty(this.iommufd.fd, hwpt, granules);
  }

  /** The bare ioctl: LinuxIommufd repairs what it answers. */
  async getDirtyBitmap(hwpt: ObjectId, query: Parameters<Rig["getDirtyBitmap"]>[1]): Promise<void> {
    const { iova, length, pageSize, into, clear } = query;
    const layout = iommu_hwpt_get_dirty_bitmap;
    const room = scratch.u32.subarray(0, into.words.length);
    room.set(into.words);
    const command = layout.encode({
      size: layout.size,
      hwpt_id: hwpt,
      flags: clear ? 0 : IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
      iova,
      length,
      page_size: BigInt(pageSize),
      data: addressOf(room),
    });
    ioctl(this.iommufd.fd, IOMMU_HWPT_GET_DIRTY_BITMAP, command, () => `read dirty bits of HWPT ${hwpt}`);
    into.words.set(room);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const device of [...this.#devices.keys()]) await this.removeDevice(device);
    await this.iommufd[Symbol.asyncDispose]();
  }

  #device(id: ObjectId): MockDevice {
    return this.#devices.get(id) ?? { selftest: id, device: id, hwpt: 0 };
  }
}
