import { describe, expect, it } from "vitest";
import { checkStamps, stampsIntact } from "../../devices/stamp.js";
import { enableBusMaster } from "../../devices/workload.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { bench, eventually, RAM, ramBitmap, stampsOf, VGPU } from "./bench.test.helper.js";

describe("the DMA logging of an mdev", () => {
  it("reports what is pinned, and what was pinned since the last read", async () => {
    const { device } = await bench([VGPU]);
    const vgpu = device("vgpu0");
    expect(await vgpu.startDmaLogging({ pageSize: 4096, ranges: [RAM] })).toBe(4096);
    await enableBusMaster(vgpu);
    await eventually(async () => (await vgpu.counters()).windowsPinned >= 5);
    await vgpu.setState("STOP");
    const into = ramBitmap();
    await vgpu.reportDmaLogging({ ...RAM, pageSize: 4096, into });
    // Its whole ring of 200 pages was pinned at some time; one window still is.
    expect(into.count()).toBe(200);
    const again = ramBitmap();
    await vgpu.reportDmaLogging({ ...RAM, pageSize: 4096, into: again });
    expect(again.count()).toBeGreaterThan(0);
    expect(again.count()).toBeLessThanOrEqual(64);
  });

  it("gives pins back when their memory is unmapped, without a write afterwards", async () => {
    const { device, iommufd, ioas, memory } = await bench([VGPU]);
    const vgpu = device("vgpu0");
    await enableBusMaster(vgpu);
    await eventually(async () => (await vgpu.counters()).windowsPinned >= 2);
    await iommufd.unmap(ioas, BigInt(MiB), BigInt(7 * MiB));
    const { units } = await vgpu.counters();
    const { spans } = await stampsOf(vgpu);
    const pages = () =>
      spans.map(({ firstPage, pages: count }) =>
        Buffer.from(memory.arenas[0].u8.slice(firstPage * PAGE_SIZE, (firstPage + count) * PAGE_SIZE)),
      );
    const before = pages();
    await eventually(async () => (await vgpu.counters()).pinFaults > 3);
    expect((await vgpu.counters()).units).toBe(units);
    expect(pages().every((now, index) => now.equals(before[index]))).toBe(true);
    const span = { arena: memory.arenas[0], offset: MiB, length: 7 * MiB };
    await iommufd.map(ioas, span, { iova: BigInt(MiB), readable: true, writeable: true });
    await eventually(async () => (await vgpu.counters()).units > units + 5);
    await vgpu.setState("STOP");
    expect(stampsIntact(checkStamps(memory, await stampsOf(vgpu)))).toBe(true);
  });

  it("is shared with other mdevs where they attach to an emulated IOMMU", async () => {
    const shared = { ...VGPU, sharedTracker: true, load: { rate: 20, footprint: 100 * PAGE_SIZE } };
    const { device, iommufd, ioas } = await bench([shared, { ...shared, id: "vgpu1" }]);
    const tracker = await iommufd.allocEmulatedIommu(ioas);
    for (const id of ["vgpu0", "vgpu1"]) {
      await device(id).attach(tracker);
      await enableBusMaster(device(id));
    }
    await iommufd.setDirtyTracking(tracker, true);
    const from = { a: (await device("vgpu0").counters()).units, b: (await device("vgpu1").counters()).units };
    await eventually(async () => (await device("vgpu0").counters()).units > from.a + 110);
    await eventually(async () => (await device("vgpu1").counters()).units > from.b + 110);
    for (const id of ["vgpu0", "vgpu1"]) await device(id).setState("STOP");
    const into = ramBitmap();
    await iommufd.getDirtyBitmap(tracker, { ...RAM, pageSize: 4096, into, clear: true });
    expect(into.count()).toBe(200);
  });
});
