import { describe, expect, it } from "vitest";
import { ALL_FORMATS, bitmapOf, pagesOf, readPages, TestBench } from "../../../test/support/iommu.js";
import { GiB, MiB } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { isErrno, type UapiError } from "../../uapi/errno.js";
import type { IommuDmaPort } from "./dma-port.js";
import { LAST_PAGE } from "./format.js";
import type { Removal } from "./page-table.js";

const BYTE = Uint8Array.of(7);

/** A DMA write of one byte at the start of a page. */
function write(port: IommuDmaPort, page: number): string | null {
  return port.write(page, 0, BYTE, 0, 1);
}

async function refusal(promise: Promise<unknown>): Promise<UapiError["code"] | null> {
  try {
    await promise;
    return null;
  } catch (error) {
    return (error as UapiError).code;
  }
}

describe("an emulated IOMMU that is told what it can do", () => {
  it("makes leaves of the given sizes alone, and says so", async () => {
    await using bench = new TestBench({ format: "amd-v1", leafSizes: [4096, MiB] });
    expect(bench.iommu.hwInfo().pageSizes).toEqual([4096, MiB]);
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    expect(domain.pageSizes).toEqual([4096, MiB]);
    bench.map(domain, 512, 0, 512 + 8);
    const leaves = async (page: number, pages: number) =>
      (await domain.readDirty({ page, pages, into: bitmapOf(page, pages), clear: false })).leafSizes;
    expect(await leaves(512, 512)).toEqual([MiB]);
    expect(await leaves(1024, 8)).toEqual([4096]);
  });

  it("has the given aperture and reserved ranges instead of the format's", async () => {
    const aperture = { first: 16, last: 2 ** 20 - 1 };
    const reserved = [{ first: 32, last: 33 }];
    await using bench = new TestBench({ format: "amd-v1", aperture, reserved });
    expect(bench.iommu).toMatchObject({ aperture, reserved });
  });
});

