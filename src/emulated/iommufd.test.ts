import { describe, expect, it } from "vitest";
import { errno } from "../../test/support/errno.js";
import { ALL_FORMATS, TestBench } from "../../test/support/iommu.js";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { ObjectId } from "../host/host.js";
import { MiB, U64_MAX } from "../memory/address.js";
import { EmulatedIommufd } from "./iommufd.js";

/*
 * iommufd over real page tables, with real DMA: what the fake IOMMU of the other tests takes for granted.
 */

const PAGE = 4096n;
const RW = { readable: true, writeable: true };

async function setup(format: (typeof ALL_FORMATS)[number], tableBytes = 16 * MiB) {
  const bench = new TestBench({ format, ramBytes: 64 * MiB, tableBytes });
  const iommufd = new EmulatedIommufd({ physical: bench.physical, inFlight: bench.inFlight });
  const ioas = await iommufd.allocIoas();
  const device = await iommufd.bindDevice({ port: 0, iommu: bench.iommu, mdev: null });
  const map = (page: number, arenaPage: number, pages: number, into = ioas) =>
    iommufd.map(
      into,
      { arena: bench.ram, offset: arenaPage * 4096, length: pages * 4096 },
      { ...RW, iova: BigInt(page) * PAGE },
    );
  const port = bench.port(0);
  let stamp = 0;
  /** One byte by DMA; the fault, or null. */
  const write = (page: number) => port.write(page, 0, Uint8Array.of(++stamp), 0, 1);
  const read = async (hwpt: ObjectId, page: number, pages: number, clear = true) => {
    const [iova, length] = [BigInt(page) * PAGE, BigInt(pages) * PAGE];
    const into = new DirtyBitmap({ iova, length, granule: 4096 });
    const { leafSizes } = await iommufd.getDirtyBitmap(hwpt, { iova, length, pageSize: 4096, into, clear });
    const dirty = Array.from({ length: pages }, (_, bit) => bit).filter((bit) => into.get(bit));
    return { dirty: dirty.map((bit) => bit + page), leafSizes };
  };
  const close = async () => {
    await iommufd[Symbol.asyncDispose]();
    await bench[Symbol.asyncDispose]();
  };
  return { bench, iommufd, ioas, device, map, write, read, close, [Symbol.asyncDispose]: close };
}

