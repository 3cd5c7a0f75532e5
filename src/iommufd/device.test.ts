import { describe, expect, it } from "vitest";
import { errno } from "../../test/support/errno.js";
import { FakeIommu, openIommufd } from "../../test/support/fake-host/iommu.js";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { ObjectId } from "../host/host.js";
import { MiB, U64_MAX } from "../memory/address.js";
import { createArena } from "../memory/arena.js";
import { UapiError } from "../uapi/errno.js";

const PAGE = 4096n;
const RW = { readable: true, writeable: true };
const NO_MDEV = { mdev: null } as const;

async function setup() {
  const arena = createArena(16 * MiB);
  const iommufd = openIommufd([arena]);
  const ioas = await iommufd.allocIoas();
  const iommu = new FakeIommu();
  const map = (page: bigint, pages: number, into = ioas) =>
    iommufd.map(into, { arena, offset: 0, length: pages * 4096 }, { iova: page * PAGE, ...RW });
  const bind = (port: number, behind = iommu) => iommufd.bindDevice({ port, iommu: behind, ...NO_MDEV });
  /** The pages below 16 that a read reports dirty. */
  const dirty = async (hwpt: ObjectId, clear = true) => {
    const into = new DirtyBitmap({ iova: 0n, length: 16n * PAGE, granule: 4096 });
    await iommufd.getDirtyBitmap(hwpt, { iova: 0n, length: 16n * PAGE, pageSize: 4096, into, clear });
    return Array.from({ length: 16 }, (_, bit) => bit).filter((bit) => into.get(bit));
  };
  return { iommufd, ioas, iommu, map, bind, dirty };
}