describe.each(ALL_FORMATS)("the emulated IOMMU with %s", (format) => {
  it("reports a write once, and puts it where the mapping says", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 8, 16, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    expect(write(bench.port(0), 0x103)).toBeNull();
    expect(bench.ram.u8[11 * 4096]).toBe(7);
    expect(await readPages(domain, 0x100, 16, false)).toEqual([0x103]);
    expect(await readPages(domain, 0x100, 16)).toEqual([0x103]);
    expect(await readPages(domain, 0x100, 16)).toEqual([]);
  });

  it("reads on the reader's thread as it does here", async () => {
    await using bench = new TestBench({ format, reading: "thread" });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 1000, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    const port = bench.port(0);
    for (let page = 0x100; page < 0x100 + 1000; page += 7) write(port, page);
    const pages = await readPages(domain, 0x100, 1000);
    expect(pages).toEqual(Array.from({ length: Math.ceil(1000 / 7) }, (_, index) => 0x100 + index * 7));
    expect(await readPages(domain, 0x100, 1000)).toEqual([]);
  });

  it("reports all of a 1 GiB leaf in the query for one byte, and writes nothing outside the bitmap", async () => {
    await using bench = new TestBench({ format, ramBytes: GiB });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    const pages = GiB / 4096;
    bench.map(domain, pages, 0, pages);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    write(bench.port(0), pages + 12345);
    // An odd part of the leaf, by a bitmap with guards: what a page-sized bitmap has beyond its bits.
    const first = pages + 12301;
    const count = 1003;
    const into = bitmapOf(first, count);
    into.words.fill(0xdeadbeef, Math.ceil(count / 32));
    const { leafSizes } = await domain.readDirty({ page: first, pages: count, into, clear: true });
    expect(leafSizes).toEqual([GiB]);
    const bits = into.words.slice(0, Math.ceil(count / 32));
    expect([...bits].reduce((sum, word) => sum + word.toString(2).replaceAll("0", "").length, 0)).toBe(count);
    expect(into.words.subarray(Math.ceil(count / 32)).every((word) => word === 0xdeadbeef)).toBe(true);
    // The whole leaf was cleaned, as on Linux.
    expect(await readPages(domain, pages, pages)).toEqual([]);
  });

  it("reports both of two areas around a hole, each asked for, and only the first where both are", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 4, false);
    bench.map(domain, 0x108, 8, 4, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    const port = bench.port(0);
    write(port, 0x101);
    write(port, 0x109);
    expect(await readPages(domain, 0x100, 12, false)).toEqual([0x101]);
    expect(await readPages(domain, 0x100, 4)).toEqual([0x101]);
    expect(await readPages(domain, 0x108, 4)).toEqual([0x109]);
  });

  it("tells the size of each leaf that it met, and of none behind a hole", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x3f8, 0, 8, false);
    bench.map(domain, 0x400, 512, 512);
    bench.map(domain, 0x608, 8, 8, false);
    const sizes = async (page: number, pages: number) =>
      (await domain.readDirty({ page, pages, into: bitmapOf(page, pages), clear: true })).leafSizes;
    expect(await sizes(0x3f8, 8)).toEqual([4096]);
    expect(await sizes(0x400, 1)).toEqual([2 * MiB]);
    expect(await sizes(0x3f8, 520)).toEqual([4096, 2 * MiB]);
    expect(await sizes(0x3f8, 1024)).toEqual([4096, 2 * MiB]);
    // The hole and the leaves behind it are in one block of a table.
    expect(await sizes(0x604, 8)).toEqual([]);
    expect(await sizes(0x600, 64)).toEqual([]);
    expect(await sizes(2 ** 30, 512)).toEqual([]);
  });

  it("blocks and logs a DMA outside the mapping, to a read-only page, and without a domain", async () => {
    await using bench = new TestBench({ format });
    const port = bench.port(0);
    expect(write(port, 0x100)).toBe("detached");
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    domain.table.map({ page: 0x100, frame: 0, pages: 1, readable: true, writeable: false, hugePages: true });
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    expect(write(port, 0x101)).toBe("not-mapped");
    expect(write(port, 0x100)).toBe("not-writeable");
    expect(write(port, 2 ** 50)).toBe("not-mapped");
    const target = new Uint8Array(1);
    bench.ram.u8[0] = 9;
    expect(port.read(0x100, 0, target, 0, 1)).toBeNull();
    expect(target[0]).toBe(9);
    expect(bench.ram.u8[0]).toBe(9);
    expect(await readPages(domain, 0x100, 1)).toEqual([]);
    expect(bench.iommu.takeFaults()).toEqual([
      { port: 0, page: 0x100, write: true, reason: "detached" },
      { port: 0, page: 0x101, write: true, reason: "not-mapped" },
      { port: 0, page: 0x100, write: true, reason: "not-writeable" },
      { port: 0, page: 2 ** 50, write: true, reason: "not-mapped" },
    ]);
    expect(port.counters.get()).toEqual({ writes: 0, bytesWritten: 0, reads: 1, bytesRead: 1, faults: 4 });
  });

  it("keeps a read from a page that is mapped for writing only, except on Arm, where stage 1 has no such page", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    domain.table.map({ page: 0x100, frame: 0, pages: 4, readable: false, writeable: true, hugePages: false });
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    const port = bench.port(0);
    // Also by the IOTLB entry that the write made.
    expect(write(port, 0x101)).toBeNull();
    const fault = format === "arm-s1" ? null : "not-readable";
    expect(port.read(0x101, 0, new Uint8Array(1), 0, 1)).toBe(fault);
    expect(bench.iommu.takeFaults()).toEqual(
      fault === null ? [] : [{ port: 0, page: 0x101, write: false, reason: fault }],
    );
    expect(await readPages(domain, 0x100, 4)).toEqual([0x101]);
  });

  it("records the first write to a page that was only read before, and that the IOTLB knows", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 4, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    const port = bench.port(0);
    expect(port.read(0x101, 0, new Uint8Array(1), 0, 1)).toBeNull();
    expect(write(port, 0x101)).toBeNull();
    expect(await readPages(domain, 0x100, 4)).toEqual([0x101]);
  });

  it("keeps dirty bits that are left when tracking is switched off, and records no more", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 4, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    const port = bench.port(0);
    expect(write(port, 0x101)).toBeNull();
    await domain.setDirtyTracking(false);
    expect(write(port, 0x102)).toBeNull();
    // The SMMU records as long as such a domain is attached.
    expect(await readPages(domain, 0x100, 4)).toEqual(format === "arm-s1" ? [0x101, 0x102] : [0x101]);
    expect(await readPages(domain, 0x100, 4)).toEqual([]);
  });

  it("lets a device attached later inherit tracking, and forget it when it leaves", async () => {
    await using bench = new TestBench({ format });
    const tracked = bench.iommu.allocDomain({ dirtyTracking: true });
    const plain = bench.iommu.allocDomain({ dirtyTracking: false });
    bench.map(tracked, 0x100, 0, 4, false);
    bench.map(plain, 0x100, 4, 4, false);
    const port = bench.port(0);
    await bench.iommu.attach(0, plain);
    expect(write(port, 0x100)).toBeNull();
    await tracked.setDirtyTracking(true);
    await bench.iommu.attach(0, tracked);
    expect(write(port, 0x102)).toBeNull();
    expect(await readPages(tracked, 0x100, 4)).toEqual([0x102]);
    expect([...tracked.ports]).toEqual([0]);
    await bench.iommu.attach(0, plain);
    expect([...tracked.ports]).toEqual([]);
    expect(write(port, 0x103)).toBeNull();
    expect(bench.ram.u8[7 * 4096]).toBe(7);
    expect(await readPages(tracked, 0x100, 4)).toEqual([]);
    await bench.iommu.attach(0, null);
    expect(write(port, 0x103)).toBe("detached");
  });

  it("clears old bits when tracking starts, and reports no write from before", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 4, false);
    bench.map(domain, 2 ** 30, 4, 4, false);
    await bench.iommu.attach(0, domain);
    const port = bench.port(0);
    await domain.setDirtyTracking(true);
    write(port, 0x100);
    write(port, 2 ** 30);
    await domain.setDirtyTracking(false);
    write(port, 0x101);
    await domain.setDirtyTracking(true);
    expect(await readPages(domain, 0x100, 4)).toEqual([]);
    expect(await readPages(domain, 2 ** 30, 4)).toEqual([]);
    write(port, 0x100);
    expect(await readPages(domain, 0x100, 4)).toEqual([0x100]);
  });

  it("puts no phantom bit on an entry that was unmapped behind the walker's look", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 4, false);
    // Keeps the table that the entry is in alive.
    bench.map(domain, 0x110, 8, 1, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    let removal: Removal | undefined;
    const port = bench.port(0, {
      beforeRecord: () => {
        removal ??= domain.table.remove(0x100, 4, null);
      },
    });
    expect(write(port, 0x101)).toBe("not-mapped");
    expect(removal).toBeDefined();
    if (removal !== undefined) domain.table.release(removal, 0x100, 4, null);
    expect(write(port, 0x101)).toBe("not-mapped");
    // Where a bit had landed, the entry would not be free.
    bench.map(domain, 0x100, 0, 4, false);
    if (format !== "arm-s1") expect(await readPages(domain, 0x100, 4)).toEqual([]);
    expect(bench.ram.u8[4096]).toBe(0);
  });

  it("translates again, and records there, where an entry was replaced behind the walker's look", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 4, false);
    bench.map(domain, 0x110, 8, 1, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    let once = true;
    const port = bench.port(0, {
      beforeRecord: () => {
        if (!once) return;
        once = false;
        domain.table.release(domain.table.remove(0x100, 4, null), 0x100, 4, null);
        bench.map(domain, 0x100, 16, 4, false);
      },
    });
    expect(write(port, 0x101)).toBeNull();
    expect(bench.ram.u8[4096]).toBe(0);
    expect(bench.ram.u8[17 * 4096]).toBe(7);
    const reported = await readPages(domain, 0x100, 4);
    expect(reported).toEqual(format === "arm-s1" ? [0x100, 0x101, 0x102, 0x103] : [0x101]);
  });

  it("serves two ports on one domain, and counts the union", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 8, false);
    await bench.iommu.attach(0, domain);
    await bench.iommu.attach(1, domain);
    await domain.setDirtyTracking(true);
    write(bench.port(0), 0x101);
    write(bench.port(1), 0x101);
    write(bench.port(1), 0x105);
    expect(await readPages(domain, 0x100, 8)).toEqual([0x101, 0x105]);
  });

  it("asks the directed P2P matrix before a DMA reaches another device's BAR", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    const frame = bench.physical.frameOf(bench.bar, 0);
    domain.table.map({ page: 0x200, frame, pages: 4, readable: true, writeable: true, hugePages: false });
    bench.map(domain, 0x100, 0, 4, false);
    await bench.iommu.attach(0, domain);
    await bench.iommu.attach(1, domain);
    const initiator = bench.port(0);
    expect(write(initiator, 0x200)).toBe("p2p-refused");
    expect(bench.bar.u8[0]).toBe(0);
    await bench.p2p.set(bench.inFlight, 0, 1, true);
    expect(write(initiator, 0x200)).toBeNull();
    expect(bench.bar.u8[0]).toBe(7);
    initiator.p2pQuiesced = true;
    expect(write(initiator, 0x200)).toBe("p2p-refused");
    expect(write(initiator, 0x201)).toBe("p2p-refused");
    expect(write(initiator, 0x100)).toBeNull();
    initiator.p2pQuiesced = false;
    expect(write(initiator, 0x200)).toBeNull();
    await bench.p2p.set(bench.inFlight, 0, 1, false);
    expect(write(initiator, 0x200)).toBe("p2p-refused");
    // Its own BAR is no peer.
    expect(write(bench.port(1), 0x200)).toBeNull();
  });

  it("asks the matrix for the BAR of the first port, too", async () => {
    await using bench = new TestBench({ format });
    const bar = createArena(4096);
    bench.physical.register(bar, { kind: "bar", port: 0 });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    const frame = bench.physical.frameOf(bar, 0);
    domain.table.map({ page: 0x200, frame, pages: 1, readable: true, writeable: true, hugePages: false });
    await bench.iommu.attach(0, domain);
    await bench.iommu.attach(1, domain);
    const initiator = bench.port(1);
    expect(write(initiator, 0x200)).toBe("p2p-refused");
    await bench.p2p.set(bench.inFlight, 1, 0, true);
    expect(write(initiator, 0x200)).toBeNull();
    initiator.p2pQuiesced = true;
    expect(write(initiator, 0x200)).toBe("p2p-refused");
    expect(write(bench.port(0), 0x200)).toBeNull();
  });

  it("can be one that does not track: it says so, and refuses what needs tracking", async () => {
    await using bench = new TestBench({ format, dirtyTracking: false });
    expect(bench.iommu.hwInfo().dirtyTracking).toBe(false);
    expect(() => bench.iommu.allocDomain({ dirtyTracking: true })).toThrowError(/EOPNOTSUPP/);
    const domain = bench.iommu.allocDomain({ dirtyTracking: false });
    bench.map(domain, 0x100, 0, 4);
    await bench.iommu.attach(0, domain);
    expect(write(bench.port(0), 0x100)).toBeNull();
    expect(await refusal(domain.setDirtyTracking(true))).toBe("EOPNOTSUPP");
    const into = bitmapOf(0x100, 4);
    expect(await refusal(domain.readDirty({ page: 0x100, pages: 4, into, clear: true }))).toBe("EOPNOTSUPP");
  });

  it("reads dirty bits of all pages that there are, and of no others", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    const read = (page: number, pages: number) =>
      refusal(domain.readDirty({ page, pages, into: bitmapOf(0, 1), clear: true }));
    for (const [page, pages] of [
      [0, 1],
      [LAST_PAGE, 1],
      [LAST_PAGE - 3, 4],
      [0, LAST_PAGE + 1],
    ]) {
      expect(await read(page, pages), `${page} ${pages}`).toBeNull();
    }
    for (const [page, pages] of [
      [-1, 2],
      [0, 0],
      [5, -1],
      [LAST_PAGE, 2],
      [LAST_PAGE + 1, 1],
      [1, LAST_PAGE + 1],
      [Number.NaN, 1],
      [0, Number.NaN],
    ]) {
      expect(await read(page, pages), `${page} ${pages}`).toBe("EINVAL");
    }
  });

  it("refuses a domain of another IOMMU with EINVAL, and to dispose of one in use with EBUSY", async () => {
    await using bench = new TestBench({ format });
    await using other = new TestBench({ format, dirtyTracking: false });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    expect(await refusal(other.iommu.attach(0, domain))).toBe("EINVAL");
    await bench.iommu.attach(0, domain);
    let error: unknown;
    try {
      domain.dispose();
    } catch (caught) {
      error = caught;
    }
    expect(isErrno(error, "EBUSY")).toBe(true);
  });

  it("goes on after a caller's mistake in the arguments of a DMA", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 4);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    const port = bench.port(0);
    expect(() => port.write(0x100, 4090, new Uint8Array(8), 0, 8)).toThrowError(RangeError);
    expect(() => port.read(0x100, 0, new Uint8Array(8), 4, 8)).toThrowError(RangeError);
    expect(await readPages(domain, 0x100, 4)).toEqual([]);
  });

  it("answers the same with an IOTLB of one entry", async () => {
    await using bench = new TestBench({ format, iotlb: 1 });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 16, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    const port = bench.port(0);
    for (const page of [0x100, 0x101, 0x100, 0x10f, 0x101]) write(port, page);
    expect(await readPages(domain, 0x100, 16)).toEqual([0x100, 0x101, 0x10f]);
  });
});

describe("the emulated IOMMU with amd-v1", () => {
  it("reports a contiguous page once whose replicas are all dirty, and clears them all", async () => {
    await using bench = new TestBench({ format: "amd-v1" });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 0, 16);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    const port = bench.port(0);
    const all = Array.from({ length: 16 }, (_, index) => 0x100 + index);
    for (const page of all) write(port, page);
    // Asked for a part, it cleans the whole leaf.
    const into = bitmapOf(0x105, 3);
    const { leafSizes } = await domain.readDirty({ page: 0x105, pages: 3, into, clear: true });
    expect(leafSizes).toEqual([65536]);
    expect(pagesOf(into)).toEqual([0x105, 0x106, 0x107]);
    expect(await readPages(domain, 0x100, 16)).toEqual([]);
    for (const page of all) {
      write(port, page);
      expect(await readPages(domain, 0x100, 16)).toEqual(all);
    }
    expect(await readPages(domain, 0x100, 16)).toEqual([]);
  });
});