describe.each(ALL_FORMATS)("iommufd over %s page tables", (format) => {
  it("reports two areas around a hole when it is asked for each, and the first alone when asked for both", async () => {
    await using given = await setup(format);
    const { iommufd, ioas, device, map, write, read } = given;
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
    await iommufd.attachDevice(device, hwpt);
    await map(0x100, 0, 16);
    await map(0x120, 64, 16);
    await iommufd.setDirtyTracking(hwpt, true);
    expect([write(0x103), write(0x12f), write(0x118)]).toEqual([null, null, "not-mapped"]);
    expect((await read(hwpt, 0x100, 48, false)).dirty).toEqual([0x103]);
    expect(await read(hwpt, 0x100, 16)).toEqual({ dirty: [0x103], leafSizes: [4096] });
    expect((await read(hwpt, 0x120, 16)).dirty).toEqual([0x12f]);
    expect((await read(hwpt, 0x120, 16)).dirty).toEqual([]);
  });

  it("maps with large leaves unless it is told not to", async () => {
    await using given = await setup(format);
    const { iommufd, ioas, device, map, write, read } = given;
    const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
    await iommufd.attachDevice(device, hwpt);
    await map(512, 512, 512);
    await iommufd.setDirtyTracking(hwpt, true);
    write(700);
    const { dirty, leafSizes } = await read(hwpt, 512, 512);
    expect([dirty.length, leafSizes]).toEqual([512, [2 * MiB]]);
  });

  it("shows what is mapped before and after in each HWPT of an IOAS, and blocks DMA once it is unmapped", async () => {
    await using given = await setup(format);
    const { iommufd, ioas, device, map, write } = given;
    await map(0x100, 0, 4);
    const first = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
    const second = await iommufd.allocHwpt({ device, ioas, dirtyTracking: false });
    await map(0x200, 8, 4);
    for (const hwpt of [first, second, ioas]) {
      await iommufd.attachDevice(device, hwpt);
      expect([write(0x100), write(0x203), write(0x204)]).toEqual([null, null, "not-mapped"]);
    }
    await iommufd.unmap(ioas, 0x100n * PAGE, 4n * PAGE);
    expect([write(0x100), write(0x200)]).toEqual(["not-mapped", null]);
    await iommufd.detachDevice(device);
    expect(write(0x200)).toBe("detached");
  });

  it("wipes old bits when tracking is switched on again, and keeps them out of a second read", async () => {
    await using given = await setup(format);
    const { iommufd, ioas, device, map, write, read } = given;
    const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
    await iommufd.attachDevice(device, hwpt);
    await map(0x100, 1, 3);
    write(0x100);
    await iommufd.setDirtyTracking(hwpt, true);
    expect((await read(hwpt, 0x100, 3)).dirty).toEqual([]);
    write(0x101);
    await iommufd.setDirtyTracking(hwpt, true);
    expect((await read(hwpt, 0x100, 3)).dirty).toEqual([]);
    write(0x102);
    expect((await read(hwpt, 0x100, 3)).dirty).toContain(0x102);
  });

  it("writes to the memory that is mapped now: X mapped to A, unmapped, mapped to B", async () => {
    await using given = await setup(format);
    const { bench, iommufd, ioas, device, map, write } = given;
    await iommufd.attachDevice(device, ioas);
    await map(0x100, 5, 1);
    write(0x100);
    await iommufd.unmap(ioas, 0x100n * PAGE, PAGE);
    await map(0x100, 9, 1);
    write(0x100);
    expect([bench.ram.u8[5 * 4096], bench.ram.u8[9 * 4096]]).toEqual([1, 2]);
  });

  it("returns from an unmap, and from a read that clears, only when the DMA in flight has landed", async () => {
    await using given = await setup(format);
    const { bench, iommufd, ioas, device, map, read } = given;
    const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
    await iommufd.attachDevice(device, hwpt);
    await map(0x100, 0, 4);
    await iommufd.setDirtyTracking(hwpt, true);
    for (const operation of [() => read(hwpt, 0x100, 4), () => iommufd.unmap(ioas, 0x100n * PAGE, 4n * PAGE)]) {
      bench.inFlight.begin(0);
      let returned = false;
      const running = operation().then(() => {
        returned = true;
      });
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect(returned).toBe(false);
      bench.inFlight.end(0);
      await running;
    }
  });

  it("gives a destroyed HWPT's table pages back, with all that it mapped", async () => {
    // 256 table pages; an HWPT of 4096 pages takes about a dozen.
    await using given = await setup(format, MiB);
    const { iommufd, ioas, device, map } = given;
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    await map(0, 0, 4096);
    for (let round = 0; round < 40; round++) {
      await iommufd.destroy(await iommufd.allocHwpt({ device, ioas, dirtyTracking: true }));
    }
    expect(await iommufd.unmap(ioas, 0n, U64_MAX)).toBe(4096n * PAGE);
  });

  it("leaves nothing mapped when the table pages don't suffice for a mapping: ENOMEM", async () => {
    await using given = await setup(format, MiB / 4);
    const { iommufd, ioas, device, map, write } = given;
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    await iommufd.attachDevice(device, await iommufd.allocHwpt({ device, ioas, dirtyTracking: true }));
    await iommufd.allocHwpt({ device, ioas, dirtyTracking: false });
    for (const round of [1, 2]) {
      expect([round, await errno(map(0, 0, 16 * 1024))]).toEqual([round, "ENOMEM"]);
      expect(write(0)).toBe("not-mapped");
    }
    await map(0, 0, 1024);
    expect(write(1023)).toBeNull();
  });

  it("reports reserved stretches, and keeps mappings out of them", async () => {
    await using given = await setup(format);
    const { bench, iommufd, ioas, device, map } = given;
    await iommufd.attachDevice(device, ioas);
    const [{ first }] = bench.iommu.reserved;
    expect((await iommufd.iovaRanges(ioas)).ranges.some(({ last }) => last === BigInt(first) * PAGE - 1n)).toBe(true);
    expect(await errno(map(first, 0, 1))).toBe("EINVAL");
  });

  it("keeps a device behind an IOMMU that can't track away from a tracking HWPT, and off its own", async () => {
    await using given = await setup(format);
    const { iommufd, ioas, device } = given;
    await using other = new TestBench({ format, dirtyTracking: false });
    const unable = await iommufd.bindDevice({ port: 1, iommu: other.iommu, mdev: null });
    const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
    expect(await errno(iommufd.attachDevice(unable, hwpt))).toBe("EINVAL");
    expect(await errno(iommufd.allocHwpt({ device: unable, ioas, dirtyTracking: true }))).toBe("EOPNOTSUPP");
    const auto = await iommufd.attachDevice(device, ioas);
    expect(await iommufd.attachDevice(unable, ioas)).not.toBe(auto);
  });
});
