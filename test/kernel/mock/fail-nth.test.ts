import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DirtyBitmap } from "../../../src/bitmap/dirty-bitmap.js";
import type { ObjectId } from "../../../src/host/host.js";
import { LinuxIommufd } from "../../../src/linux/linux-iommufd.js";
import { MemfdFile } from "../../../src/linux/memfd-file.js";
import { type Iova, KiB, MiB, PAGE_SIZE, U64_MAX } from "../../../src/memory/address.js";
import { DmaMemory } from "../../../src/memory/dma-memory.js";
import { holdsOf } from "../../../src/memory/holds.js";
import { UapiError } from "../../../src/uapi/errno.js";
import { addMockDevice, checkMap, checkPins, type MockDevice, markDirty, replaceMockDomain } from "../mock-iommu.js";
import { openDescriptors } from "../support/descriptors.js";
import { FaultInjection } from "../support/fault-injection.js";

/*
 * Each operation of the library, with the kernel short of memory at each place where it can be, one after the other. An
 * operation that fails must have done nothing, in the kernel and in what the library believes of it, so that the same
 * operation succeeds afterwards with the very result that it has without a fault; and nothing may be left in the end.
 */

/** More places than any operation has. */
const MAX_PLACES = 2000;

const RW = { readable: true, writeable: true } as const;
/** Inside the mock's aperture. */
const IOVA = 0x2000_0000n as Iova;
const OTHER_IOVA = 0x3000_0000n as Iova;
const SMALL = 64 * KiB;
/** Mapped on a thread. */
const LARGE = 2 * MiB;
/** Of 64 GiB, 2 MiB of bits. */
const BITMAP_LENGTH = 64n << 30n;

/** An iommufd with a mock device in front of tracking page tables, and memory that is mapped or is to be. */
class World implements AsyncDisposable {
  readonly iommufd = LinuxIommufd.open();
  readonly memory = DmaMemory.allocate(LARGE, { kind: "memfd" });
  readonly file = MemfdFile.of(this.memory);
  /** So large that it is memory of its own, to which nobody has written yet: no page is behind it. */
  readonly into = new DirtyBitmap({ iova: IOVA, length: BITMAP_LENGTH, granule: PAGE_SIZE });
  ioas: ObjectId = 0;
  otherIoas: ObjectId = 0;
  device: MockDevice = { selftest: 0, device: 0, hwpt: 0 };
  hwpt: ObjectId = 0;

  static async make({ mapped }: { mapped: boolean }): Promise<World> {
    const world = new World();
    const { iommufd } = world;
    world.ioas = await iommufd.allocIoas();
    // A leaf of several pages would be dirty as a whole, and how large leaves are depends on where the pages happen to lie.
    await iommufd.setOption({ option: "HUGE_PAGES", ioas: world.ioas }, 0);
    world.otherIoas = await iommufd.allocIoas();
    world.device = addMockDevice(iommufd.fd, world.otherIoas);
    world.hwpt = await iommufd.allocHwpt({ device: world.device.device, ioas: world.ioas, dirtyTracking: true });
    replaceMockDomain(iommufd.fd, world.device, world.hwpt);
    if (mapped) await iommufd.map(world.ioas, world.small, { ...RW, iova: IOVA });
    return world;
  }

  get small(): { arena: DmaMemory["arena"]; offset: number; length: number } {
    return { arena: this.memory.arena, offset: this.memory.offset, length: SMALL };
  }

  /** What library and kernel say is mapped, in numbers: holds of the memory, and pins of each of its first pages. */
  expectMapped(holds: number, pins: number): void {
    expect(holdsOf(this.memory.arena).count).toBe(holds);
    checkPins(this.iommufd.fd, this.small, pins);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.iommufd[Symbol.asyncDispose]();
    await this.file[Symbol.asyncDispose]();
    // EBUSY if a hold were left.
    this.memory[Symbol.dispose]();
  }
}

