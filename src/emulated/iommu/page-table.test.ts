import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ALL_FORMATS, bitmapOf, pagesOf, TestBench } from "../../../test/support/iommu.js";
import { isErrno } from "../../uapi/errno.js";

/*
 * Each format against a model: a Map from IOVA page to frame, permissions and whether it is dirty. A window of 4 MiB at
 * an address where the index of every level is in the middle, plus a mapping high up.
 */

const BASE = 2 ** 35 + 5 * 2 ** 27 + 3 * 2 ** 18 + 1024;
const WINDOW = 1024;

interface ModelPage {
  readonly frame: number;
  readonly writeable: boolean;
  dirty: boolean;
  /** First page and pages of the leaf that it is in. */
  readonly leaf: number;
  readonly leafPages: number;
}

const actions = fc.array(
  fc.oneof(
    fc.record({
      do: fc.constant("map" as const),
      page: fc.nat({ max: WINDOW - 1 }),
      pages: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(64, 512, 1024)),
      ramPage: fc.nat({ max: WINDOW - 1 }),
      aligned: fc.boolean(),
      hugePages: fc.boolean(),
      writeable: fc.boolean(),
    }),
    fc.record({ do: fc.constant("unmap" as const), page: fc.nat({ max: WINDOW - 1 }) }),
    fc.record({
      do: fc.constant("write" as const),
      page: fc.nat({ max: WINDOW - 1 }),
      offset: fc.nat({ max: 4092 }),
    }),
    fc.record({
      do: fc.constant("read" as const),
      page: fc.nat({ max: WINDOW - 1 }),
      pages: fc.integer({ min: 1, max: 200 }),
      clear: fc.boolean(),
      granule: fc.constantFrom(4096, 4096, 16384, 2 ** 21),
    }),
  ),
  { minLength: 1, maxLength: 40 },
);

const LEAF_PAGES = {
  "amd-v1": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
  "vtd-ss": [1, 512],
  "arm-s1": [1, 512],
};

