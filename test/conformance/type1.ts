import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { Type1Iommu } from "../../src/host/type1.js";
import { MiB, PAGE_SIZE, U64_MAX } from "../../src/memory/address.js";
import type { Arena } from "../../src/memory/arena.js";
import type { ErrnoName } from "../../src/uapi/errno.js";

/*
 * What a legacy type1 v2 container does, once for the emulated host and for the kernel. Its mdevs pin nothing here: no
 * test can make mtty, the mdev of the test kernel, do so.
 */

/** A container to be tested, without a device. */
export interface Type1Bench extends AsyncDisposable {
  readonly container: Type1Iommu;
  /** Memory to map, of {@link ARENA_BYTES}. */
  readonly arena: Arena;
  /** Adds an mdev; returns how it is removed again. */
  addMdev(): Promise<() => Promise<void>>;
  /** Adds a device behind an IOMMU, which writes to what it likes: the first or the second that there is. */
  addPassthrough(which: 0 | 1): Promise<() => Promise<void>>;
}

export interface Type1Host {
  /** @param mappings how many the container may hold (vfio_iommu_type1's parameter dma_entry_limit) */
  open(options?: { mappings?: number }): Promise<Type1Bench>;
  /** False on a machine without an IOMMU, which has mdevs alone. */
  readonly passthrough: boolean;
}

/** Memory that a bench has to map. */
export const ARENA_BYTES = 4 * MiB;

const PAGE = BigInt(PAGE_SIZE);
const RW = { readable: true, writeable: true };

/** Where x86 IOMMUs have the MSI window (drivers/iommu: MSI_RANGE_START, IOAPIC_RANGE_START). */
const MSI_PAGE = 0xfee00n;

/** The errno that a call is refused with. */
async function errno(call: Promise<unknown>): Promise<ErrnoName | "none"> {
  return call.then(
    () => "none" as const,
    (error: { code: ErrnoName }) => error.code,
  );
}

/** Mappings by pages, and what a read reports. */
function tools({ container, arena }: Type1Bench) {
  const map = (page: bigint, pages: number, flags = RW) =>
    container.mapDma({ iova: page * PAGE, span: { arena, offset: 0, length: pages * PAGE_SIZE }, ...flags });
  const unmap = (page: bigint, pages: number, dirty?: DirtyBitmap) =>
    container.unmapDma({ iova: page * PAGE, length: BigInt(pages) * PAGE, ...(dirty === undefined ? {} : { dirty }) });
  const bitmap = (page: bigint, pages: number, granule = PAGE_SIZE) =>
    new DirtyBitmap({ iova: page * PAGE, length: BigInt(pages) * PAGE, granule });
  /** The pages that a read of a range reports dirty, counted from the range's first. */
  const dirty = async (page: bigint, pages: number) => {
    const into = bitmap(page, pages);
    await container.dirtyPagesGetBitmap({ iova: page * PAGE, length: BigInt(pages) * PAGE, into });
    return runs(into);
  };
  return { map, unmap, bitmap, dirty };
}

function runs(bitmap: DirtyBitmap): [first: number, count: number][] {
  const found: [number, number][] = [];
  bitmap.forEachRun((first, count) => found.push([first, count]));
  return found;
}

