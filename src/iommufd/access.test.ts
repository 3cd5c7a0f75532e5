import { describe, expect, it } from "vitest";
import { errno } from "../../test/support/errno.js";
import { openIommufd } from "../../test/support/fake-host/iommu.js";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { AccessCallbacks, MapFlags } from "../host/host.js";
import { MiB, U64_MAX } from "../memory/address.js";
import { createArena } from "../memory/arena.js";

const PAGE = 4096n;
const RW = { readable: true, writeable: true };

async function setup() {
  const arena = createArena(16 * MiB);
  const iommufd = openIommufd([arena]);
  const ioas = await iommufd.allocIoas();
  const map = (page: bigint, arenaPage: number, pages: number, flags: MapFlags = RW) =>
    iommufd.map(ioas, { arena, offset: arenaPage * 4096, length: pages * 4096 }, { ...flags, iova: page * PAGE });
  return { arena, iommufd, ioas, map };
}

const idle: AccessCallbacks = { unmap: async () => {} };

describe("pinning through an access", () => {
  it("answers the memory, one span per contiguous run", async () => {
    const { arena, iommufd, ioas, map } = await setup();
    await map(0n, 0, 2);
    await map(2n, 2, 2);
    await map(4n, 100, 1);
    await using access = await iommufd.createAccess(ioas, idle);
    expect(await access.pin({ iova: PAGE, length: 4n * PAGE, write: true })).toEqual([
      { arena, offset: 4096, length: 3 * 4096 },
      { arena, offset: 100 * 4096, length: 4096 },
    ]);
    await access.unpin({ iova: PAGE, length: 4n * PAGE });
  });

  it("is refused over a hole, without permission, empty, past 2^64, and for another range than was pinned", async () => {
    const { iommufd, ioas, map } = await setup();
    await map(0n, 0, 2);
    await map(2n, 2, 1, { readable: true, writeable: false });
    await map(3n, 3, 1, { readable: false, writeable: true });
    await using access = await iommufd.createAccess(ioas, idle);
    const pin = (iova: bigint, length: bigint, write: boolean) => errno(access.pin({ iova, length, write }));
    expect(await pin(3n * PAGE, 2n * PAGE, true)).toBe("ENOENT");
    expect(await pin(9n * PAGE, PAGE, true)).toBe("ENOENT");
    expect(await pin(PAGE, 2n * PAGE, true)).toBe("EPERM");
    expect(await pin(2n * PAGE, 2n * PAGE, false)).toBe("EPERM");
    expect(await pin(0n, 0n, true)).toBe("EINVAL");
    expect(await pin(100n, PAGE, true)).toBe("EINVAL");
    expect(await pin(U64_MAX - PAGE + 1n, 2n * PAGE, true)).toBe("EOVERFLOW");
    expect(await pin(0n, 2n * PAGE, true)).toBe("none");
    expect(await errno(access.unpin({ iova: 0n, length: PAGE }))).toBe("EINVAL");
    await access.unpin({ iova: 0n, length: 2n * PAGE });
    expect(await errno(access.unpin({ iova: 0n, length: 2n * PAGE }))).toBe("EINVAL");
  });

  it("makes the IOAS page-aligned, and is refused with EADDRINUSE over areas that are not", async () => {
    const { arena, iommufd, ioas } = await setup();
    expect(await errno(iommufd.createAccess(99, idle))).toBe("ENOENT");
    await iommufd.map(ioas, { arena, offset: 0, length: 100 }, { ...RW, iova: 0n });
    expect(await errno(iommufd.createAccess(ioas, idle))).toBe("EADDRINUSE");
    await iommufd.unmap(ioas, 0n, 100n);
    const access = await iommufd.createAccess(ioas, idle);
    expect((await iommufd.iovaRanges(ioas)).alignment).toBe(4096);
    await access[Symbol.asyncDispose]();
    expect((await iommufd.iovaRanges(ioas)).alignment).toBe(1);
  });

  it("holds the IOAS until the access is closed", async () => {
    const { iommufd, ioas } = await setup();
    const access = await iommufd.createAccess(ioas, idle);
    expect(await errno(iommufd.destroy(ioas))).toBe("EBUSY");
    expect(await errno(iommufd.destroy(access.id))).toBe("EBUSY");
    await access[Symbol.asyncDispose]();
    await iommufd.destroy(ioas);
  });
});

