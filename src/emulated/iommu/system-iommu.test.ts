import { describe, expect, it } from "vitest";
import { ALL_FORMATS, readPages, TestBench } from "../../../test/support/iommu.js";

const STAMP = Uint8Array.of(1, 2, 3, 4);

describe.each(ALL_FORMATS)("the emulated IOMMU with %s", (format) => {
  it("reports a write once, and puts it where the mapping says", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 0x100, 8, 16, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    expect(bench.port(0).write(0x103, 0, STAMP, 0, 4)).toBeNull();
    expect(bench.ram.u8.subarray(11 * 4096, 11 * 4096 + 4)).toEqual(STAMP);
    expect(await readPages(domain, 0x100, 16, false)).toEqual([0x103]);
    expect(await readPages(domain, 0x100, 16)).toEqual([0x103]);
    expect(await readPages(domain, 0x100, 16)).toEqual([]);
  });
});