describe("attaching a device", () => {
  it("to an IOAS makes an HWPT that later devices share, and that goes with the last of them", async () => {
    const { iommufd, ioas, iommu, map, bind } = await setup();
    await map(0n, 4);
    const [first, second] = [await bind(0), await bind(1)];
    const hwpt = await iommufd.attachDevice(first, ioas);
    expect(await iommufd.attachDevice(second, ioas)).toBe(hwpt);
    expect([iommu.write(0, 0), iommu.write(1, 3), iommu.write(1, 4)]).toEqual([true, true, false]);
    expect(await errno(iommufd.destroy(hwpt))).toBe("EBUSY");
    await iommufd.detachDevice(first);
    expect([iommu.write(0, 0), iommu.write(1, 0)]).toEqual([false, true]);
    await iommufd.detachDevice(second);
    expect(await errno(iommufd.destroy(hwpt))).toBe("ENOENT");
    expect(iommu.domains[0].disposed).toBe(true);
  });

  it("to an IOAS never picks an HWPT that was made by hand", async () => {
    const { iommufd, ioas, bind } = await setup();
    const device = await bind(0);
    const manual = await iommufd.allocHwpt({ device, ioas, dirtyTracking: false });
    expect(await iommufd.attachDevice(device, ioas)).not.toBe(manual);
  });

  it("to an IOAS makes another HWPT where the first doesn't fit the device's IOMMU", async () => {
    const { iommufd, ioas, bind } = await setup();
    const strange = new FakeIommu();
    const hwpt = await iommufd.attachDevice(await bind(0), ioas);
    const device = await bind(1, strange);
    const attach = strange.attach.bind(strange);
    strange.attach = (port, domain) =>
      domain !== null && !strange.domains.some((own) => own === domain)
        ? Promise.reject(new UapiError("EINVAL", { syscall: "attach", attempted: "attach a foreign domain" }))
        : attach(port, domain);
    expect(await iommufd.attachDevice(device, ioas)).not.toBe(hwpt);
  });

  it("leaves nothing behind when the IOMMU refuses it", async () => {
    const { iommufd, ioas, iommu, bind } = await setup();
    const device = await bind(0);
    iommu.refusal = new UapiError("ENOMEM", { syscall: "attach", attempted: "attach" });
    expect(await errno(iommufd.attachDevice(device, ioas))).toBe("ENOMEM");
    expect(iommu.domains[0].disposed).toBe(true);
    expect((await iommufd.iovaRanges(ioas)).ranges).toEqual([{ start: 0n, last: U64_MAX }]);
    await iommufd.destroy(ioas);
  });

  it("shows all mappings of the IOAS, those made before and those made later, in each of its HWPTs", async () => {
    const { iommufd, ioas, iommu, map, bind } = await setup();
    await map(0n, 2);
    const [first, second] = [await bind(0), await bind(1)];
    await iommufd.attachDevice(first, await iommufd.allocHwpt({ device: first, ioas, dirtyTracking: true }));
    await iommufd.attachDevice(second, await iommufd.allocHwpt({ device: second, ioas, dirtyTracking: false }));
    await map(8n, 2);
    for (const port of [0, 1]) {
      expect([0, 1, 2, 8, 9, 10].map((page) => iommu.write(port, page))).toEqual([
        true,
        true,
        false,
        true,
        true,
        false,
      ]);
    }
    await iommufd.unmap(ioas, 0n, 2n * PAGE);
    for (const port of [0, 1]) expect([iommu.write(port, 0), iommu.write(port, 8)]).toEqual([false, true]);
  });

  it("again replaces the HWPT without a moment in which DMA is blocked", async () => {
    const { iommufd, ioas, iommu, map, bind } = await setup();
    await map(0n, 2);
    const device = await bind(0);
    const old = await iommufd.attachDevice(device, ioas);
    const blocked: boolean[] = [];
    const attach = iommu.attach.bind(iommu);
    iommu.attach = async (port, domain) => {
      blocked.push(!iommu.write(0, 0));
      await attach(port, domain);
      blocked.push(!iommu.write(0, 0));
    };
    const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: true });
    expect(await iommufd.attachDevice(device, hwpt)).toBe(hwpt);
    expect(blocked).toEqual([false, false]);
    expect(await errno(iommufd.destroy(old))).toBe("ENOENT");
    expect(await iommufd.attachDevice(device, hwpt)).toBe(hwpt);
    expect(blocked.length).toBe(2);
  });

  it("moves the reserved stretches along when the new HWPT is of another IOAS", async () => {
    const { iommufd, ioas, bind } = await setup();
    const other = await iommufd.allocIoas();
    const device = await bind(0);
    await iommufd.attachDevice(device, ioas);
    await iommufd.attachDevice(device, other);
    expect((await iommufd.iovaRanges(ioas)).ranges).toEqual([{ start: 0n, last: U64_MAX }]);
    expect((await iommufd.iovaRanges(other)).ranges.length).toBe(2);
  });

  it("changes nothing when the replacement is refused", async () => {
    const { iommufd, ioas, iommu, map, bind } = await setup();
    await map(0n, 2);
    const other = await iommufd.allocIoas();
    await map(0xfee00n, 1, other);
    const device = await bind(0);
    const hwpt = await iommufd.attachDevice(device, ioas);
    expect(await errno(iommufd.attachDevice(device, other))).toBe("EADDRINUSE");
    expect(iommu.write(0, 0)).toBe(true);
    expect(await errno(iommufd.destroy(hwpt))).toBe("EBUSY");
    await iommufd.destroy(other);
  });

  it("is refused with ENOENT for an unknown id and with EINVAL for an object of another kind", async () => {
    const { iommufd, ioas, bind } = await setup();
    const device = await bind(0);
    expect(await errno(iommufd.attachDevice(device, 99))).toBe("ENOENT");
    expect(await errno(iommufd.attachDevice(device, device))).toBe("EINVAL");
    expect(await errno(iommufd.attachDevice(99, ioas))).toBe("ENOENT");
    expect(await errno(iommufd.attachDevice(ioas, ioas))).toBe("ENOENT");
  });

  it("to an HWPT with dirty tracking is refused with EINVAL where the device's IOMMU can't track", async () => {
    const { iommufd, ioas, bind } = await setup();
    const able = await bind(0);
    const unable = await bind(1, new FakeIommu({ dirtyTracking: false }));
    const hwpt = await iommufd.allocHwpt({ device: able, ioas, dirtyTracking: true });
    expect(await errno(iommufd.attachDevice(unable, hwpt))).toBe("EINVAL");
    expect(await errno(iommufd.allocHwpt({ device: unable, ioas, dirtyTracking: true }))).toBe("EOPNOTSUPP");
  });

  it("needs an IOMMU: ENODEV for a device that has none and is no mdev", async () => {
    const { iommufd } = await setup();
    expect(() => iommufd.bindDevice({ port: 0, iommu: null, mdev: null })).toThrowError(/ENODEV/);
  });
});