describe.each(ALL_FORMATS)("an I/O page table in format %s", (format) => {
  it("behaves like a map from pages to frames with a dirty flag per leaf", async () => {
    await fc.assert(
      fc.asyncProperty(actions, async (sequence) => {
        await using bench = new TestBench({ format, ramBytes: WINDOW * 4096, tableBytes: 2 ** 20 });
        const domain = bench.iommu.allocDomain({ dirtyTracking: true });
        await bench.iommu.attach(0, domain);
        await domain.setDirtyTracking(true);
        const port = bench.port(0);
        const model = new Map<number, ModelPage>();
        const mappings: { page: number; pages: number }[] = [];
        for (const action of sequence) {
          if (action.do === "map") {
            const pages = Math.min(action.pages, WINDOW - action.page);
            const ramPage = action.aligned ? action.page : Math.min(action.ramPage, WINDOW - pages);
            const { hugePages, writeable } = action;
            const args = { page: BASE + action.page, frame: ramPage, pages, readable: true, writeable, hugePages };
            const taken = Array.from({ length: pages }, (_, i) => model.has(action.page + i)).includes(true);
            if (taken) {
              expect(() => domain.table.map(args)).toThrowError(/EEXIST/);
              continue;
            }
            domain.table.map(args);
            mappings.push({ page: action.page, pages });
            for (let at = 0; at < pages; ) {
              const page = action.page + at;
              const fits = (size: number): boolean =>
                (BASE + page) % size === 0 && (ramPage + at) % size === 0 && at + size <= pages;
              const leafPages = hugePages ? Math.max(...LEAF_PAGES[format].filter(fits)) : 1;
              for (let i = 0; i < leafPages; i++) {
                // Arm's writeable pages are born dirty.
                const dirty = format === "arm-s1" && writeable;
                model.set(page + i, { frame: ramPage + at + i, writeable, dirty, leaf: page, leafPages });
              }
              at += leafPages;
            }
          } else if (action.do === "unmap") {
            const index = mappings.findIndex(({ page, pages }) => action.page >= page && action.page < page + pages);
            if (index < 0) continue;
            const [{ page, pages }] = mappings.splice(index, 1);
            const into = bitmapOf(BASE + page, pages);
            await domain.unmap({ page: BASE + page, pages, into });
            const expected: number[] = [];
            for (let at = page; at < page + pages; at++) {
              if (model.get(at)?.dirty) expected.push(BASE + at);
              model.delete(at);
            }
            expect(pagesOf(into)).toEqual(expected);
          } else if (action.do === "write") {
            const bytes = new Uint8Array(4);
            crypto.getRandomValues(bytes);
            const fault = port.write(BASE + action.page, action.offset, bytes, 0, 4);
            const entry = model.get(action.page);
            if (entry === undefined) expect(fault).toBe("not-mapped");
            else if (!entry.writeable) expect(fault).toBe("not-writeable");
            else {
              expect(fault).toBeNull();
              const at = entry.frame * 4096 + action.offset;
              expect([...bench.ram.u8.subarray(at, at + 4)]).toEqual([...bytes]);
              for (let i = 0; i < entry.leafPages; i++) {
                const page = model.get(entry.leaf + i);
                if (page !== undefined) page.dirty = true;
              }
            }
          } else {
            const pages = Math.min(action.pages, WINDOW - action.page);
            const first = BASE + action.page;
            const into = bitmapOf(first, pages, action.granule);
            await domain.readDirty({ page: first, pages, into, clear: action.clear });
            const expected = bitmapOf(first, pages, action.granule);
            const perGranule = action.granule / 4096;
            for (let at = action.page; at < action.page + pages; at++) {
              const entry = model.get(at);
              if (entry === undefined) break;
              if (!entry.dirty) continue;
              expected.set(Math.floor((at - action.page) / perGranule));
              if (!action.clear) continue;
              // The whole leaf is cleaned, but what lies behind in the range is still to be reported.
              for (let i = 0; i < entry.leafPages; i++) {
                const page = model.get(entry.leaf + i);
                if (page === undefined) continue;
                page.dirty = false;
                const inside = entry.leaf + i - action.page;
                if (inside >= 0 && inside < pages) expected.set(Math.floor(inside / perGranule));
              }
            }
            expect([...into.words.subarray(0, 40)]).toEqual([...expected.words.subarray(0, 40)]);
          }
        }
        for (const { page, pages } of mappings) await domain.unmap({ page: BASE + page, pages });
        await bench.iommu.attach(0, null);
        // All tables but the root have been freed on the way.
        expect(domain.table.tables).toBe(1);
        domain.dispose();
        expect(domain.table.tables).toBe(0);
      }),
      { numRuns: 150 },
    );
  });

  it("maps all or nothing", async () => {
    await using bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, BASE + 700, 0, 1);
    expect(() => bench.map(domain, BASE, 0, 1024)).toThrowError(/EEXIST/);
    await bench.iommu.attach(0, domain);
    expect(bench.port(0).write(BASE, 0, new Uint8Array(1), 0, 1)).toBe("not-mapped");
  });

  it("refuses with ENOMEM, before anything is mapped, what does not fit the arena of tables", async () => {
    await using bench = new TestBench({ format, tableBytes: 64 * 1024 });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    const { tables } = domain.table;
    let error: unknown;
    try {
      domain.table.map({ page: 0, frame: 0, pages: 2 ** 16, readable: true, writeable: true, hugePages: false });
    } catch (caught) {
      error = caught;
    }
    expect(isErrno(error, "ENOMEM")).toBe(true);
    expect(domain.table.tables).toBe(tables);
    bench.map(domain, 0, 0, 16, false);
  });

  it("refuses to unmap a part of a large leaf", async () => {
    await using bench = new TestBench({ format, ramBytes: 8 * 2 ** 20 });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, 512, 512, 512);
    await expect(domain.unmap({ page: 512, pages: 1 })).rejects.toThrowError(/EINVAL/);
    await expect(domain.unmap({ page: 513, pages: 511 })).rejects.toThrowError(/EINVAL/);
    await domain.unmap({ page: 512, pages: 512 });
    bench.map(domain, 512, 512, 512);
  });
});
