import { describe, expect, it } from "vitest";
import { errno } from "../../test/support/errno.js";
import { FakeIommu, openIommufd } from "../../test/support/fake-host/iommu.js";
import { GiB, KiB, MiB, U64_MAX } from "../memory/address.js";
import { createArena } from "../memory/arena.js";
import { ArenaFile } from "./arena-file.js";

const PAGE = 4096n;
const RW = { readable: true, writeable: true };

async function setup() {
  const arena = createArena(64 * MiB);
  const iommufd = openIommufd([arena]);
  const ioas = await iommufd.allocIoas();
  const span = (offset: number, length: number) => ({ arena, offset, length });
  return { arena, iommufd, ioas, span };
}

describe("IOMMU_IOAS_MAP", () => {
  it("maps where it is told and answers the IOVA", async () => {
    const { iommufd, ioas, span } = await setup();
    expect(await iommufd.map(ioas, span(0, 8192), { iova: 0x10000n, ...RW })).toBe(0x10000n);
    expect(await iommufd.unmap(ioas, 0x10000n, 0x2000n)).toBe(0x2000n);
  });

  it("refuses a mapping that is neither readable nor writeable with EINVAL, before it looks at the id", async () => {
    const { iommufd, span } = await setup();
    expect(await errno(iommufd.map(99, span(0, 4096), { iova: 0n, readable: false, writeable: false }))).toBe("EINVAL");
  });

  it("refuses the highest IOVA with EOVERFLOW, before it looks at permissions", async () => {
    const { iommufd, ioas, span } = await setup();
    const flags = { iova: U64_MAX, readable: false, writeable: false };
    expect(await errno(iommufd.map(ioas, span(0, 4096), flags))).toBe("EOVERFLOW");
  });

  it("refuses an unknown IOAS, and the id of something else, with ENOENT, before it looks at the length", async () => {
    const { iommufd, span } = await setup();
    const device = await iommufd.bindDevice({ port: 0, iommu: new FakeIommu(), mdev: null });
    expect(await errno(iommufd.map(99, span(0, 0), { iova: 0n, ...RW }))).toBe("ENOENT");
    expect(await errno(iommufd.map(device, span(0, 0), { iova: 0n, ...RW }))).toBe("ENOENT");
  });

  it("refuses an empty mapping with EINVAL", async () => {
    const { iommufd, ioas, span } = await setup();
    expect(await errno(iommufd.map(ioas, span(0, 0), { iova: 0n, ...RW }))).toBe("EINVAL");
  });

  it("refuses a range past 2^64 with EOVERFLOW", async () => {
    const { iommufd, ioas, span } = await setup();
    expect(await errno(iommufd.map(ioas, span(0, 8192), { iova: U64_MAX - 4095n, ...RW }))).toBe("EOVERFLOW");
    expect(await iommufd.map(ioas, span(0, 4096), { iova: U64_MAX - 4095n, ...RW })).toBe(U64_MAX - 4095n);
  });

  it("refuses to replace a mapping with EEXIST", async () => {
    const { iommufd, ioas, span } = await setup();
    await iommufd.map(ioas, span(0, 8192), { iova: 0x10000n, ...RW });
    expect(await errno(iommufd.map(ioas, span(0, 8192), { iova: 0x11000n, ...RW }))).toBe("EEXIST");
    expect(await errno(iommufd.map(ioas, span(0, 8192), { iova: 0xf000n, ...RW }))).toBe("EEXIST");
  });

  it("refuses memory of an unknown arena, and past an arena's end, with EFAULT", async () => {
    const { iommufd, ioas, span } = await setup();
    const stranger = { arena: createArena(65536), offset: 0, length: 4096 };
    expect(await errno(iommufd.map(ioas, stranger, { iova: 0n, ...RW }))).toBe("EFAULT");
    expect(await errno(iommufd.map(ioas, span(64 * MiB - 4096, 8192), { iova: 0n, ...RW }))).toBe("EFAULT");
  });

  it("takes any byte while nothing demands pages, and only pages once a device is attached", async () => {
    const { iommufd, ioas, span } = await setup();
    expect((await iommufd.iovaRanges(ioas)).alignment).toBe(1);
    await iommufd.map(ioas, span(1, 3), { iova: 7n, ...RW });
    const device = await iommufd.bindDevice({ port: 0, iommu: new FakeIommu(), mdev: null });
    expect(await errno(iommufd.attachDevice(device, ioas))).toBe("EADDRINUSE");
    await iommufd.unmap(ioas, 7n, 3n);
    await iommufd.attachDevice(device, ioas);
    expect((await iommufd.iovaRanges(ioas)).alignment).toBe(4096);
    expect(await errno(iommufd.map(ioas, span(0, 4095), { iova: 0n, ...RW }))).toBe("EINVAL");
    expect(await errno(iommufd.map(ioas, span(0, 4096), { iova: 1n, ...RW }))).toBe("EINVAL");
    expect(await errno(iommufd.map(ioas, span(1, 4096), { iova: 0n, ...RW }))).toBe("EINVAL");
    await iommufd.detachDevice(device);
    expect((await iommufd.iovaRanges(ioas)).alignment).toBe(1);
  });

  it("refuses reserved IOVAs with EINVAL", async () => {
    const { iommufd, ioas, span } = await setup();
    const device = await iommufd.bindDevice({ port: 0, iommu: new FakeIommu(), mdev: null });
    await iommufd.attachDevice(device, ioas);
    expect(await errno(iommufd.map(ioas, span(0, 8192), { iova: 0xfedff000n, ...RW }))).toBe("EINVAL");
    expect(await errno(iommufd.map(ioas, span(0, 4096), { iova: 1n << 48n, ...RW }))).toBe("EINVAL");
  });

  it("chooses the lowest free IOVA above the first page, as aligned as the memory, up to 2 MiB", async () => {
    const { iommufd, ioas, span } = await setup();
    expect(await iommufd.map(ioas, span(4096, 4096), RW)).toBe(0x1000n);
    expect(await iommufd.map(ioas, span(0, 65536), RW)).toBe(0x10000n);
    expect(await iommufd.map(ioas, span(4096, 8192), RW)).toBe(0x2000n);
    expect(await iommufd.map(ioas, span(0, 32 * MiB), RW)).toBe(0x200000n);
    expect(await iommufd.map(ioas, span(0x1234, 4096), RW)).toBe(0x4234n);
  });

  it("allocates within the allowed ranges only, and answers ENOSPC when they are full", async () => {
    const { iommufd, ioas, span } = await setup();
    await iommufd.allowIovas(ioas, [{ start: 0x100000n, last: 0x100000n + 2n * PAGE - 1n }]);
    expect(await iommufd.map(ioas, span(4096, 4096), RW)).toBe(0x100000n);
    expect(await iommufd.map(ioas, span(4096, 4096), RW)).toBe(0x101000n);
    expect(await errno(iommufd.map(ioas, span(4096, 4096), RW))).toBe("ENOSPC");
    expect(await iommufd.map(ioas, span(4096, 4096), { iova: 0x200000n, ...RW })).toBe(0x200000n);
  });

  it("leaves nothing mapped when one of several domains has no memory left", async () => {
    const { iommufd, ioas, span } = await setup();
    const iommu = new FakeIommu();
    const device = await iommufd.bindDevice({ port: 0, iommu, mdev: null });
    await iommufd.allocHwpt({ device, ioas, dirtyTracking: false });
    await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
    iommu.domains[1].capacity = 1;
    expect(await errno(iommufd.map(ioas, span(0, 8192), { iova: 0n, ...RW }))).toBe("ENOMEM");
    expect(iommu.domains[0].entries.size).toBe(0);
    expect(await iommufd.map(ioas, span(0, 4096), { iova: 0n, ...RW })).toBe(0n);
  });
});

