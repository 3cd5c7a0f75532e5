import { describe, expect, it } from "vitest";
import { errno } from "../../test/support/errno.js";
import { openIommufd } from "../../test/support/fake-host/iommu.js";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { SharedLog } from "../bitmap/shared-log.js";
import { MiB } from "../memory/address.js";
import { createArena } from "../memory/arena.js";
import { InFlight } from "../memory/in-flight.js";
import type { PostedTracker } from "./emulated-iommu.js";

const PAGE = 4096n;
const RW = { readable: true, writeable: true };

/** An mdev's hardware that marks what it writes, and brackets each write as a DMA in flight. */
class Marker {
  log: SharedLog | null = null;
  #firstPage = 0;

  async setTracker(tracker: PostedTracker | null): Promise<void> {
    this.log = tracker === null ? null : SharedLog.open(tracker.memory, tracker.bits);
    this.#firstPage = tracker?.firstPage ?? 0;
  }

  write(page: number): void {
    const bit = page - this.#firstPage;
    if (this.log !== null && bit >= 0 && bit < this.log.bits) this.log.mark(bit);
  }
}

async function setup() {
  const arena = createArena(16 * MiB);
  const inFlight = InFlight.allocate(4);
  const iommufd = openIommufd([arena], inFlight);
  const ioas = await iommufd.allocIoas();
  const map = (page: bigint, pages: number) =>
    iommufd.map(ioas, { arena, offset: 0, length: pages * 4096 }, { ...RW, iova: page * PAGE });
  const bind = (port: number, marker?: Marker) => {
    const callbacks = { unmap: async () => {} };
    const mdev = marker === undefined ? { callbacks } : { callbacks, sharedTracker: marker };
    return iommufd.bindDevice({ port, iommu: null, mdev });
  };
  const tracker = await iommufd.allocEmulatedIommu(ioas);
  const dirty = async (page: number, pages: number, pageSize = 4096) => {
    const [iova, length] = [BigInt(page) * PAGE, BigInt(pages) * PAGE];
    const into = new DirtyBitmap({ iova, length, granule: pageSize });
    await iommufd.getDirtyBitmap(tracker, { iova, length, pageSize, into, clear: true });
    return Array.from({ length: into.bits }, (_, bit) => bit).filter((bit) => into.get(bit));
  };
  return { inFlight, iommufd, ioas, map, bind, tracker, dirty };
}

