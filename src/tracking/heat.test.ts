import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { GiB, MiB } from "../memory/address.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { HEAT_BUCKETS, heatOf } from "./heat.js";

/** The definition, page by page. */
function slowly(pages: RamBitmap, buckets: number): number[] {
  const all = pages.memory.regions.reduce((sum, region) => sum + region.pages, 0);
  const heat: number[] = new Array(buckets).fill(0);
  let at = 0;
  for (const region of pages.memory.regions) {
    for (let i = 0; i < region.pages; i++, at++) {
      const page = region.arenaPage + i;
      heat[Math.floor((at * buckets) / all)] += (pages.arenas[region.arena][page >>> 5] >>> (page & 31)) & 1;
    }
  }
  return heat;
}

describe("the heat of the address space", () => {
  it("counts each marked page in the stretch of RAM that it lies in, over holes and whatever the size", () => {
    const runs = fc.array(fc.tuple(fc.nat({ max: 4096 }), fc.integer({ min: 1, max: 600 })), { maxLength: 12 });
    fc.assert(
      fc.property(
        fc.constantFrom(4 * MiB, 5 * MiB, 16 * MiB),
        fc.integer({ min: 1, max: 300 }),
        runs,
        (bytes, n, marked) => {
          const pages = new RamBitmap(createGuestMemory(bytes));
          for (const [first, count] of marked) pages.addPages(first, count);
          expect(heatOf(pages, n)).toEqual(slowly(pages, n));
        },
      ),
      { numRuns: 60 },
    );
  });

  it("spans several arenas, in the order of guest-physical addresses", () => {
    const pages = new RamBitmap(createGuestMemory(4 * GiB));
    const last = pages.memory.regions.at(-1);
    expect(last?.arena).toBe(1);
    pages.addPages(0, 1);
    pages.addPages((last?.firstPage ?? 0) + (last?.pages ?? 0) - 1, 1);
    const heat = heatOf(pages);
    expect([heat.length, heat[0], heat.at(-1), heat.reduce((a, b) => a + b)]).toEqual([HEAT_BUCKETS, 1, 1, 2]);
  });
});