describe("IOMMU_IOAS_MAP_FILE", () => {
  it("maps a stretch of a file of the host", async () => {
    const { iommufd, ioas, span } = await setup();
    const iommu = new FakeIommu();
    await iommufd.attachDevice(iommufd.bindDevice({ port: 0, iommu, mdev: null }), ioas);
    await using file = new ArenaFile(span(MiB, 512 * KiB));
    expect(await iommufd.mapFile(ioas, file, { start: 4096, length: 8192 }, { iova: 0n, ...RW })).toBe(0n);
    expect(iommu.domains[0].entries.get(1)?.offset).toBe(MiB + 8192);
    const past = iommufd.mapFile(ioas, file, { start: 508 * KiB, length: 8192 }, { iova: 0x10000n, ...RW });
    expect(await errno(past)).toBe("EINVAL");
  });

  it("refuses a closed file, and one of another host, with EBADF", async () => {
    const { iommufd, ioas, span } = await setup();
    const file = new ArenaFile(span(0, MiB));
    await file[Symbol.asyncDispose]();
    const range = { start: 0, length: 4096 };
    expect(await errno(iommufd.mapFile(ioas, file, range, { iova: 0n, ...RW }))).toBe("EBADF");
    const foreign = { bytes: GiB, [Symbol.asyncDispose]: async () => {} };
    expect(await errno(iommufd.mapFile(ioas, foreign, range, { iova: 0n, ...RW }))).toBe("EBADF");
  });
});

