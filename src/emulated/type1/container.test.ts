import { describe, expect, it } from "vitest";
import { errno } from "../../../test/support/errno.js";
import { FakeIommu } from "../../../test/support/fake-host/iommu.js";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { PinLog } from "../../iommufd/pin-log.js";
import { MiB } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { PhysicalMemory } from "../physical-memory.js";
import { Type1Container } from "./container.js";

const PAGE = 4096n;
const RW = { readable: true, writeable: true };

function setup() {
  const physical = new PhysicalMemory();
  const arena = createArena(16 * MiB);
  physical.register(arena, { kind: "ram" });
  const container = new Type1Container({ physical });
  const map = (page: bigint, pages: number, more: { readable: boolean; writeable: boolean } = RW) =>
    container.mapDma({ iova: page * PAGE, span: { arena, offset: 0, length: pages * 4096 }, ...more });
  /** The pages that a read reports dirty, from `page` on. */
  const dirty = async (page: bigint, pages: number) => {
    const length = BigInt(pages) * PAGE;
    const into = new DirtyBitmap({ iova: page * PAGE, length, granule: 4096 });
    await container.dirtyPagesGetBitmap({ iova: page * PAGE, length, into });
    return Array.from({ length: pages }, (_, bit) => bit).filter((bit) => into.get(bit));
  };
  /** An mdev that gives its pins back when it is asked. */
  const addMdev = async (port = 0) => {
    const pins = new Set<string>();
    const pin = async (page: bigint, pages: bigint) => {
      await container.pin(port, { iova: page * PAGE, length: pages * PAGE, write: true });
      pins.add(`${page}:${pages}`);
    };
    const unpin = async (page: bigint, pages: bigint) => {
      pins.delete(`${page}:${pages}`);
      await container.unpin(port, { iova: page * PAGE, length: pages * PAGE });
    };
    const unmap = async () => {
      for (const key of [...pins]) {
        const [page, pages] = key.split(":").map(BigInt);
        await unpin(page, pages);
      }
    };
    await container.addDevice({ port, iommu: null, pinnedScope: true, callbacks: { unmap } });
    return { pin, unpin };
  };
  return { arena, container, map, dirty, addMdev };
}

// What the kernel does, too, is tested in test/conformance/type1.ts.
describe("dirty pages of a type1 container", () => {
  it("with an mdev only: pin, get, unpin, get, get reports 1, 1, 0", async () => {
    const { container, map, dirty, addMdev } = setup();
    const mdev = await addMdev();
    await map(0n, 16);
    await container.dirtyPagesStart();
    await mdev.pin(3n, 1n);
    expect(await dirty(0n, 16)).toEqual([3]);
    await mdev.unpin(3n, 1n);
    expect(await dirty(0n, 16)).toEqual([3]);
    expect(await dirty(0n, 16)).toEqual([]);
  });

  it("are those pinned before tracking started, too, and not those unpinned before", async () => {
    const { container, map, dirty, addMdev } = setup();
    const mdev = await addMdev();
    await map(0n, 16);
    await mdev.pin(1n, 2n);
    await mdev.pin(8n, 1n);
    await mdev.unpin(8n, 1n);
    await container.dirtyPagesStart();
    expect(await dirty(0n, 16)).toEqual([1, 2]);
    await container.dirtyPagesStart();
    await mdev.unpin(1n, 2n);
    expect(await dirty(0n, 16)).toEqual([1, 2]);
  });

  it("are all that is mapped, at every read, once one device doesn't pin what it writes", async () => {
    const { container, map, dirty, addMdev } = setup();
    await addMdev();
    await map(0n, 4);
    await map(8n, 2);
    await container.dirtyPagesStart();
    expect(await dirty(0n, 16)).toEqual([]);
    await container.addDevice({ port: 1, iommu: new FakeIommu(), pinnedScope: false });
    expect(await dirty(0n, 16)).toEqual([0, 1, 2, 3, 8, 9]);
    expect(await dirty(0n, 16)).toEqual([0, 1, 2, 3, 8, 9]);
  });

  it("are all that is mapped once more after that device has left", async () => {
    const { container, map, dirty, addMdev } = setup();
    await addMdev();
    await map(0n, 4);
    await container.addDevice({ port: 1, iommu: new FakeIommu(), pinnedScope: false });
    await container.dirtyPagesStart();
    expect(await dirty(0n, 4)).toEqual([0, 1, 2, 3]);
    await container.removeDevice(1);
    expect(await dirty(0n, 4)).toEqual([0, 1, 2, 3]);
    expect(await dirty(0n, 4)).toEqual([]);
  });

  it("come from the pins that an mdev holds elsewhere, where its log is given", async () => {
    const { container, map, dirty } = setup();
    const pins = new PinLog();
    await container.addDevice({ port: 0, iommu: null, pinnedScope: true, pins });
    await map(0n, 8);
    await container.dirtyPagesStart();
    pins.pin(2, 3, true);
    pins.unpin(2, 3);
    expect(await dirty(0n, 8)).toEqual([2, 3, 4]);
    expect(await dirty(0n, 8)).toEqual([]);
  });
});