interface Operation {
  /** The world has {@link SMALL} bytes mapped at {@link IOVA} before. */
  readonly mapped: boolean;
  readonly prepare?: (world: World) => Promise<unknown>;
  readonly run: (world: World) => Promise<unknown>;
  /** False: the kernel needs nothing for it that it might not get. Default true. */
  readonly fails?: boolean;
  /** Holds and pins before and after; default: as many as are mapped, no more and no less. */
  readonly before?: readonly [holds: number, pins: number];
  readonly after?: readonly [holds: number, pins: number];
  readonly check?: (world: World) => void;
}

/** Switches tracking on, and lets the device write to every third page. */
async function trackAndWrite({ iommufd, hwpt }: World): Promise<void> {
  await iommufd.setDirtyTracking(hwpt, true);
  const marks = new DirtyBitmap({ iova: IOVA, length: BigInt(SMALL), granule: PAGE_SIZE });
  for (let page = 0; page < SMALL / PAGE_SIZE; page += 3) marks.set(page);
  markDirty(iommufd.fd, hwpt, marks);
}

async function readDirty({ iommufd, hwpt, into }: World, clear: boolean): Promise<number> {
  await iommufd.getDirtyBitmap(hwpt, { iova: IOVA, length: BigInt(SMALL), pageSize: PAGE_SIZE, into, clear });
  return into.words[0];
}

const OPERATIONS: Readonly<Record<string, Operation>> = {
  IOMMU_IOAS_ALLOC: { mapped: false, run: ({ iommufd }) => iommufd.allocIoas() },
  IOMMU_IOAS_IOVA_RANGES: { mapped: false, run: ({ iommufd, ioas }) => iommufd.iovaRanges(ioas) },
  IOMMU_IOAS_ALLOW_IOVAS: {
    mapped: true,
    run: ({ iommufd, ioas }) =>
      iommufd.allowIovas(ioas, [
        { start: IOVA, last: IOVA + 0xff_ffffn },
        { start: OTHER_IOVA, last: OTHER_IOVA + 0xffn },
      ]),
  },
  "IOMMU_IOAS_MAP at an IOVA": {
    mapped: false,
    run: ({ iommufd, ioas, small }) => iommufd.map(ioas, small, { ...RW, iova: IOVA }),
    after: [1, 1],
    check: ({ iommufd, hwpt, small }) => checkMap(iommufd.fd, hwpt, IOVA, small),
  },
  "IOMMU_IOAS_MAP where there is room": {
    mapped: true,
    run: ({ iommufd, ioas, small }) => iommufd.map(ioas, small, RW),
    after: [2, 2],
  },
  "IOMMU_IOAS_MAP of much, on a thread": {
    mapped: false,
    run: ({ iommufd, ioas, memory }) => iommufd.map(ioas, memory, { ...RW, iova: IOVA }),
    after: [1, 1],
    check: ({ iommufd, hwpt, memory }) => checkMap(iommufd.fd, hwpt, IOVA, memory),
  },
  IOMMU_IOAS_MAP_FILE: {
    mapped: false,
    run: ({ iommufd, ioas, file }) => iommufd.mapFile(ioas, file, { start: 0, length: SMALL }, { ...RW, iova: IOVA }),
    // The file holds its pages: no memory of this process needs to stay.
    after: [0, 1],
  },
  IOMMU_IOAS_COPY: {
    mapped: true,
    run: ({ iommufd, ioas }) =>
      iommufd.copy({ ioas, iova: IOVA, length: BigInt(SMALL) }, { ...RW, ioas, iova: OTHER_IOVA }),
    after: [2, 1],
    check: ({ iommufd, hwpt, small }) => checkMap(iommufd.fd, hwpt, OTHER_IOVA, small),
  },
  IOMMU_IOAS_UNMAP: {
    mapped: true,
    run: ({ iommufd, ioas }) => iommufd.unmap(ioas, IOVA, BigInt(SMALL)),
    after: [0, 0],
  },
  "IOMMU_IOAS_UNMAP of everything": {
    mapped: true,
    run: ({ iommufd, ioas }) => iommufd.unmap(ioas, 0n as Iova, U64_MAX),
    after: [0, 0],
  },
  IOMMU_OPTION: {
    mapped: true,
    run: ({ iommufd, otherIoas }) => iommufd.setOption({ option: "HUGE_PAGES", ioas: otherIoas }, 0),
  },
  IOMMU_GET_HW_INFO: { mapped: false, run: ({ iommufd, device }) => iommufd.hwInfo(device.device) },
  IOMMU_HWPT_ALLOC: {
    mapped: true,
    run: ({ iommufd, device, ioas }) => iommufd.allocHwpt({ device: device.device, ioas, dirtyTracking: true }),
  },
  "IOMMU_HWPT_SET_DIRTY_TRACKING, on": {
    mapped: true,
    run: ({ iommufd, hwpt }) => iommufd.setDirtyTracking(hwpt, true),
  },
  "IOMMU_HWPT_SET_DIRTY_TRACKING, off": {
    mapped: true,
    prepare: trackAndWrite,
    run: ({ iommufd, hwpt }) => iommufd.setDirtyTracking(hwpt, false),
  },
  IOMMU_HWPT_GET_DIRTY_BITMAP: { mapped: true, prepare: trackAndWrite, run: (world) => readDirty(world, true) },
  "IOMMU_HWPT_GET_DIRTY_BITMAP, NO_CLEAR": {
    mapped: true,
    prepare: trackAndWrite,
    run: (world) => readDirty(world, false),
  },
  "IOMMU_DESTROY of an IOAS that maps": {
    mapped: false,
    prepare: ({ iommufd, otherIoas, small }) =>
      // No device is attached to it: the mock has moved to the other's HWPT.
      iommufd.map(otherIoas, small, { ...RW, iova: IOVA }),
    run: ({ iommufd, otherIoas }) => iommufd.destroy(otherIoas),
    before: [1, 0],
    fails: false,
  },
};