/** Declares the contract's tests. */
export function describeType1(name: string, host: Type1Host): void {
  /** A container with these devices, and tools for it. */
  const setup = async (...devices: ("mdev" | "passthrough")[]) => {
    const bench = await host.open();
    for (const device of devices) await (device === "mdev" ? bench.addMdev() : bench.addPassthrough(0));
    return { ...tools(bench), bench, container: bench.container, arena: bench.arena };
  };
  const withIommu = it.skipIf(!host.passthrough);

  describe(`a type1 container: ${name}`, () => {
    it("has no address space before a device is in it: EINVAL", async () => {
      const { bench, container, map, unmap, dirty } = await setup();
      await using _ = bench;
      expect(await errno(map(0n, 1))).toBe("EINVAL");
      expect(await errno(unmap(0n, 1))).toBe("EINVAL");
      expect(await errno(container.dirtyPagesStart())).toBe("EINVAL");
      expect(await errno(container.dirtyPagesStop())).toBe("EINVAL");
      expect(await errno(dirty(0n, 1))).toBe("EINVAL");
    });

    it("loses mappings and tracking with its last device", async () => {
      const { bench, container, map, unmap, dirty } = await setup();
      await using _ = bench;
      const remove = await bench.addMdev();
      await map(0n, 4);
      await container.dirtyPagesStart();
      await remove();
      expect(await errno(unmap(0n, 4))).toBe("EINVAL");
      await bench.addMdev();
      expect(await unmap(0n, 4)).toBe(0n);
      expect(await errno(dirty(0n, 4))).toBe("EINVAL");
      await map(0n, 4);
    });

    it("refuses to map an empty, misaligned, overflowing or overlapping range, and one without permission", async () => {
      const { bench, container, map, arena } = await setup("mdev");
      await using _ = bench;
      await map(4n, 4);
      const attempt = (iova: bigint, offset: number, length: number, flags = RW) =>
        errno(container.mapDma({ iova, span: { arena, offset, length }, ...flags }));
      expect(await attempt(0n, 0, 0)).toBe("EINVAL");
      expect(await attempt(0n, 0, 4096, { readable: false, writeable: false })).toBe("EINVAL");
      expect(await attempt(1n, 0, 4096)).toBe("EINVAL");
      expect(await attempt(0n, 512, 4096)).toBe("EINVAL");
      expect(await attempt(0n, 0, 512)).toBe("EINVAL");
      expect(await attempt(U64_MAX - PAGE + 1n, 0, 8192)).toBe("EOVERFLOW");
      expect(await attempt(0n, ARENA_BYTES, 4096)).toBe("EFAULT");
      expect(await attempt(0n, 0, 5 * 4096)).toBe("EEXIST");
      expect(await attempt(7n * PAGE, 0, 4096)).toBe("EEXIST");
      expect(await attempt(4n * PAGE, 0, 4 * 4096)).toBe("EEXIST");
      expect(await attempt(0n, 0, 4 * 4096)).toBe("none");
      expect(await attempt(8n * PAGE, 0, 4096)).toBe("none");
    });

    it("maps the same memory twice, and the last page of the address space", async () => {
      const { bench, map, unmap } = await setup("mdev");
      await using _ = bench;
      await map(0n, 4);
      await map(100n, 4);
      const top = (1n << 52n) - 1n;
      await map(top, 1);
      expect(await unmap(top, 1)).toBe(PAGE);
    });

    it("refuses more mappings than it may hold: ENOSPC, and takes another for one that went", async () => {
      await using bench = await host.open({ mappings: 3 });
      await bench.addMdev();
      const { map, unmap } = tools(bench);
      for (const page of [0n, 2n, 4n]) await map(page, 1);
      expect(await errno(map(6n, 1))).toBe("ENOSPC");
      // What is there already is said first.
      expect(await errno(map(4n, 1))).toBe("EEXIST");
      expect(await unmap(0n, 1)).toBe(PAGE);
      await map(6n, 1);
    });

    it("unmaps whole mappings, several at once, and answers 0 where nothing is mapped", async () => {
      const { bench, map, unmap } = await setup("mdev");
      await using _ = bench;
      await map(4n, 4);
      await map(10n, 2);
      await map(20n, 1);
      expect(await unmap(0n, 16)).toBe(6n * PAGE);
      expect(await unmap(0n, 16)).toBe(0n);
      expect(await unmap(20n, 1)).toBe(PAGE);
    });

    it("unmaps everything at once", async () => {
      const { bench, container, map } = await setup("mdev");
      await using _ = bench;
      await map(4n, 4);
      await map(1n << 30n, 2);
      expect(await container.unmapDma({ iova: 0n, length: 0n, all: true })).toBe(6n * PAGE);
      expect(await container.unmapDma({ iova: 0n, length: 0n, all: true })).toBe(0n);
    });

    it("refuses to bisect a mapping, misaligned and empty ranges, ALL with a range or a bitmap", async () => {
      const { bench, container, map, bitmap } = await setup("mdev");
      await using _ = bench;
      await map(4n, 4);
      const dirty = bitmap(0n, 16);
      const attempt = (args: Parameters<Type1Iommu["unmapDma"]>[0]) => errno(container.unmapDma(args));
      expect(await attempt({ iova: 5n * PAGE, length: PAGE })).toBe("EINVAL");
      expect(await attempt({ iova: 0n, length: 5n * PAGE })).toBe("EINVAL");
      expect(await attempt({ iova: 6n * PAGE, length: 10n * PAGE })).toBe("EINVAL");
      expect(await attempt({ iova: 1n, length: PAGE })).toBe("EINVAL");
      expect(await attempt({ iova: 0n, length: 1n })).toBe("EINVAL");
      expect(await attempt({ iova: 0n, length: 0n })).toBe("EINVAL");
      expect(await attempt({ iova: PAGE, length: 1n << 64n })).toBe("EOVERFLOW");
      expect(await attempt({ iova: 8n * PAGE, length: U64_MAX - (U64_MAX % PAGE) })).toBe("EOVERFLOW");
      expect(await attempt({ iova: 0n, length: PAGE, all: true })).toBe("EINVAL");
      expect(await attempt({ iova: PAGE, length: 0n, all: true })).toBe("EINVAL");
      expect(await attempt({ iova: 0n, length: 0n, all: true, dirty })).toBe("EINVAL");
      expect(await attempt({ iova: 0n, length: 16n * PAGE, dirty })).toBe("EINVAL");
      expect(await attempt({ iova: 4n * PAGE, length: 4n * PAGE })).toBe("none");
    });
  });

  describe(`dirty pages of a type1 container: ${name}`, () => {
    it("are refused while tracking is off, and starting or stopping twice changes nothing", async () => {
      const { bench, container, map, dirty } = await setup("mdev");
      await using _ = bench;
      await map(0n, 4);
      expect(await errno(dirty(0n, 4))).toBe("EINVAL");
      await container.dirtyPagesStop();
      await container.dirtyPagesStart();
      await container.dirtyPagesStart();
      expect(await dirty(0n, 4)).toEqual([]);
      await container.dirtyPagesStop();
      await container.dirtyPagesStop();
      expect(await errno(dirty(0n, 4))).toBe("EINVAL");
    });

    it("are refused for another page size, a misaligned or empty range, and half a mapping", async () => {
      const { bench, container, map } = await setup("mdev");
      await using _ = bench;
      await map(4n, 4);
      await container.dirtyPagesStart();
      const attempt = (iova: bigint, length: bigint, granule = PAGE_SIZE) => {
        const into = new DirtyBitmap({ iova, length: length || PAGE, granule });
        return errno(container.dirtyPagesGetBitmap({ iova, length, into }));
      };
      expect(await attempt(0n, 16n * PAGE)).toBe("none");
      expect(await attempt(0n, 16n * PAGE, 2 * PAGE_SIZE)).toBe("EINVAL");
      expect(await attempt(0n, 16n * PAGE, PAGE_SIZE / 2)).toBe("EINVAL");
      expect(await attempt(0n, 0n)).toBe("EINVAL");
      expect(await attempt(1n, PAGE)).toBe("EINVAL");
      expect(await attempt(0n, PAGE + 512n)).toBe("EINVAL");
      expect(await attempt(0n, 6n * PAGE)).toBe("EINVAL");
      expect(await attempt(6n * PAGE, 6n * PAGE)).toBe("EINVAL");
      expect(await attempt(5n * PAGE, PAGE)).toBe("EINVAL");
      expect(await attempt(U64_MAX - PAGE + 1n, 2n * PAGE)).toBe("EOVERFLOW");
      expect(await attempt(8n * PAGE, 4n * PAGE)).toBe("none");
    });

    it("are none, with an mdev that pins nothing", async () => {
      const { bench, container, map, dirty } = await setup("mdev");
      await using _ = bench;
      await map(0n, 8);
      await container.dirtyPagesStart();
      await map(16n, 8);
      expect(container.pinnedScope).toBe(true);
      expect(await dirty(0n, 32)).toEqual([]);
    });

    it("of a bitmap that has some are left as they are", async () => {
      const { bench, container, map, bitmap } = await setup("mdev");
      await using _ = bench;
      await map(0n, 200);
      await container.dirtyPagesStart();
      const into = bitmap(0n, 200);
      into.setRange(3, 120);
      await container.dirtyPagesGetBitmap({ iova: 0n, length: 200n * PAGE, into });
      expect(runs(into)).toEqual([[3, 120]]);
      const gone = bitmap(0n, 200);
      gone.setRange(3, 120);
      await container.unmapDma({ iova: 0n, length: 200n * PAGE, dirty: gone });
      expect(runs(gone)).toEqual([[3, 120]]);
    });

    withIommu("are all that is mapped, at every read, once one device doesn't pin what it writes", async () => {
      const { bench, container, map, dirty } = await setup("mdev");
      await using _ = bench;
      await map(0n, 4);
      await map(8n, 2, { readable: true, writeable: false });
      await container.dirtyPagesStart();
      expect(await dirty(0n, 16)).toEqual([]);
      await bench.addPassthrough(0);
      expect(container.pinnedScope).toBe(false);
      const all = [
        [0, 4],
        [8, 2],
      ];
      expect(await dirty(0n, 16)).toEqual(all);
      expect(await dirty(0n, 16)).toEqual(all);
      await map(12n, 1);
      expect(await dirty(0n, 16)).toEqual([...all, [12, 1]]);
    });

    withIommu("are all that is mapped once more after that device has left, then none", async () => {
      const { bench, container, map, dirty } = await setup("mdev");
      await using _ = bench;
      const remove = await bench.addPassthrough(0);
      await map(0n, 4);
      await container.dirtyPagesStart();
      expect(await dirty(0n, 4)).toEqual([[0, 4]]);
      await remove();
      expect(await dirty(0n, 4)).toEqual([[0, 4]]);
      expect(await dirty(0n, 4)).toEqual([]);
    });

    withIommu("are all that is mapped as long as one such device is left", async () => {
      const { bench, container, map, dirty } = await setup("mdev", "passthrough");
      await using _ = bench;
      const remove = await bench.addPassthrough(1);
      await map(0n, 4);
      await container.dirtyPagesStart();
      await remove();
      expect(await dirty(0n, 4)).toEqual([[0, 4]]);
      expect(await dirty(0n, 4)).toEqual([[0, 4]]);
    });

    withIommu("lie where their pages lie, whatever the range begins with, at every read", async () => {
      const { bench, container, map, dirty } = await setup("passthrough");
      await using _ = bench;
      // Neither begins at a word of the bitmap, and the second begins in the first one's last word.
      await map(5n, 70);
      await map(80n, 3);
      await map(200n, 64);
      await container.dirtyPagesStart();
      const expected = [
        [5, 70],
        [80, 3],
        [200, 64],
      ];
      for (let read = 0; read < 3; read++) expect(await dirty(0n, 300)).toEqual(expected);
      expect(await dirty(80n, 3)).toEqual([[0, 3]]);
      for (let read = 0; read < 3; read++) expect(await dirty(0n, 300)).toEqual(expected);
    });

    withIommu("of a part of a larger bitmap land in that part, and only add to it", async () => {
      const { bench, container, map, bitmap } = await setup("passthrough");
      await using _ = bench;
      await map(37n, 10);
      await map(64n, 10);
      await container.dirtyPagesStart();
      const into = bitmap(0n, 256);
      into.setRange(40, 1);
      into.setRange(75, 30);
      for (const page of [37n, 64n]) {
        await container.dirtyPagesGetBitmap({ iova: page * PAGE, length: 10n * PAGE, into });
      }
      expect(runs(into)).toEqual([
        [37, 10],
        [64, 10],
        [75, 30],
      ]);
    });

    withIommu("go with the mapping that is unmapped, which gives them away", async () => {
      const { bench, container, map, unmap, bitmap, dirty } = await setup("passthrough");
      await using _ = bench;
      await map(4n, 4);
      await map(9n, 70);
      await container.dirtyPagesStart();
      const gone = bitmap(0n, 128);
      gone.set(2);
      expect(await unmap(0n, 128, gone)).toBe(74n * PAGE);
      expect(runs(gone)).toEqual([
        [2, 1],
        [4, 4],
        [9, 70],
      ]);
      expect(await dirty(0n, 128)).toEqual([]);
      const wrong = bitmap(0n, 128, 2 * PAGE_SIZE);
      expect(await errno(unmap(0n, 128, wrong))).toBe("EINVAL");
    });
  });

  describe.skipIf(!host.passthrough)(`IOMMUs of a type1 container: ${name}`, () => {
    it("can't map the MSI window: EINVAL, with an IOMMU", async () => {
      const { bench, map } = await setup("passthrough");
      await using _ = bench;
      expect(await errno(map(MSI_PAGE, 1))).toBe("EINVAL");
      await map(0x1000n, 1);
    });

    it("keep a device away whose IOMMU can't do what is mapped: EINVAL, and nothing is changed", async () => {
      const { bench, container, map, unmap, dirty } = await setup("mdev");
      await using _ = bench;
      await map(MSI_PAGE, 1);
      await container.dirtyPagesStart();
      expect(await errno(bench.addPassthrough(0))).toBe("EINVAL");
      expect(container.pinnedScope).toBe(true);
      expect(await dirty(MSI_PAGE, 1)).toEqual([]);
      expect(await unmap(MSI_PAGE, 1)).toBe(PAGE);
      await bench.addPassthrough(0);
    });

    it("are shown what is mapped already, and keep it when another device goes", async () => {
      const { bench, container, map, unmap } = await setup("mdev");
      await using _ = bench;
      await map(0n, 512);
      const remove = await bench.addPassthrough(0);
      await map(512n, 512);
      await bench.addPassthrough(1);
      await remove();
      await container.dirtyPagesStart();
      expect(await unmap(0n, 1024)).toBe(1024n * PAGE);
    });

    it("refuse a device that is in the container already: EBUSY", async () => {
      const { bench } = await setup("passthrough");
      await using _ = bench;
      expect(await errno(bench.addPassthrough(0))).toBe("EBUSY");
    });
  });
}