describe("the emulated IOMMU's shared tracker", () => {
  it("collects what all mdevs attached to it mark", async () => {
    const { iommufd, map, bind, tracker, dirty } = await setup();
    await map(16n, 64);
    const [a, b] = [new Marker(), new Marker()];
    expect(await iommufd.attachDevice(await bind(0, a), tracker)).toBe(tracker);
    await iommufd.setDirtyTracking(tracker, true);
    await iommufd.attachDevice(await bind(1, b), tracker);
    a.write(20);
    b.write(21);
    b.write(79);
    expect(await dirty(16, 64)).toEqual([4, 5, 63]);
    a.write(22);
    expect(await dirty(16, 64)).toEqual([6]);
    a.write(22);
    expect(await dirty(16, 64, 16384)).toEqual([1]);
  });

  it("is read up to the first hole, and reads only the range that was asked for", async () => {
    const { iommufd, map, bind, tracker, dirty } = await setup();
    await map(0n, 8);
    await map(16n, 8);
    const marker = new Marker();
    await iommufd.attachDevice(await bind(0, marker), tracker);
    await iommufd.setDirtyTracking(tracker, true);
    for (const page of [0, 7, 16, 23]) marker.write(page);
    expect(await dirty(4, 28)).toEqual([3]);
    expect(await dirty(0, 8)).toEqual([0]);
    expect(await dirty(16, 8)).toEqual([0, 7]);
  });

  it("counts what is mapped outside its span later as dirty, until tracking is switched on anew", async () => {
    const { iommufd, map, bind, tracker, dirty } = await setup();
    await map(8n, 8);
    const marker = new Marker();
    await iommufd.attachDevice(await bind(0, marker), tracker);
    await iommufd.setDirtyTracking(tracker, true);
    await map(4n, 2);
    await map(16n, 2);
    expect(await dirty(4, 2)).toEqual([0, 1]);
    expect(await dirty(8, 10)).toEqual([8, 9]);
    expect(await dirty(16, 2)).toEqual([0, 1]);
    await iommufd.setDirtyTracking(tracker, true);
    expect(await dirty(8, 10)).toEqual([]);
    marker.write(17);
    expect(await dirty(8, 10)).toEqual([9]);
  });

  it("is read only when DMA in flight has landed", async () => {
    const { inFlight, iommufd, map, bind, tracker, dirty } = await setup();
    await map(0n, 8);
    await iommufd.attachDevice(await bind(2, new Marker()), tracker);
    await iommufd.setDirtyTracking(tracker, true);
    inFlight.begin(2);
    let read = false;
    const reading = dirty(0, 8).then(() => {
      read = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(read).toBe(false);
    inFlight.end(2);
    await reading;
    expect(read).toBe(true);
  });

  it("refuses to span more than 16 TiB: ENOMEM", async () => {
    const { iommufd, map, tracker } = await setup();
    await map(0n, 1);
    await map(1n << 32n, 1);
    expect(await errno(iommufd.setDirtyTracking(tracker, true))).toBe("ENOMEM");
  });

  it("takes only mdevs whose hardware can mark it: EINVAL", async () => {
    const { iommufd, bind, tracker } = await setup();
    expect(await errno(iommufd.attachDevice(await bind(0), tracker))).toBe("EINVAL");
  });

  it("refuses to be peeked at, to be read while it is off, and to be destroyed while an mdev is attached", async () => {
    const { iommufd, ioas, map, bind, tracker, dirty } = await setup();
    await map(0n, 8);
    const marker = new Marker();
    const mdev = await bind(0, marker);
    await iommufd.attachDevice(mdev, tracker);
    expect(await errno(dirty(0, 8))).toBe("EINVAL");
    await iommufd.setDirtyTracking(tracker, true);
    const into = new DirtyBitmap({ iova: 0n, length: 8n * PAGE, granule: 4096 });
    const peek = iommufd.getDirtyBitmap(tracker, { iova: 0n, length: 8n * PAGE, pageSize: 4096, into, clear: false });
    expect(await errno(peek)).toBe("EOPNOTSUPP");
    expect(await errno(iommufd.destroy(tracker))).toBe("EBUSY");
    expect(await errno(iommufd.destroy(ioas))).toBe("EBUSY");
    await iommufd.detachDevice(mdev);
    expect(marker.log).toBeNull();
    await iommufd.destroy(tracker);
    await iommufd.destroy(ioas);
  });

  it("hands an mdev over to another tracker without a moment in which it marks none", async () => {
    const { iommufd, ioas, map, bind, tracker } = await setup();
    await map(0n, 8);
    const other = await iommufd.allocEmulatedIommu(ioas);
    const marker = new Marker();
    const mdev = await bind(0, marker);
    await iommufd.setDirtyTracking(tracker, true);
    await iommufd.setDirtyTracking(other, true);
    await iommufd.attachDevice(mdev, tracker);
    const posted: boolean[] = [];
    const setTracker = marker.setTracker.bind(marker);
    marker.setTracker = (next) => {
      posted.push(next !== null);
      return setTracker(next);
    };
    await iommufd.attachDevice(mdev, other);
    expect(posted).toEqual([true]);
    await iommufd.destroy(tracker);
    marker.write(3);
    const into = new DirtyBitmap({ iova: 0n, length: 8n * PAGE, granule: 4096 });
    await iommufd.getDirtyBitmap(other, { iova: 0n, length: 8n * PAGE, pageSize: 4096, into, clear: true });
    expect([into.count(), into.get(3)]).toEqual([1, true]);
  });

  it("stops being marked when tracking is switched off or the mdev goes back to an IOAS", async () => {
    const { iommufd, ioas, map, bind, tracker } = await setup();
    await map(0n, 8);
    const marker = new Marker();
    const mdev = await bind(0, marker);
    await iommufd.attachDevice(mdev, tracker);
    await iommufd.setDirtyTracking(tracker, true);
    expect(marker.log).not.toBeNull();
    await iommufd.setDirtyTracking(tracker, false);
    expect(marker.log).toBeNull();
    await iommufd.setDirtyTracking(tracker, true);
    await iommufd.attachDevice(mdev, ioas);
    expect(marker.log).toBeNull();
    await iommufd.destroy(tracker);
  });
});