describe("IOMMU_HWPT_ALLOC and GET_HW_INFO", () => {
  it("answer ENOENT for an unknown device, EINVAL for an unknown IOAS, EOPNOTSUPP for an HWPT as parent", async () => {
    const { iommufd, ioas, bind } = await setup();
    const device = await bind(0);
    const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: false });
    const alloc = (dev: ObjectId, parent: ObjectId) =>
      errno(iommufd.allocHwpt({ device: dev, ioas: parent, dirtyTracking: false }));
    expect(await alloc(99, ioas)).toBe("ENOENT");
    expect(await alloc(ioas, 99)).toBe("ENOENT");
    expect(await alloc(device, 99)).toBe("EINVAL");
    expect(await alloc(device, device)).toBe("EINVAL");
    expect(await alloc(device, hwpt)).toBe("EOPNOTSUPP");
    expect((await iommufd.hwInfo(device)).dirtyTracking).toBe(true);
    expect(await errno(iommufd.hwInfo(ioas))).toBe("ENOENT");
    const mdev = await iommufd.bindDevice({ port: 1, iommu: null, mdev: { callbacks: { unmap: async () => {} } } });
    expect(await errno(iommufd.hwInfo(mdev))).toBe("ENOENT");
  });

  it("refuse an aperture that mappings lie outside of with EADDRINUSE and leave no reservation behind", async () => {
    const { iommufd, ioas, map, bind } = await setup();
    await map(0n, 1);
    const device = await bind(0, new FakeIommu({ aperture: { first: 16, last: 2 ** 20 } }));
    expect(await errno(iommufd.allocHwpt({ device, ioas, dirtyTracking: false }))).toBe("EADDRINUSE");
    expect((await iommufd.iovaRanges(ioas)).ranges).toEqual([{ start: 0n, last: U64_MAX }]);
  });
});