describe("IOMMU_IOAS_COPY", () => {
  it("shows the same memory in another IOAS, also a part of a mapping and several mappings in a row", async () => {
    const { iommufd, ioas, span } = await setup();
    const iommu = new FakeIommu();
    const device = await iommufd.bindDevice({ port: 0, iommu, mdev: null });
    const other = await iommufd.allocIoas();
    await iommufd.attachDevice(device, other);
    await iommufd.map(ioas, span(0, 8192), { iova: 0x1000n, ...RW });
    await iommufd.map(ioas, span(65536, 8192), { iova: 0x3000n, ...RW });
    await iommufd.copy({ ioas, iova: 0x2000n, length: 0x2000n }, { ioas: other, iova: 0x8000n, ...RW });
    const offsets = [8, 9].map((page) => iommu.domains[0].entries.get(page)?.offset);
    expect(offsets).toEqual([4096, 65536]);
    await iommufd.unmap(ioas, 0n, U64_MAX);
    expect(iommu.write(0, 8)).toBe(true);
    expect(await iommufd.unmap(other, 0x8000n, 0x1000n)).toBe(0x1000n);
  });

  it("refuses a hole with ENOENT, an unknown source or destination with ENOENT, an empty copy with EINVAL", async () => {
    const { iommufd, ioas, span } = await setup();
    await iommufd.map(ioas, span(0, 8192), { iova: 0x1000n, ...RW });
    const to = { ioas, iova: 0x10000n, ...RW };
    expect(await errno(iommufd.copy({ ioas, iova: 0x2000n, length: 0x2000n }, to))).toBe("ENOENT");
    expect(await errno(iommufd.copy({ ioas: 9, iova: 0x1000n, length: 0x1000n }, to))).toBe("ENOENT");
    expect(await errno(iommufd.copy({ ioas, iova: 0x1000n, length: 0x1000n }, { ...to, ioas: 9 }))).toBe("ENOENT");
    expect(await errno(iommufd.copy({ ioas, iova: 0x1000n, length: 0n }, to))).toBe("EINVAL");
    expect(await errno(iommufd.copy({ ioas, iova: U64_MAX, length: 0x1000n }, to))).toBe("EOVERFLOW");
    expect(await errno(iommufd.copy({ ioas, iova: U64_MAX - 1n, length: 0x1000n }, to))).toBe("EOVERFLOW");
  });

  it("refuses to make writeable what was first mapped read-only with EPERM", async () => {
    const { iommufd, ioas, span } = await setup();
    await iommufd.map(ioas, span(0, 4096), { iova: 0x1000n, readable: true, writeable: false });
    const from = { ioas, iova: 0x1000n, length: 0x1000n };
    expect(await errno(iommufd.copy(from, { ioas, iova: 0x5000n, ...RW }))).toBe("EPERM");
  });

  it("lets a narrower copy be widened again up to what was first mapped", async () => {
    const { iommufd, ioas, span } = await setup();
    await iommufd.map(ioas, span(0, 4096), { iova: 0x1000n, ...RW });
    await iommufd.copy(
      { ioas, iova: 0x1000n, length: 0x1000n },
      { ioas, iova: 0x2000n, readable: true, writeable: false },
    );
    expect(await iommufd.copy({ ioas, iova: 0x2000n, length: 0x1000n }, { ioas, iova: 0x3000n, ...RW })).toBe(0x3000n);
  });
});

