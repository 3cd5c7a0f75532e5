import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { GiB, MiB } from "../memory/address.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { RamBitmap } from "./ram-bitmap.js";
import { countPages, mergeRuns, type PageRuns, runsOf } from "./ram-runs.js";

const stretches = fc.array(fc.tuple(fc.nat({ max: 4200 }), fc.integer({ min: 1, max: 300 })), { maxLength: 16 });

function pagesIn(runs: PageRuns): number[] {
  const pages: number[] = [];
  for (let i = 0; i < runs.length; i += 2) for (let page = 0; page < runs[i + 1]; page++) pages.push(runs[i] + page);
  return pages;
}

function expectProper(runs: PageRuns): void {
  for (let i = 2; i < runs.length; i += 2) expect(runs[i]).toBeGreaterThan(runs[i - 2] + runs[i - 1]);
}

describe("the stretches of a bitmap of RAM", () => {
  it.each(["pc", "virt"] as const)(
    "name the guest pages that are marked, and nothing in a hole of a %s",
    (platform) => {
      const memory = createGuestMemory(16 * MiB, platform);
      const base = platform === "pc" ? 0 : GiB / 4096 - 600;
      fc.assert(
        fc.property(stretches, (marked) => {
          const bitmap = new RamBitmap(memory);
          const expected = new Set<number>();
          for (const [first, count] of marked) {
            bitmap.addPages(base + first, count);
            for (let page = base + first; page < base + first + count; page++) {
              if (memory.regions.some((r) => page >= r.firstPage && page < r.firstPage + r.pages)) expected.add(page);
            }
          }
          const runs = runsOf(bitmap);
          expectProper(runs);
          expect(pagesIn(runs)).toEqual([...expected].sort((a, b) => a - b));
          expect(countPages(runs)).toBe(bitmap.count());
        }),
        { numRuns: 60 },
      );
    },
  );

  it("merge to what is in any of them", () => {
    const memory = createGuestMemory(16 * MiB);
    const bitmapOf = (marked: [number, number][]) => {
      const bitmap = new RamBitmap(memory);
      for (const [first, count] of marked) bitmap.addPages(first, count);
      return bitmap;
    };
    fc.assert(
      fc.property(fc.array(stretches, { maxLength: 4 }), (lists) => {
        const merged = mergeRuns(lists.map((marked) => runsOf(bitmapOf(marked))));
        expectProper(merged);
        expect(merged).toEqual(runsOf(bitmapOf(lists.flat())));
      }),
      { numRuns: 60 },
    );
  });
});