describe("unmapping what an access has pinned", () => {
  it("asks every access of the IOAS first, and goes on when the pins are gone", async () => {
    const { iommufd, ioas, map } = await setup();
    await map(0n, 0, 2);
    await map(2n, 2, 2);
    const asked: string[] = [];
    const access = await iommufd.createAccess(ioas, {
      unmap: async (iova, length) => {
        asked.push(`pinned ${iova}+${length}`);
        // A new pin is refused from here on.
        expect(await errno(access.pin({ iova: 0n, length: PAGE, write: false }))).toBe("EINVAL");
        expect(await errno(access.read(0n, new Uint8Array(1)))).toBe("EINVAL");
        await access.unpin({ iova: 0n, length: PAGE });
      },
    });
    await iommufd.createAccess(ioas, { unmap: async (iova, length) => void asked.push(`other ${iova}+${length}`) });
    await access.pin({ iova: 0n, length: PAGE, write: true });
    expect(await iommufd.unmap(ioas, 0n, 4n * PAGE)).toBe(4n * PAGE);
    expect(asked).toEqual(["pinned 0+8192", "other 0+8192"]);
  });

  it("waits for a callback that takes its time", async () => {
    const { iommufd, ioas, map } = await setup();
    await map(0n, 0, 2);
    let unmapped = false;
    const access = await iommufd.createAccess(ioas, {
      unmap: async () => {
        await new Promise((resolve) => setTimeout(resolve, 20));
        expect(unmapped).toBe(false);
        await access.unpin({ iova: 0n, length: PAGE });
      },
    });
    await access.pin({ iova: 0n, length: PAGE, write: true });
    await iommufd.unmap(ioas, 0n, U64_MAX);
    unmapped = true;
  });

  it("gives up with EDEADLK where pins are kept, and works once they are gone", async () => {
    const { iommufd, ioas, map } = await setup();
    await map(0n, 0, 2);
    let asked = 0;
    const access = await iommufd.createAccess(ioas, { unmap: async () => void asked++ });
    await access.pin({ iova: 0n, length: PAGE, write: true });
    expect(await errno(iommufd.unmap(ioas, 0n, 2n * PAGE))).toBe("EDEADLK");
    expect(asked).toBe(101);
    await access.unpin({ iova: 0n, length: PAGE });
    expect(await iommufd.unmap(ioas, 0n, 2n * PAGE)).toBe(2n * PAGE);
  });

  it("happens when the access is closed with pins left: they go", async () => {
    const { iommufd, ioas, map } = await setup();
    await map(0n, 0, 2);
    const access = await iommufd.createAccess(ioas, idle);
    await access.pin({ iova: 0n, length: PAGE, write: true });
    await access[Symbol.asyncDispose]();
    expect(await iommufd.unmap(ioas, 0n, 2n * PAGE)).toBe(2n * PAGE);
    expect(await errno(access.pin({ iova: 0n, length: PAGE, write: true }))).toBe("ENOENT");
  });
});

describe("reading and writing through an access", () => {
  it("crosses mappings, and reaches the memory that is mapped", async () => {
    const { arena, iommufd, ioas, map } = await setup();
    await map(0n, 5, 1);
    await map(1n, 9, 1);
    await using access = await iommufd.createAccess(ioas, idle);
    await access.write(4094n, Uint8Array.of(1, 2, 3, 4));
    expect([...arena.u8.subarray(5 * 4096 + 4094, 6 * 4096)]).toEqual([1, 2]);
    expect([...arena.u8.subarray(9 * 4096, 9 * 4096 + 2)]).toEqual([3, 4]);
    const back = new Uint8Array(4);
    await access.read(4094n, back);
    expect([...back]).toEqual([1, 2, 3, 4]);
  });

  it("is refused over a hole with what lies before transferred, without permission, and empty", async () => {
    const { arena, iommufd, ioas, map } = await setup();
    await map(0n, 5, 1);
    await map(4n, 7, 1, { readable: true, writeable: false });
    await using access = await iommufd.createAccess(ioas, idle);
    expect(await errno(access.write(4094n, Uint8Array.of(1, 2, 3, 4)))).toBe("ENOENT");
    expect([...arena.u8.subarray(5 * 4096 + 4094, 6 * 4096)]).toEqual([1, 2]);
    expect(await errno(access.write(4n * PAGE, Uint8Array.of(1)))).toBe("EPERM");
    expect(await errno(access.read(0n, new Uint8Array(0)))).toBe("EINVAL");
  });
});

describe("a bound mdev", () => {
  async function withMdev() {
    const given = await setup();
    const id = await given.iommufd.bindDevice({ port: 0, iommu: null, mdev: { callbacks: idle } });
    return { ...given, id, access: given.iommufd.accessOf(id) };
  }

  it("pins in the IOAS that it is attached to, and in none when it is detached", async () => {
    const { iommufd, ioas, map, id, access } = await withMdev();
    await map(0n, 0, 1);
    const pin = () => errno(access.pin({ iova: 0n, length: PAGE, write: true }));
    expect(await pin()).toBe("ENOENT");
    expect(await iommufd.attachDevice(id, ioas)).toBe(ioas);
    expect(await pin()).toBe("none");
    const other = await iommufd.allocIoas();
    await iommufd.attachDevice(id, other);
    expect(await pin()).toBe("ENOENT");
    await iommufd.destroy(ioas);
    await iommufd.unbindDevice(id);
    await iommufd.destroy(other);
    expect(await errno(iommufd.attachDevice(id, other))).toBe("ENOENT");
  });

  it("attaches to no HWPT: ENOENT", async () => {
    const { iommufd, id } = await withMdev();
    expect(await errno(iommufd.attachDevice(id, 99))).toBe("ENOENT");
    expect(await errno(iommufd.attachDevice(id, id))).toBe("ENOENT");
  });

  it("logs its write pins and its writes, for its own DMA logging", async () => {
    const { iommufd, ioas, map, id, access } = await withMdev();
    await map(0n, 0, 8);
    await iommufd.attachDevice(id, ioas);
    access.pins.start();
    await access.pin({ iova: 0n, length: 2n * PAGE, write: true });
    await access.write(5n * PAGE, Uint8Array.of(1));
    const read = () => {
      const into = new DirtyBitmap({ iova: 0n, length: 8n * PAGE, granule: 4096 });
      access.pins.readAndClear({ firstPage: 0, pages: 8, into });
      return Array.from({ length: 8 }, (_, bit) => bit).filter((bit) => into.get(bit));
    };
    expect(read()).toEqual([0, 1, 5]);
    await access.unpin({ iova: 0n, length: 2n * PAGE });
    expect(read()).toEqual([0, 1]);
    expect(read()).toEqual([]);
  });
});