describe("IOMMU_IOAS_UNMAP", () => {
  it("unmaps whole mappings, several at once, and answers their bytes", async () => {
    const { iommufd, ioas, span } = await setup();
    await iommufd.map(ioas, span(0, 8192), { iova: 0x1000n, ...RW });
    await iommufd.map(ioas, span(0, 4096), { iova: 0x8000n, ...RW });
    expect(await iommufd.unmap(ioas, 0n, 0x10000n)).toBe(0x3000n);
  });

  it("refuses to split with ENOENT, with what lies below unmapped already", async () => {
    const { iommufd, ioas, span } = await setup();
    await iommufd.map(ioas, span(0, 4096), { iova: 0x1000n, ...RW });
    await iommufd.map(ioas, span(0, 8192), { iova: 0x2000n, ...RW });
    expect(await errno(iommufd.unmap(ioas, 0x1000n, 0x2000n))).toBe("ENOENT");
    expect(await errno(iommufd.unmap(ioas, 0x1000n, 0x1000n))).toBe("ENOENT");
    expect(await errno(iommufd.unmap(ioas, 0x3000n, 0x1000n))).toBe("ENOENT");
    expect(await iommufd.unmap(ioas, 0x2000n, 0x2000n)).toBe(0x2000n);
  });

  it("refuses a range with nothing in it with ENOENT, but 0 to U64_MAX succeeds and answers 0", async () => {
    const { iommufd, ioas } = await setup();
    expect(await errno(iommufd.unmap(ioas, 0x1000n, 0x1000n))).toBe("ENOENT");
    expect(await iommufd.unmap(ioas, 0n, U64_MAX)).toBe(0n);
  });

  it("refuses an empty range with EINVAL and one past 2^64 with EOVERFLOW", async () => {
    const { iommufd, ioas } = await setup();
    expect(await errno(iommufd.unmap(ioas, 0x1000n, 0n))).toBe("EINVAL");
    expect(await errno(iommufd.unmap(ioas, 1n, U64_MAX))).toBe("EOVERFLOW");
    expect(await errno(iommufd.unmap(ioas, U64_MAX, 1n))).toBe("EOVERFLOW");
    expect(await errno(iommufd.unmap(ioas, U64_MAX - 1n, 3n))).toBe("EOVERFLOW");
    expect(await errno(iommufd.unmap(99, 0n, 0n))).toBe("ENOENT");
  });
});

