import { afterEach, describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { Iommufd, MemoryFile, MemorySpan, ObjectId } from "../../src/host/host.js";
import { type Iova, MiB, U64_MAX } from "../../src/memory/address.js";
import { createArena } from "../../src/memory/arena.js";
import { errno } from "../support/errno.js";

/*
 * What every host's iommufd does, said once. A host gives a fixture; the order in which a call with several faults is
 * refused is for the differential test.
 */

/** A device behind an IOMMU, bound and attached. */
export interface FixtureDevice {
  /** Its id in the iommufd. */
  readonly id: ObjectId;
  /** The HWPT that it is attached to. */
  readonly hwpt: ObjectId;
  /** Attaches it to another IOAS or HWPT instead; returns the HWPT that it has then. */
  attach(pt: ObjectId): Promise<ObjectId>;
  /** Its driver lets go of it. */
  unbind(): Promise<void>;
  /** Writes by DMA to an address that it can reach. */
  write(iova: Iova): void;
}

/** An open iommufd and what tests need around it. */
export interface IommufdFixture extends AsyncDisposable {
  readonly iommufd: Iommufd;
  /** Memory for DMA, 4 MiB of it, whose first byte is aligned to a page. */
  readonly memory: MemorySpan;
  /** Adds a device, attached to an IOAS or an HWPT. */
  addDevice(pt: ObjectId, options?: { readonly dirtyTracking?: boolean }): Promise<FixtureDevice>;
  /** A file of this host, of whole pages. */
  openFile(bytes: number): Promise<MemoryFile>;
  /**
   * An HWPT with dirty tracking that maps `memory`, which is 2 MiB and contiguous, with leaves of `leafBytes`, when it is
   * put at a multiple of 2 MiB. Null where there is no page table.
   */
  readonly allocLargeHwpt:
    | ((args: {
        readonly device: ObjectId;
        readonly ioas: ObjectId;
      }) => Promise<{ hwpt: ObjectId; leafBytes: number; memory: MemorySpan }>)
    | null;
}

const PAGE = 4096;
const RW = { readable: true, writeable: true };
/** Above 0, below what any IOMMU reserves, and in the mock IOMMU's aperture: 64 MiB from here on are free. */
const BASE = 1n << 24n;
const NO_ID = 0x7ffffff;

/** IOVA of a page counted from {@link BASE}. */
const at = (page: number): Iova => BASE + BigInt(page * PAGE);
const pages = (count: number): bigint => BigInt(count * PAGE);

/** Bits that are set, counted from the bitmap's first. */
function setBitsOf(bitmap: DirtyBitmap): number[] {
  return Array.from({ length: bitmap.bits }, (_, bit) => bit).filter((bit) => bitmap.get(bit));
}

/** Reads the dirty bits of `count` pages from `page` on; returns the numbers of the bits that are set. */
async function readDirty(
  iommufd: Iommufd,
  hwpt: ObjectId,
  page: number,
  count: number,
  { clear = true, pageSize = PAGE } = {},
): Promise<number[]> {
  const range = { iova: at(page), length: pages(count) };
  const into = new DirtyBitmap({ ...range, granule: pageSize });
  await iommufd.getDirtyBitmap(hwpt, { ...range, pageSize, into, clear });
  return setBitsOf(into);
}

/** Runs the suite on a host. */
export function iommufdConformance(name: string, open: () => Promise<IommufdFixture>): void {
  const fixtures: IommufdFixture[] = [];
  afterEach(async () => {
    for (const fixture of fixtures.splice(0)) await fixture[Symbol.asyncDispose]();
  });

  async function setup() {
    const fixture = await open();
    fixtures.push(fixture);
    const { iommufd, memory } = fixture;
    const span = (offset: number, length: number): MemorySpan => ({
      arena: memory.arena,
      offset: memory.offset + offset,
      length,
    });
    const ioas = await iommufd.allocIoas();
    /** Maps pages of the memory at a page counted from BASE. */
    const map = (page: number, memoryPage: number, count: number, into = ioas, flags = RW) =>
      iommufd.map(into, span(memoryPage * PAGE, count * PAGE), { ...flags, iova: at(page) });
    return { fixture, iommufd, ioas, span, map };
  }

  /** With a device that is attached to an HWPT with dirty tracking, whose leaves are pages. */
  async function setupTracking() {
    const given = await setup();
    const { fixture, iommufd, ioas } = given;
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    const device = await fixture.addDevice(ioas);
    const hwpt = await iommufd.allocHwpt({ device: device.id, ioas, dirtyTracking: true });
    await device.attach(hwpt);
    const read = (page: number, count: number, options?: { clear?: boolean; pageSize?: number }) =>
      readDirty(iommufd, hwpt, page, count, options);
    return { ...given, device, hwpt, read };
  }

  describe(`the iommufd of the ${name}`, () => {
    describe("IOMMU_IOAS_ALLOC and IOMMU_DESTROY", () => {
      it("give an IOAS an id of its own, above 0, and take it back", async () => {
        const { iommufd, ioas } = await setup();
        const other = await iommufd.allocIoas();
        expect(ioas).toBeGreaterThan(0);
        expect(other).not.toBe(ioas);
        await iommufd.destroy(other);
        expect(await errno(iommufd.destroy(other))).toBe("ENOENT");
        expect(await errno(iommufd.iovaRanges(other))).toBe("ENOENT");
      });

      it("answer ENOENT for ids of nothing", async () => {
        const { iommufd } = await setup();
        for (const id of [NO_ID, 0, -1, 2 ** 32 + 1])
          expect([id, await errno(iommufd.destroy(id))]).toEqual([id, "ENOENT"]);
      });

      it("refuse to destroy what something uses with EBUSY: a device its driver, an HWPT its device, an IOAS its HWPT", async () => {
        const { iommufd, ioas, device, hwpt } = await setupTracking();
        for (const id of [ioas, hwpt, device.id]) expect(await errno(iommufd.destroy(id))).toBe("EBUSY");
        await device.unbind();
        expect(await errno(iommufd.destroy(ioas))).toBe("EBUSY");
        await iommufd.destroy(hwpt);
        await iommufd.destroy(ioas);
        expect(await errno(iommufd.destroy(ioas))).toBe("ENOENT");
      });

      it("let go of an IOAS's mappings with it", async () => {
        const { iommufd, ioas, map } = await setup();
        await map(0, 0, 4);
        await iommufd.destroy(ioas);
        const next = await iommufd.allocIoas();
        expect(await iommufd.unmap(next, 0n, U64_MAX)).toBe(0n);
      });
    });

    describe("IOMMU_IOAS_MAP", () => {
      it("maps at the IOVA that it is told, and answers it", async () => {
        const { iommufd, ioas, map } = await setup();
        expect(await map(0, 0, 2)).toBe(BASE);
        expect(await iommufd.unmap(ioas, BASE, pages(2))).toBe(pages(2));
      });

      it("chooses IOVAs by itself: in what is allowed, apart from each other, until there is no room: ENOSPC", async () => {
        const { iommufd, ioas, span } = await setup();
        await iommufd.allowIovas(ioas, [{ start: at(1), last: at(4) - 1n }]);
        const chosen = [];
        for (let i = 0; i < 3; i++) chosen.push(await iommufd.map(ioas, span(PAGE, PAGE), RW));
        expect(new Set(chosen)).toEqual(new Set([at(1), at(2), at(3)]));
        expect(await errno(iommufd.map(ioas, span(PAGE, PAGE), RW))).toBe("ENOSPC");
        expect(await iommufd.map(ioas, span(0, PAGE), { ...RW, iova: at(9) })).toBe(at(9));
      });

      it("refuses to replace a mapping, or a part of it, with EEXIST", async () => {
        const { map } = await setup();
        await map(2, 0, 2);
        for (const [page, count] of [
          [2, 2],
          [1, 2],
          [3, 2],
          [0, 8],
        ]) {
          expect([page, count, await errno(map(page, 8, count))]).toEqual([page, count, "EEXIST"]);
        }
      });

      it("refuses a mapping without any permission with EINVAL, and an empty one", async () => {
        const { iommufd, ioas, span } = await setup();
        const nothing = { iova: BASE, readable: false, writeable: false };
        expect(await errno(iommufd.map(ioas, span(0, PAGE), nothing))).toBe("EINVAL");
        expect(await errno(iommufd.map(ioas, span(0, 0), { ...RW, iova: BASE }))).toBe("EINVAL");
      });

      it("refuses what isn't aligned to the IOMMU's pages with EINVAL", async () => {
        const { fixture, iommufd, ioas, span } = await setup();
        await fixture.addDevice(ioas);
        expect(await errno(iommufd.map(ioas, span(0, PAGE), { ...RW, iova: BASE + 1n }))).toBe("EINVAL");
        expect(await errno(iommufd.map(ioas, span(0, PAGE - 1), { ...RW, iova: BASE }))).toBe("EINVAL");
        expect(await errno(iommufd.map(ioas, span(1, PAGE), { ...RW, iova: BASE }))).toBe("EINVAL");
      });

      it("refuses ranges past 2^64, and IOVAs that are no 64-bit numbers, with EOVERFLOW", async () => {
        const { iommufd, ioas, span } = await setup();
        for (const iova of [U64_MAX, U64_MAX - 4095n, U64_MAX + 1n, -1n]) {
          expect([iova, await errno(iommufd.map(ioas, span(0, 2 * PAGE), { ...RW, iova }))]).toEqual([
            iova,
            "EOVERFLOW",
          ]);
        }
      });

      it("refuses memory beyond the arena's end with EFAULT", async () => {
        const { iommufd, ioas } = await setup();
        const arena = createArena(65536);
        const past = { arena, offset: 65536 - PAGE, length: 2 * PAGE };
        expect(await errno(iommufd.map(ioas, past, { ...RW, iova: BASE }))).toBe("EFAULT");
      });

      it("refuses what lies outside the IOMMU's aperture, or in a reserved stretch, with EINVAL", async () => {
        const { fixture, iommufd, ioas, span } = await setup();
        await fixture.addDevice(ioas);
        const { ranges } = await iommufd.iovaRanges(ioas);
        const behind = ranges[0].last + 1n;
        expect(await errno(iommufd.map(ioas, span(0, PAGE), { ...RW, iova: behind }))).toBe("EINVAL");
        expect(await errno(iommufd.map(ioas, span(0, 2 * PAGE), { ...RW, iova: behind - pages(1) }))).toBe("EINVAL");
      });

      it("answers ENOENT for what is no IOAS", async () => {
        const { fixture, iommufd, ioas, span } = await setup();
        const device = await fixture.addDevice(ioas);
        for (const id of [NO_ID, 2 ** 32 + ioas, device.id, device.hwpt]) {
          expect(await errno(iommufd.map(id, span(0, PAGE), { ...RW, iova: BASE }))).toBe("ENOENT");
        }
      });

      it("maps much memory at once, and calls that are made meanwhile take effect in their order", async () => {
        const { fixture, iommufd, ioas, map } = await setup();
        await fixture.addDevice(ioas);
        const [much, little, again, gone, back] = await Promise.all([
          map(0, 0, 1024),
          map(1024, 0, 1),
          errno(map(1023, 0, 1)),
          iommufd.unmap(ioas, BASE, pages(1024)),
          map(1023, 0, 1),
        ]);
        expect([much, little, again, gone, back]).toEqual([BASE, at(1024), "EEXIST", pages(1024), at(1023)]);
        expect(await iommufd.unmap(ioas, 0n, U64_MAX)).toBe(pages(2));
      });
    });

    describe("IOMMU_IOAS_MAP_FILE", () => {
      it("maps a stretch of a file, which may be closed then", async () => {
        const { fixture, iommufd, ioas } = await setup();
        await fixture.addDevice(ioas);
        const file = await fixture.openFile(8 * PAGE);
        const range = { start: 2 * PAGE, length: 4 * PAGE };
        expect(await iommufd.mapFile(ioas, file, range, { ...RW, iova: BASE })).toBe(BASE);
        expect(await errno(iommufd.mapFile(ioas, file, range, { ...RW, iova: at(3) }))).toBe("EEXIST");
        await file[Symbol.asyncDispose]();
        expect(await iommufd.unmap(ioas, BASE, pages(4))).toBe(pages(4));
        expect(await errno(iommufd.mapFile(ioas, file, range, { ...RW, iova: BASE }))).toBe("EBADF");
      });

      it("refuses a stretch past the file's end, and an empty one, with EINVAL, and a file of another host with EBADF", async () => {
        const { fixture, iommufd, ioas } = await setup();
        await fixture.addDevice(ioas);
        await using file = await fixture.openFile(8 * PAGE);
        const stretch = (start: number, length: number) =>
          errno(iommufd.mapFile(ioas, file, { start, length }, { ...RW, iova: BASE }));
        expect([await stretch(6 * PAGE, 4 * PAGE), await stretch(0, 0)]).toEqual(["EINVAL", "EINVAL"]);
        const foreign = { bytes: 8 * PAGE, [Symbol.asyncDispose]: async () => {} };
        const mapped = iommufd.mapFile(ioas, foreign, { start: 0, length: PAGE }, { ...RW, iova: BASE });
        expect(await errno(mapped)).toBe("EBADF");
      });
    });

    describe("IOMMU_IOAS_COPY", () => {
      it("maps the same memory in another IOAS: a part of a mapping, or several in a row", async () => {
        const { iommufd, ioas, map } = await setup();
        await map(0, 0, 4);
        await map(4, 8, 4);
        const other = await iommufd.allocIoas();
        const copied = await iommufd.copy(
          { ioas, iova: at(2), length: pages(4) },
          { ioas: other, ...RW, iova: at(20) },
        );
        expect(copied).toBe(at(20));
        expect(await errno(iommufd.unmap(other, at(20), pages(1)))).toBe("ENOENT");
        expect(await iommufd.unmap(other, at(20), pages(2))).toBe(pages(2));
        expect(await iommufd.unmap(other, 0n, U64_MAX)).toBe(pages(2));
      });

      it("outlives the mapping that was copied, and may lie in the same IOAS", async () => {
        const { iommufd, ioas, map } = await setup();
        await map(0, 0, 2);
        await iommufd.copy({ ioas, iova: BASE, length: pages(2) }, { ioas, ...RW, iova: at(8) });
        await iommufd.unmap(ioas, BASE, pages(2));
        await iommufd.copy({ ioas, iova: at(8), length: pages(2) }, { ioas, ...RW, iova: BASE });
        expect(await iommufd.unmap(ioas, 0n, U64_MAX)).toBe(pages(4));
      });

      it("may be narrower than what was mapped, and no wider: EPERM", async () => {
        const { iommufd, ioas, map } = await setup();
        const readable = { readable: true, writeable: false };
        await map(0, 0, 1);
        await map(1, 1, 1, ioas, readable);
        const copy = (page: number, to: number, flags: typeof RW) =>
          errno(iommufd.copy({ ioas, iova: at(page), length: pages(1) }, { ioas, ...flags, iova: at(to) }));
        expect(await copy(0, 10, readable)).toBe("none");
        expect(await copy(10, 11, RW)).toBe("none");
        expect(await copy(1, 12, readable)).toBe("none");
        expect(await copy(1, 13, RW)).toBe("EPERM");
      });

      it("is refused over a hole and for unknown IOASes with ENOENT, onto a mapping with EEXIST, empty with EINVAL", async () => {
        const { iommufd, ioas, map } = await setup();
        await map(0, 0, 2);
        await map(4, 4, 2);
        const copy = (source: ObjectId, page: number, count: number, target: ObjectId, to: number) =>
          errno(
            iommufd.copy({ ioas: source, iova: at(page), length: pages(count) }, { ioas: target, ...RW, iova: at(to) }),
          );
        expect(await copy(ioas, 0, 4, ioas, 20)).toBe("ENOENT");
        expect(await copy(ioas, 2, 1, ioas, 20)).toBe("ENOENT");
        expect(await copy(NO_ID, 0, 1, ioas, 20)).toBe("ENOENT");
        expect(await copy(ioas, 0, 1, NO_ID, 20)).toBe("ENOENT");
        expect(await copy(ioas, 0, 2, ioas, 4)).toBe("EEXIST");
        expect(await copy(ioas, 0, 0, ioas, 20)).toBe("EINVAL");
      });
    });

    describe("IOMMU_IOAS_UNMAP", () => {
      it("unmaps all mappings inside the range, across holes, and answers their bytes", async () => {
        const { iommufd, ioas, map } = await setup();
        await map(0, 0, 2);
        await map(5, 0, 3);
        await map(10, 0, 1);
        expect(await iommufd.unmap(ioas, BASE, pages(9))).toBe(pages(5));
        expect(await iommufd.unmap(ioas, 0n, U64_MAX)).toBe(pages(1));
      });

      it("refuses to split a mapping with ENOENT, with what lies below it unmapped", async () => {
        const { iommufd, ioas, map } = await setup();
        await map(0, 0, 2);
        await map(2, 2, 2);
        await map(4, 4, 2);
        expect(await errno(iommufd.unmap(ioas, BASE, pages(3)))).toBe("ENOENT");
        expect(await errno(iommufd.unmap(ioas, at(3), pages(3)))).toBe("ENOENT");
        expect(await iommufd.unmap(ioas, 0n, U64_MAX)).toBe(pages(4));
      });

      it("refuses a range with nothing in it with ENOENT; of everything it succeeds, with 0", async () => {
        const { iommufd, ioas } = await setup();
        expect(await errno(iommufd.unmap(ioas, BASE, pages(1)))).toBe("ENOENT");
        expect(await iommufd.unmap(ioas, 0n, U64_MAX)).toBe(0n);
        expect(await errno(iommufd.unmap(NO_ID, 0n, U64_MAX))).toBe("ENOENT");
      });

      it("refuses an empty range with EINVAL, and one past 2^64 with EOVERFLOW", async () => {
        const { iommufd, ioas } = await setup();
        expect(await errno(iommufd.unmap(ioas, BASE, 0n))).toBe("EINVAL");
        expect(await errno(iommufd.unmap(ioas, U64_MAX - 4095n, pages(2)))).toBe("EOVERFLOW");
        expect(await errno(iommufd.unmap(ioas, -1n, pages(2)))).toBe("EOVERFLOW");
      });
    });

    describe("IOMMU_IOAS_IOVA_RANGES and ALLOW_IOVAS", () => {
      it("list everything at first, then what the IOMMU can do, and everything again without it", async () => {
        const { fixture, iommufd, ioas } = await setup();
        const everything = { ranges: [{ start: 0n, last: U64_MAX }], alignment: 1 };
        expect(await iommufd.iovaRanges(ioas)).toEqual(everything);
        const device = await fixture.addDevice(ioas);
        const { ranges, alignment } = await iommufd.iovaRanges(ioas);
        expect(ranges.some(({ start, last }) => start <= BASE && last >= BASE + BigInt(64 * MiB) - 1n)).toBe(true);
        expect(ranges.at(-1)?.last).toBeLessThan(U64_MAX);
        expect(PAGE % alignment).toBe(0);
        expect(alignment).toBeGreaterThan(1);
        await device.unbind();
        expect(await iommufd.iovaRanges(ioas)).toEqual(everything);
      });

      it("replace the whole list", async () => {
        const { iommufd, ioas, span } = await setup();
        await iommufd.allowIovas(ioas, [{ start: at(0), last: at(8) - 1n }]);
        await iommufd.allowIovas(ioas, [{ start: at(16), last: at(17) - 1n }]);
        expect(await iommufd.map(ioas, span(0, PAGE), RW)).toBe(at(16));
        expect(await errno(iommufd.map(ioas, span(0, PAGE), RW))).toBe("ENOSPC");
        await iommufd.allowIovas(ioas, []);
        expect(await errno(iommufd.map(ioas, span(0, PAGE), RW))).toBe("none");
      });

      it("are refused for ranges that overlap or end where they start with EINVAL, and for reserved ones with EADDRINUSE", async () => {
        const { fixture, iommufd, ioas } = await setup();
        const allow = (...ranges: [Iova, Iova][]) =>
          errno(
            iommufd.allowIovas(
              ioas,
              ranges.map(([start, last]) => ({ start, last })),
            ),
          );
        expect(await allow([at(0), at(4)], [at(4), at(8)])).toBe("EINVAL");
        expect(await allow([at(1), at(1)])).toBe("EINVAL");
        expect(await allow([at(2), at(1)])).toBe("EINVAL");
        await fixture.addDevice(ioas);
        expect(await allow([at(0), U64_MAX])).toBe("EADDRINUSE");
        expect(await errno(iommufd.allowIovas(NO_ID, []))).toBe("ENOENT");
      });

      it("keep a device away whose IOMMU can't do what is allowed, or mapped: EADDRINUSE", async () => {
        const { fixture, iommufd, ioas, span } = await setup();
        await iommufd.allowIovas(ioas, [{ start: 0n, last: U64_MAX }]);
        expect(await errno(fixture.addDevice(ioas))).toBe("EADDRINUSE");
        await iommufd.allowIovas(ioas, []);
        await iommufd.map(ioas, span(0, PAGE), { ...RW, iova: 1n << 60n });
        expect(await errno(fixture.addDevice(ioas))).toBe("EADDRINUSE");
        await iommufd.unmap(ioas, 1n << 60n, pages(1));
        await fixture.addDevice(ioas);
      });
    });

    describe("IOMMU_OPTION", () => {
      it("sets RLIMIT_MODE to 0 or 1, before the first object is made: EINVAL, EBUSY", async () => {
        const { iommufd, ioas } = await setup();
        const mode = { option: "RLIMIT_MODE" } as const;
        expect(await iommufd.getOption(mode)).toBe(0);
        expect(await errno(iommufd.setOption(mode, 1))).toBe("EBUSY");
        await iommufd.destroy(ioas);
        await iommufd.setOption(mode, 1);
        expect(await iommufd.getOption(mode)).toBe(1);
        expect(await errno(iommufd.setOption(mode, 2))).toBe("EINVAL");
      });

      it("sets HUGE_PAGES to 0 or 1, to 0 only while nothing is mapped for a device: EINVAL", async () => {
        const { fixture, iommufd, ioas, map } = await setup();
        const huge = { option: "HUGE_PAGES", ioas } as const;
        expect(await iommufd.getOption(huge)).toBe(1);
        expect(await errno(iommufd.setOption(huge, 2))).toBe("EINVAL");
        await iommufd.setOption(huge, 0);
        expect([await iommufd.getOption(huge), (await iommufd.iovaRanges(ioas)).alignment]).toEqual([0, PAGE]);
        await iommufd.setOption(huge, 1);
        await fixture.addDevice(ioas);
        await map(0, 0, 1);
        expect(await errno(iommufd.setOption(huge, 0))).toBe("EINVAL");
        expect(await errno(iommufd.getOption({ option: "HUGE_PAGES", ioas: NO_ID }))).toBe("ENOENT");
      });
    });

    describe("IOMMU_GET_HW_INFO and IOMMU_HWPT_ALLOC", () => {
      it("say of each device whether its IOMMU can track, and keep tracking away from one that can't: EOPNOTSUPP", async () => {
        const { fixture, iommufd, ioas } = await setup();
        const able = await fixture.addDevice(ioas);
        const unable = await fixture.addDevice(ioas, { dirtyTracking: false });
        expect((await iommufd.hwInfo(able.id)).dirtyTracking).toBe(true);
        expect((await iommufd.hwInfo(unable.id)).dirtyTracking).toBe(false);
        const alloc = (device: FixtureDevice, dirtyTracking: boolean) =>
          errno(iommufd.allocHwpt({ device: device.id, ioas, dirtyTracking }));
        expect([await alloc(able, true), await alloc(able, false)]).toEqual(["none", "none"]);
        expect([await alloc(unable, true), await alloc(unable, false)]).toEqual(["EOPNOTSUPP", "none"]);
      });

      it("answer ENOENT for what is no device, and EINVAL for what no HWPT can be made on", async () => {
        const { fixture, iommufd, ioas } = await setup();
        const device = await fixture.addDevice(ioas);
        for (const id of [NO_ID, ioas]) {
          expect(await errno(iommufd.hwInfo(id))).toBe("ENOENT");
          expect(await errno(iommufd.allocHwpt({ device: id, ioas, dirtyTracking: false }))).toBe("ENOENT");
        }
        for (const id of [NO_ID, device.id]) {
          expect(await errno(iommufd.allocHwpt({ device: device.id, ioas: id, dirtyTracking: false }))).toBe("EINVAL");
        }
      });
    });

    describe("attaching a device", () => {
      it("to an HWPT with dirty tracking is refused with EINVAL where its IOMMU can't track, and changes nothing", async () => {
        const { fixture, ioas, hwpt, device, map, read, iommufd } = await setupTracking();
        const unable = await fixture.addDevice(ioas, { dirtyTracking: false });
        const before = unable.hwpt;
        expect(await errno(unable.attach(hwpt))).toBe("EINVAL");
        expect(unable.hwpt).toBe(before);
        await map(0, 0, 2);
        await iommufd.setDirtyTracking(hwpt, true);
        device.write(at(1));
        expect(await read(0, 2)).toEqual([1]);
      });

      it("to an IOAS shares an HWPT with the devices that fit, and never takes one made by hand", async () => {
        const { fixture, ioas, hwpt } = await setupTracking();
        const one = await fixture.addDevice(ioas);
        const two = await fixture.addDevice(ioas);
        expect(one.hwpt).not.toBe(hwpt);
        expect(two.hwpt).toBe(one.hwpt);
      });

      it("again moves it to the other HWPT, where what is mapped already can be written", async () => {
        const { iommufd, ioas, device, hwpt, map, read } = await setupTracking();
        await map(0, 0, 4);
        const other = await iommufd.allocHwpt({ device: device.id, ioas, dirtyTracking: true });
        await iommufd.setDirtyTracking(hwpt, true);
        await iommufd.setDirtyTracking(other, true);
        device.write(at(0));
        expect(await device.attach(other)).toBe(other);
        device.write(at(1));
        expect([await read(0, 4), await readDirty(iommufd, other, 0, 4)]).toEqual([[0], [1]]);
      });

      it("to what is nothing is refused with ENOENT, and to another kind of object with EINVAL", async () => {
        const { device } = await setupTracking();
        expect(await errno(device.attach(NO_ID))).toBe("ENOENT");
        expect(await errno(device.attach(device.id))).toBe("EINVAL");
      });
    });

    describe("IOMMU_HWPT_SET_DIRTY_TRACKING", () => {
      it("switches tracking on, with what was dirty before wiped, and off", async () => {
        const { iommufd, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 4);
        device.write(at(0));
        await iommufd.setDirtyTracking(hwpt, true);
        expect(await read(0, 4)).toEqual([]);
        device.write(at(1));
        await iommufd.setDirtyTracking(hwpt, true);
        expect(await read(0, 4)).toEqual([]);
        device.write(at(2));
        expect(await read(0, 4)).toEqual([2]);
        await iommufd.setDirtyTracking(hwpt, false);
        device.write(at(3));
        expect(await read(0, 4)).toEqual([]);
      });

      it("holds for a device that is attached while it is on", async () => {
        const { fixture, iommufd, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 4);
        await iommufd.setDirtyTracking(hwpt, true);
        const late = await fixture.addDevice(hwpt);
        late.write(at(3));
        device.write(at(0));
        expect(await read(0, 4)).toEqual([0, 3]);
      });

      it("holds for memory that is mapped while it is on", async () => {
        const { iommufd, hwpt, device, map, read } = await setupTracking();
        await iommufd.setDirtyTracking(hwpt, true);
        await map(0, 0, 4);
        device.write(at(2));
        expect(await read(0, 4)).toContain(2);
      });

      it("is refused with EOPNOTSUPP for an HWPT without it, and with ENOENT for what is no HWPT", async () => {
        const { iommufd, ioas, device } = await setupTracking();
        const plain = await iommufd.allocHwpt({ device: device.id, ioas, dirtyTracking: false });
        for (const [id, code] of [
          [plain, "EOPNOTSUPP"],
          [ioas, "ENOENT"],
          [NO_ID, "ENOENT"],
        ] as const) {
          expect(await errno(iommufd.setDirtyTracking(id, true))).toBe(code);
          expect(await errno(readDirty(iommufd, id, 0, 1))).toBe(code);
        }
      });
    });

    describe("IOMMU_HWPT_GET_DIRTY_BITMAP", () => {
      it("reports what was written since the last read, and clears it", async () => {
        const { iommufd, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 64);
        await iommufd.setDirtyTracking(hwpt, true);
        for (const page of [0, 7, 8, 63]) device.write(at(page));
        expect(await read(0, 64)).toEqual([0, 7, 8, 63]);
        expect(await read(0, 64)).toEqual([]);
        device.write(at(7));
        expect(await read(0, 64)).toEqual([7]);
      });

      it("leaves the bits where they are when it is told not to clear", async () => {
        const { iommufd, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 8);
        await iommufd.setDirtyTracking(hwpt, true);
        device.write(at(5));
        for (let peek = 0; peek < 2; peek++) expect(await read(0, 8, { clear: false })).toEqual([5]);
        expect(await read(0, 8)).toEqual([5]);
        expect(await read(0, 8, { clear: false })).toEqual([]);
      });

      it("counts bits from the requested IOVA, wherever that lies in the mapping, and leaves the rest alone", async () => {
        const { iommufd, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 64);
        await iommufd.setDirtyTracking(hwpt, true);
        for (const page of [3, 5, 40]) device.write(at(page));
        expect(await read(5, 3)).toEqual([0]);
        expect(await read(0, 64)).toEqual([3, 40]);
      });

      it("adds to the bits that are there, and takes none away", async () => {
        const { iommufd, hwpt, device, map } = await setupTracking();
        await map(0, 0, 64);
        await iommufd.setDirtyTracking(hwpt, true);
        const range = { iova: at(0), length: pages(64) };
        const into = new DirtyBitmap({ ...range, granule: PAGE });
        for (const bit of [1, 33, 62]) into.set(bit);
        device.write(at(2));
        device.write(at(33));
        await iommufd.getDirtyBitmap(hwpt, { ...range, pageSize: PAGE, into, clear: true });
        expect(setBitsOf(into)).toEqual([1, 2, 33, 62]);
      });

      it("fills a part of a larger bitmap, whether or not that part begins at a byte", async () => {
        const { iommufd, hwpt, device, map } = await setupTracking();
        await map(0, 0, 128);
        await iommufd.setDirtyTracking(hwpt, true);
        const into = new DirtyBitmap({ iova: at(0), length: pages(128), granule: PAGE });
        for (const [page, count] of [
          [8, 24],
          [35, 30],
          [127, 1],
        ]) {
          device.write(at(page));
          device.write(at(page + count - 1));
          const range = { iova: at(page), length: pages(count) };
          await iommufd.getDirtyBitmap(hwpt, { ...range, pageSize: PAGE, into, clear: true });
        }
        expect(setBitsOf(into)).toEqual([8, 31, 35, 64, 127]);
      });

      it("touches nothing of the bitmap behind the range's bits", async () => {
        const { iommufd, hwpt, device, map } = await setupTracking();
        await map(0, 0, 64);
        await iommufd.setDirtyTracking(hwpt, true);
        for (let page = 0; page < 64; page++) device.write(at(page));
        const into = new DirtyBitmap({ iova: at(0), length: pages(37), granule: PAGE });
        into.words.fill(0x5a5a5a5a, 2);
        await iommufd.getDirtyBitmap(hwpt, { iova: at(0), length: pages(37), pageSize: PAGE, into, clear: true });
        expect(into.words.subarray(0, 2)).toEqual(Uint32Array.of(0xffffffff, 0x1f));
        expect(into.words.subarray(2).every((word) => word === 0x5a5a5a5a)).toBe(true);
      });

      it("stops at a hole in the mapping and succeeds: what lies behind is reported when it is asked for itself", async () => {
        const { iommufd, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 4);
        await map(4, 8, 4);
        await map(10, 16, 4);
        await iommufd.setDirtyTracking(hwpt, true);
        for (const page of [1, 6, 12]) device.write(at(page));
        expect(await read(0, 16)).toEqual([1, 6]);
        expect(await read(8, 8)).toEqual([]);
        expect(await read(10, 4)).toEqual([2]);
      });

      it("reports nothing of what is mapped no more", async () => {
        const { iommufd, ioas, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 4);
        await iommufd.setDirtyTracking(hwpt, true);
        device.write(at(1));
        await iommufd.unmap(ioas, at(0), pages(4));
        expect(await read(0, 4)).toEqual([]);
      });

      it("rounds outwards to a page size larger than the leaves", async () => {
        const { iommufd, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 64);
        await iommufd.setDirtyTracking(hwpt, true);
        for (const page of [1, 15, 16, 40]) device.write(at(page));
        expect(await read(0, 64, { pageSize: 8 * PAGE })).toEqual([0, 1, 2, 5]);
      });

      it("reports large leaves whole, with a bit for each page that was asked for, and cleans them whole", async ({
        skip,
      }) => {
        const { fixture, iommufd, ioas } = await setup();
        if (fixture.allocLargeHwpt === null) return skip("it has no page table");
        const device = await fixture.addDevice(ioas);
        const { hwpt, leafBytes, memory } = await fixture.allocLargeHwpt({ device: device.id, ioas });
        await iommufd.map(ioas, memory, { ...RW, iova: BASE });
        await device.attach(hwpt);
        await iommufd.setDirtyTracking(hwpt, true);
        const leafPages = leafBytes / PAGE;
        device.write(at(memory.length / PAGE - 3));
        const all = await readDirty(iommufd, hwpt, 0, memory.length / PAGE, { clear: false });
        expect([all.length, all[0], all.at(-1)]).toEqual([
          leafPages,
          (memory.length - leafBytes) / PAGE,
          memory.length / PAGE - 1,
        ]);
        // The trap: asked for a part, the kernel cleans all of the leaf.
        const tail = memory.length / PAGE - 8;
        expect((await readDirty(iommufd, hwpt, tail, 8)).length).toBe(8);
        expect(await readDirty(iommufd, hwpt, 0, memory.length / PAGE)).toEqual([]);
      });

      it("reads much at once, more than is mapped", async () => {
        const { iommufd, hwpt, device, map, read } = await setupTracking();
        await map(0, 0, 1024);
        await iommufd.setDirtyTracking(hwpt, true);
        device.write(at(1023));
        expect(await read(0, (128 * MiB) / PAGE)).toEqual([1023]);
      });

      it("is refused for ranges that aren't aligned to the page size with EINVAL, and past 2^64 with EOVERFLOW", async () => {
        const { iommufd, hwpt, map } = await setupTracking();
        await map(0, 0, 16);
        const get = (iova: Iova, length: bigint, pageSize: number) => {
          const into = new DirtyBitmap({ iova, length, granule: pageSize });
          return errno(iommufd.getDirtyBitmap(hwpt, { iova, length, pageSize, into, clear: true }));
        };
        expect(await get(at(1), pages(2), 2 * PAGE)).toBe("EINVAL");
        expect(await get(at(0), pages(3), 2 * PAGE)).toBe("EINVAL");
        expect(await get(at(0) + 1n, pages(1), PAGE)).toBe("EINVAL");
        expect(await get(U64_MAX - 4095n, pages(2), PAGE)).toBe("EOVERFLOW");
      });

      it("is refused for a bitmap that doesn't hold the range, or of another granule, with EINVAL", async () => {
        const { iommufd, hwpt, map } = await setupTracking();
        await map(0, 0, 16);
        const get = (page: number, count: number, granule: number) => {
          const into = new DirtyBitmap({ iova: at(page), length: pages(count), granule });
          return errno(
            iommufd.getDirtyBitmap(hwpt, { iova: at(4), length: pages(8), pageSize: PAGE, into, clear: true }),
          );
        };
        expect(await get(4, 7, PAGE)).toBe("EINVAL");
        expect(await get(5, 8, PAGE)).toBe("EINVAL");
        expect(await get(4, 8, 2 * PAGE)).toBe("EINVAL");
        expect(await get(4, 8, PAGE)).toBe("none");
      });
    });

    describe("a closed iommufd", () => {
      it("answers EBADF to every call, and may be closed again", async () => {
        const { fixture, iommufd, ioas, span } = await setup();
        await using file = await fixture.openFile(PAGE);
        await iommufd[Symbol.asyncDispose]();
        await iommufd[Symbol.asyncDispose]();
        const into = new DirtyBitmap({ iova: BASE, length: pages(1), granule: PAGE });
        const from = { ioas, iova: BASE, length: pages(1) };
        const calls = [
          iommufd.allocIoas(),
          iommufd.iovaRanges(ioas),
          iommufd.allowIovas(ioas, []),
          iommufd.map(ioas, span(0, PAGE), { ...RW, iova: BASE }),
          iommufd.mapFile(ioas, file, { start: 0, length: PAGE }, { ...RW, iova: BASE }),
          iommufd.copy(from, { ioas, ...RW }),
          iommufd.unmap(ioas, 0n, U64_MAX),
          iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0),
          iommufd.getOption({ option: "RLIMIT_MODE" }),
          iommufd.hwInfo(ioas),
          iommufd.allocHwpt({ device: ioas, ioas, dirtyTracking: true }),
          iommufd.setDirtyTracking(ioas, true),
          iommufd.getDirtyBitmap(ioas, { iova: BASE, length: pages(1), pageSize: PAGE, into, clear: true }),
          iommufd.destroy(ioas),
        ];
        expect(await Promise.all(calls.map(errno))).toEqual(calls.map(() => "EBADF"));
      });

      it("finishes the calls that were made before it was closed", async () => {
        const { iommufd, map } = await setup();
        const mapped = map(0, 0, 1024);
        await iommufd[Symbol.asyncDispose]();
        expect(await mapped).toBe(BASE);
      });
    });
  });
}