describe("IOMMU_HWPT_SET_DIRTY_TRACKING and GET_DIRTY_BITMAP", () => {
  async function tracked() {
    const given = await setup();
    await given.map(0n, 8);
    const device = await given.bind(0);
    const hwpt = await given.iommufd.allocHwpt({ device, ioas: given.ioas, dirtyTracking: true });
    await given.iommufd.attachDevice(device, hwpt);
    return { ...given, device, hwpt };
  }

  it("report what was written since tracking was switched on or last read", async () => {
    const { iommufd, iommu, hwpt, dirty } = await tracked();
    iommu.write(0, 1);
    await iommufd.setDirtyTracking(hwpt, true);
    iommu.write(0, 3);
    expect(await dirty(hwpt, false)).toEqual([3]);
    expect(await dirty(hwpt)).toEqual([3]);
    iommu.write(0, 4);
    expect(await dirty(hwpt)).toEqual([4]);
  });

  it("wipe what was dirty when tracking is switched on while it is on", async () => {
    const { iommufd, iommu, hwpt, dirty } = await tracked();
    await iommufd.setDirtyTracking(hwpt, true);
    iommu.write(0, 3);
    await iommufd.setDirtyTracking(hwpt, true);
    expect(await dirty(hwpt)).toEqual([]);
  });

  it("still report what was written before tracking was switched off, and nothing later, as Linux does", async () => {
    const { iommufd, iommu, hwpt, dirty } = await tracked();
    await iommufd.setDirtyTracking(hwpt, true);
    iommu.write(0, 3);
    await iommufd.setDirtyTracking(hwpt, false);
    iommu.write(0, 4);
    expect(await dirty(hwpt)).toEqual([3]);
    expect(await dirty(hwpt)).toEqual([]);
  });

  it("stop at a hole and report success, and only ever add bits", async () => {
    const { iommufd, iommu, map, hwpt } = await tracked();
    await map(9n, 4);
    await iommufd.setDirtyTracking(hwpt, true);
    iommu.write(0, 7);
    iommu.write(0, 9);
    const read = async (page: bigint, pages: bigint) => {
      const into = new DirtyBitmap({ iova: page * PAGE, length: pages * PAGE, granule: 4096 });
      into.set(0);
      const query = { iova: page * PAGE, length: pages * PAGE, pageSize: 4096, into, clear: true };
      await iommufd.getDirtyBitmap(hwpt, query);
      return Array.from({ length: Number(pages) }, (_, bit) => bit).filter((bit) => into.get(bit));
    };
    expect(await read(0n, 16n)).toEqual([0, 7]);
    expect(await read(8n, 8n)).toEqual([0]);
    expect(await read(9n, 4n)).toEqual([0]);
    iommu.write(0, 10);
    expect(await read(9n, 4n)).toEqual([0, 1]);
  });

  it("are refused with ENOENT for what is no HWPT, and with EOPNOTSUPP for one without dirty tracking", async () => {
    const { iommufd, ioas, device, dirty } = await tracked();
    const plain = await iommufd.allocHwpt({ device, ioas, dirtyTracking: false });
    expect(await errno(iommufd.setDirtyTracking(plain, true))).toBe("EOPNOTSUPP");
    expect(await errno(iommufd.setDirtyTracking(plain, false))).toBe("EOPNOTSUPP");
    expect(await errno(dirty(plain))).toBe("EOPNOTSUPP");
    expect(await errno(iommufd.setDirtyTracking(ioas, true))).toBe("ENOENT");
    expect(await errno(dirty(99))).toBe("ENOENT");
  });

  it("check the range before they look whether the HWPT can track: EOVERFLOW, EINVAL", async () => {
    const { iommufd, ioas, device } = await tracked();
    const plain = await iommufd.allocHwpt({ device, ioas, dirtyTracking: false });
    const get = (iova: bigint, length: bigint, pageSize: number, granule = 4096) => {
      const into = new DirtyBitmap({ iova: 0n, length: 64n * PAGE, granule });
      return errno(iommufd.getDirtyBitmap(plain, { iova, length, pageSize, into, clear: true }));
    };
    expect(await get(U64_MAX - PAGE + 1n, 2n * PAGE, 4096)).toBe("EOVERFLOW");
    expect(await get(PAGE, 0n, 4096)).toBe("EOVERFLOW");
    expect(await get(1n, PAGE, 4096)).toBe("EINVAL");
    expect(await get(0n, 100n, 4096)).toBe("EINVAL");
    expect(await get(0n, PAGE, 0)).toBe("EINVAL");
    expect(await get(0n, PAGE, 8192, 8192)).toBe("EINVAL");
    expect(await get(PAGE, 2n * PAGE, 8192, 8192)).toBe("EINVAL");
    expect(await get(0n, PAGE, 4096, 8192)).toBe("EINVAL");
    expect(await get(0n, 65n * PAGE, 4096)).toBe("EINVAL");
    expect(await get(0n, 64n * PAGE, 4096)).toBe("EOPNOTSUPP");
  });
});

describe("IOMMU_DESTROY", () => {
  it("refuses what something holds with EBUSY, and an unknown id with ENOENT", async () => {
    const { iommufd, ioas, bind } = await setup();
    const device = await bind(0);
    const hwpt = await iommufd.allocHwpt({ device, ioas, dirtyTracking: false });
    expect(await errno(iommufd.destroy(ioas))).toBe("EBUSY");
    expect(await errno(iommufd.destroy(device))).toBe("EBUSY");
    await iommufd.destroy(hwpt);
    await iommufd.destroy(ioas);
    expect(await errno(iommufd.destroy(ioas))).toBe("ENOENT");
    await iommufd.unbindDevice(device);
    expect(await errno(iommufd.destroy(device))).toBe("ENOENT");
  });

  it("frees the id for the next object", async () => {
    const { iommufd, ioas } = await setup();
    const second = await iommufd.allocIoas();
    expect([ioas, second]).toEqual([1, 2]);
    await iommufd.destroy(ioas);
    expect(await iommufd.allocIoas()).toBe(1);
  });

  it("of an IOAS lets go of its mappings; closing ends devices, HWPTs and IOASes, and then answers EBADF", async () => {
    const { iommufd, ioas, iommu, map, bind } = await setup();
    await map(0n, 2);
    const device = await bind(0);
    await iommufd.attachDevice(device, await iommufd.allocHwpt({ device, ioas, dirtyTracking: true }));
    await iommufd[Symbol.asyncDispose]();
    expect(iommu.attached.get(0)).toBeNull();
    expect(iommu.domains.every(({ disposed }) => disposed)).toBe(true);
    expect(await errno(iommufd.allocIoas())).toBe("EBADF");
    await iommufd[Symbol.asyncDispose]();
  });
});