describe("VFIO_IOMMU_UNMAP_DMA", () => {
  it("takes the dirty bits of what goes along, after mdevs have unpinned", async () => {
    const { container, map, addMdev } = setup();
    const mdev = await addMdev();
    await map(4n, 4);
    await container.dirtyPagesStart();
    await mdev.pin(5n, 2n);
    const dirty = new DirtyBitmap({ iova: 0n, length: 16n * PAGE, granule: 4096 });
    expect(await container.unmapDma({ iova: 0n, length: 16n * PAGE, dirty })).toBe(4n * PAGE);
    expect([dirty.count(), dirty.get(5), dirty.get(6)]).toEqual([2, true, true]);
    await map(4n, 4);
    const again = new DirtyBitmap({ iova: 0n, length: 16n * PAGE, granule: 4096 });
    await container.dirtyPagesGetBitmap({ iova: 0n, length: 16n * PAGE, into: again });
    expect(again.count()).toBe(0);
  });

  it("unmaps from every domain, answers 0 where nothing is mapped, and everything with ALL", async () => {
    const { container, map } = setup();
    const iommu = new FakeIommu();
    await container.addDevice({ port: 1, iommu, pinnedScope: false });
    await map(4n, 4);
    await map(16n, 4);
    expect(iommu.write(1, 5)).toBe(true);
    expect(await container.unmapDma({ iova: 0n, length: 16n * PAGE })).toBe(4n * PAGE);
    expect(iommu.write(1, 5)).toBe(false);
    expect(await container.unmapDma({ iova: 0n, length: 16n * PAGE })).toBe(0n);
    expect(await container.unmapDma({ iova: 0n, length: 0n, all: true })).toBe(4n * PAGE);
  });

  it("gives up with EDEADLK on an mdev that keeps its pins", async () => {
    const { container, map } = setup();
    let asked = 0;
    const callbacks = { unmap: async () => void asked++ };
    await container.addDevice({ port: 0, iommu: null, pinnedScope: true, callbacks });
    await map(0n, 4);
    await container.pin(0, { iova: 0n, length: PAGE, write: true });
    expect(await errno(container.unmapDma({ iova: 0n, length: 4n * PAGE }))).toBe("EDEADLK");
    expect(asked).toBe(10);
  });
});

describe("the devices of a type1 container", () => {
  it("shows a new domain what is mapped already, and shares a domain where it fits", async () => {
    const { container, map, addMdev } = setup();
    const iommu = new FakeIommu();
    await addMdev();
    await map(4n, 4);
    await container.addDevice({ port: 1, iommu, pinnedScope: false });
    await container.addDevice({ port: 2, iommu, pinnedScope: false });
    expect([iommu.write(1, 4), iommu.write(2, 7), iommu.domains.length]).toEqual([true, true, 1]);
    await container.removeDevice(1);
    expect([iommu.write(1, 4), iommu.write(2, 4), iommu.domains[0].disposed]).toEqual([false, true, false]);
    await container.removeDevice(2);
    expect(iommu.domains[0].disposed).toBe(true);
    expect(await errno(container.removeDevice(2))).toBe("ENODEV");
  });

  it("pins only mapped pages, with permission, for a device with an unmap callback", async () => {
    const { container, map, addMdev } = setup();
    const mdev = await addMdev(0);
    await container.addDevice({ port: 1, iommu: null, pinnedScope: true });
    await map(0n, 4);
    await map(4n, 4, { readable: true, writeable: false });
    const pin = (port: number, page: bigint, pages: bigint, write: boolean) =>
      errno(container.pin(port, { iova: page * PAGE, length: pages * PAGE, write }));
    expect(await pin(0, 2n, 4n, true)).toBe("EPERM");
    expect(await pin(0, 2n, 4n, false)).toBe("none");
    expect(await pin(0, 6n, 4n, false)).toBe("EINVAL");
    expect(await pin(0, 0n, 0n, false)).toBe("EINVAL");
    expect(await pin(1, 0n, 1n, false)).toBe("EINVAL");
    expect(await pin(9, 0n, 1n, false)).toBe("ENODEV");
    expect(await errno(mdev.unpin(2n, 3n))).toBe("EINVAL");
    await mdev.unpin(2n, 4n);
  });
});