describe("IOMMU_IOAS_IOVA_RANGES and ALLOW_IOVAS", () => {
  it("lists everything at first, and what the IOMMU can do once a device is attached", async () => {
    const { iommufd, ioas } = await setup();
    expect((await iommufd.iovaRanges(ioas)).ranges).toEqual([{ start: 0n, last: U64_MAX }]);
    const iommu = new FakeIommu({ aperture: { first: 16, last: 0xfffff } });
    const device = await iommufd.bindDevice({ port: 0, iommu, mdev: null });
    await iommufd.attachDevice(device, ioas);
    expect((await iommufd.iovaRanges(ioas)).ranges).toEqual([
      { start: 0x10000n, last: 0xfedfffffn },
      { start: 0xfef00000n, last: 0xffffffffn },
    ]);
    await iommufd.detachDevice(device);
    expect((await iommufd.iovaRanges(ioas)).ranges).toEqual([{ start: 0n, last: U64_MAX }]);
    expect(await errno(iommufd.iovaRanges(99))).toBe("ENOENT");
  });

  it("refuses ranges that overlap or end at their start with EINVAL, and reserved ones with EADDRINUSE", async () => {
    const { iommufd, ioas } = await setup();
    const device = await iommufd.bindDevice({ port: 0, iommu: new FakeIommu(), mdev: null });
    await iommufd.attachDevice(device, ioas);
    const allow = (...ranges: [bigint, bigint][]) =>
      errno(
        iommufd.allowIovas(
          ioas,
          ranges.map(([start, last]) => ({ start, last })),
        ),
      );
    expect(await allow([0n, 0xffffn], [0xf000n, 0x1ffffn])).toBe("EINVAL");
    expect(await allow([5n, 5n])).toBe("EINVAL");
    expect(await allow([0n, 0xfee00000n])).toBe("EADDRINUSE");
    expect(await allow([0n, 0xffffn], [0x20000n, 0x2ffffn])).toBe("none");
    expect(await allow()).toBe("none");
    expect(await errno(iommufd.allowIovas(99, []))).toBe("ENOENT");
  });

  it("keeps a device away whose IOMMU can't do what is allowed or mapped: EADDRINUSE", async () => {
    const { iommufd, ioas, span } = await setup();
    const device = await iommufd.bindDevice({ port: 0, iommu: new FakeIommu(), mdev: null });
    await iommufd.allowIovas(ioas, [{ start: 0xfee00000n, last: 0xfee00fffn }]);
    expect(await errno(iommufd.attachDevice(device, ioas))).toBe("EADDRINUSE");
    await iommufd.allowIovas(ioas, []);
    await iommufd.map(ioas, span(0, 4096), { iova: 1n << 60n, ...RW });
    expect(await errno(iommufd.attachDevice(device, ioas))).toBe("EADDRINUSE");
    await iommufd.unmap(ioas, 0n, U64_MAX);
    expect(await iommufd.attachDevice(device, ioas)).toBeGreaterThan(0);
  });
});

describe("IOMMU_OPTION", () => {
  it("sets RLIMIT_MODE to 0 or 1 before the first object only", async () => {
    const { iommufd } = await setup();
    expect(await errno(iommufd.setOption({ option: "RLIMIT_MODE" }, 1))).toBe("EBUSY");
    const fresh = openIommufd([]);
    expect(await errno(fresh.setOption({ option: "RLIMIT_MODE" }, 2))).toBe("EINVAL");
    await fresh.setOption({ option: "RLIMIT_MODE" }, 1);
    expect(await fresh.getOption({ option: "RLIMIT_MODE" })).toBe(1);
  });

  it("switches large pages off for later mappings, and refuses it with EINVAL once a domain maps something", async () => {
    const { iommufd, ioas, span } = await setup();
    const iommu = new FakeIommu();
    const device = await iommufd.bindDevice({ port: 0, iommu, mdev: null });
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    expect(await iommufd.getOption({ option: "HUGE_PAGES", ioas })).toBe(0);
    expect((await iommufd.iovaRanges(ioas)).alignment).toBe(4096);
    await iommufd.attachDevice(device, ioas);
    await iommufd.map(ioas, span(0, 4096), { iova: 0n, ...RW });
    expect(iommu.domains[0].entries.get(0)?.hugePages).toBe(false);
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 1);
    expect(await errno(iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0))).toBe("EINVAL");
    expect(await errno(iommufd.setOption({ option: "HUGE_PAGES", ioas }, 2))).toBe("EINVAL");
    expect(await errno(iommufd.setOption({ option: "HUGE_PAGES", ioas: 99 }, 2))).toBe("ENOENT");
  });

  it("refuses to switch large pages off over mappings that aren't aligned to pages: EADDRINUSE", async () => {
    const { iommufd, ioas, span } = await setup();
    await iommufd.map(ioas, span(0, 100), { iova: 0n, ...RW });
    expect(await errno(iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0))).toBe("EADDRINUSE");
    expect(await iommufd.getOption({ option: "HUGE_PAGES", ioas })).toBe(1);
  });
});
