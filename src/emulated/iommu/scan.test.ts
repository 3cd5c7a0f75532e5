import { describe, expect, it } from "vitest";
import { bitmapOf, pagesOf, TestBench } from "../../../test/support/iommu.js";

/*
 * Leaves of several entries, as AMD's are. A device sets the dirty bit of one entry; a read that touches any of them takes the
 * leaf as a whole, and no leaf beside it.
 */

/** First page and pages of each leaf, all RAM at its own address. */
const LOW: readonly (readonly [first: number, pages: number])[] = [
  [0x100, 4],
  [0x104, 4],
  [0x108, 8],
  [0x110, 1],
  [0x111, 1],
  [0x112, 2],
];
/** Two entries of the level above. */
const HIGH: typeof LOW = [
  [0x400, 1024],
  [0x800, 512],
];

async function tracked(leaves: typeof LOW) {
  const bench = new TestBench({ format: "amd-v1", ramBytes: 16 * 2 ** 20 });
  const domain = bench.iommu.allocDomain({ dirtyTracking: true });
  for (const [first, pages] of leaves) bench.map(domain, first, first, pages);
  await bench.iommu.attach(0, domain);
  await domain.setDirtyTracking(true);
  const port = bench.port(0);
  return {
    bench,
    write: (page: number) => expect(port.write(page, 0, Uint8Array.of(1), 0, 1)).toBeNull(),
    read: async (first: number, end: number) => {
      const into = bitmapOf(first, end - first);
      const { leafSizes } = await domain.readDirty({ page: first, pages: end - first, into, clear: true });
      expect(into.count()).toBe(pagesOf(into).length);
      return { pages: pagesOf(into), leafSizes };
    },
  };
}

/** The leaf's pages among [first, end). */
function inside([at, pages]: (typeof LOW)[number], first: number, end: number): number[] {
  return Array.from({ length: pages }, (_, i) => at + i).filter((page) => page >= first && page < end);
}

describe("a leaf of several entries", () => {
  it.each([
    ["in the lowest table", LOW, [0x100, 0x102, 0x103, 0x104, 0x107, 0x108, 0x10b, 0x10f, 0x110, 0x111, 0x112, 0x113]],
    ["above it", HIGH, [0x400, 0x401, 0x5ff, 0x600, 0x7ff, 0x800, 0x9ff]],
  ])("is read and cleaned as a whole by each read that touches it, and by no other: %s", async (_, leaves, places) => {
    const { bench, write, read } = await tracked(leaves);
    const [begin] = leaves[0];
    const end = leaves.reduce((last, [first, pages]) => Math.max(last, first + pages), 0);
    for (const written of places) {
      const leaf = leaves.find((candidate) => inside(candidate, written, written + 1).length > 0) ?? leaves[0];
      for (const first of places) {
        for (const to of [...places.map((page) => page + 1), end].filter((page) => page > first)) {
          write(written);
          const expected = inside(leaf, first, to);
          const found = await read(first, to);
          expect(found.pages, `${written} by ${first} to ${to}`).toEqual(expected);
          const touched = leaves.filter((other) => inside(other, first, to).length > 0);
          const sizes = [...new Set(touched.map(([, pages]) => pages * 4096))].sort((a, b) => a - b);
          expect(found.leafSizes).toEqual(sizes);
          const rest = await read(begin, end);
          expect(rest.pages).toEqual(expected.length > 0 ? [] : inside(leaf, begin, end));
        }
      }
    }
    await bench[Symbol.asyncDispose]();
  });
});
