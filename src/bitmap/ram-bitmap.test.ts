import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MiB, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { RamBitmap } from "./ram-bitmap.js";

const memory = createGuestMemory(16 * MiB);

/** The guest pages that are marked, by the regions' own account. */
function marked(bitmap: RamBitmap): number[] {
  const pages: number[] = [];
  for (const { arena, arenaPage, firstPage, pages: count } of memory.regions) {
    for (let i = 0; i < count; i++) {
      const page = arenaPage + i;
      if ((bitmap.arenas[arena][page >>> 5] >>> (page & 31)) & 1) pages.push(firstPage + i);
    }
  }
  return pages;
}

const isRam = (page: number) => memory.regions.some((r) => page >= r.firstPage && page < r.firstPage + r.pages);

/** Before, at and behind every end of a region, and at words' ends beside them. */
const EDGES = [
  ...new Set(
    memory.regions.flatMap(({ firstPage, pages }) =>
      [-33, -32, -31, -1, 0, 1, 31, 32].flatMap((by) => [firstPage + by, firstPage + pages + by]),
    ),
  ),
].filter((page) => page >= 0);

describe("a bitmap of RAM", () => {
  it("marks pages up to every edge of a region, and none of a hole", () => {
    for (const first of EDGES) {
      for (const last of EDGES) {
        if (last < first) continue;
        const bitmap = new RamBitmap(memory);
        bitmap.addPages(first, last - first + 1);
        const expected = Array.from({ length: last - first + 1 }, (_, i) => first + i).filter(isRam);
        expect(bitmap.count()).toBe(expected.length);
        const found = marked(bitmap);
        expect([found.length, found[0], found.at(-1)]).toEqual([expected.length, expected[0], expected.at(-1)]);
      }
    }
  });

  it("behaves like a set of pages", () => {
    const runs = fc.array(fc.tuple(fc.nat({ max: 5000 }), fc.integer({ min: 1, max: 70 })), { maxLength: 12 });
    fc.assert(
      fc.property(runs, runs, (own, others) => {
        const [bitmap, other] = [own, others].map((list) => {
          const made = new RamBitmap(memory);
          for (const [first, count] of list) made.addPages(first, count);
          return made;
        });
        const pagesOf = (list: [number, number][]) =>
          list.flatMap(([first, count]) => Array.from({ length: count }, (_, i) => first + i)).filter(isRam);
        const expected = [...new Set([...pagesOf(own), ...pagesOf(others)])].sort((a, b) => a - b);
        const before = marked(other);
        bitmap.or(other);
        expect(marked(bitmap)).toEqual(expected);
        expect(bitmap.count()).toBe(expected.length);
        expect(bitmap.bytes).toBe(expected.length * PAGE_SIZE);
        expect(marked(other)).toEqual(before);
        bitmap.clear();
        expect(bitmap.count()).toBe(0);
      }),
      { numRuns: 50 },
    );
  });

  it("marks all of a region, and all of RAM", () => {
    for (const region of memory.regions) {
      const bitmap = new RamBitmap(memory);
      bitmap.setAll(region);
      expect(marked(bitmap)).toEqual(Array.from({ length: region.pages }, (_, i) => region.firstPage + i));
    }
    const bitmap = new RamBitmap(memory);
    bitmap.setAll();
    expect(bitmap.count()).toBe(memory.regions.reduce((sum, { pages }) => sum + pages, 0));
  });

  it("takes over words of another, which it shares", () => {
    const bitmap = new RamBitmap(memory);
    const view = new RamBitmap(memory, bitmap.arenas);
    view.addPages(memory.regions[0].firstPage, 1);
    expect(bitmap.count()).toBe(1);
  });
});