describe("with the kernel short of memory at any place", () => {
  let faults: FaultInjection;
  beforeAll(async () => {
    faults = await FaultInjection.start();
  });
  afterAll(() => faults[Symbol.dispose]());

  test.each(Object.keys(OPERATIONS))("%s does all or nothing", async (name) => {
    const operation = OPERATIONS[name];
    const mapped = operation.mapped ? 1 : 0;
    const before = operation.before ?? [mapped, mapped];
    const after = operation.after ?? (operation.before ? [0, 0] : before);
    const filesBefore = openDescriptors();

    const undisturbed = await withWorld(operation, (world) => operation.run(world));
    let failures = 0;
    for (let nth = 1; ; nth++) {
      expect(nth).toBeLessThan(MAX_PLACES);
      const injected = await withWorld(operation, async (world) => {
        world.expectMapped(...before);
        const faulted = await faults.run(nth, () => operation.run(world));
        let { settled } = faulted;
        if (settled.status === "rejected") {
          failures++;
          expectInjected(settled.reason);
          expect(faulted.injected, "it fails without a fault").toBe(true);
          world.expectMapped(...before);
          [settled] = await Promise.allSettled([operation.run(world)]);
        }
        expect(settled, `with place ${nth} failing, and tried again where that failed`).toEqual({
          status: "fulfilled",
          value: undisturbed,
        });
        world.expectMapped(...after);
        operation.check?.(world);
        return faulted.injected;
      });
      if (!injected) break;
    }
    expect(failures > 0).toBe(operation.fails ?? true);
    expect(openDescriptors()).toEqual(filesBefore);
  });
});

async function withWorld<T>({ mapped, prepare }: Operation, use: (world: World) => Promise<T>): Promise<T> {
  await using world = await World.make({ mapped });
  await prepare?.(world);
  return await use(world);
}

/** ENOMEM, or ENOENT, which is how iommufd lets the look-up of an object fail (iommufd_get_object). */
function expectInjected(error: unknown): void {
  expect(error).toBeInstanceOf(UapiError);
  expect(["ENOMEM", "ENOENT", "EFAULT", "EINVAL"], String(error)).toContain((error as UapiError).code);
}
