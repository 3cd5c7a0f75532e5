import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { addDirty, joined, loggingRanges, type MappedArea, writeableAreas } from "./areas.js";
import { markedPages } from "./testing/fake-machine.js";
import type { TrackedRange } from "./tracker.js";

const memory = createGuestMemory(4 * 2 ** 20);
const PAGES = 1024;

const range = fc.record({ iova: fc.integer({ min: 0, max: 1 << 24 }), length: fc.integer({ min: 1, max: 1 << 20 }) });
const toRange = ({ iova, length }: { iova: number; length: number }) => ({
  iova: BigInt(iova),
  length: BigInt(length),
});

function covers(ranges: readonly TrackedRange[], iova: bigint): boolean {
  return ranges.some((r) => r.iova <= iova && iova < r.iova + r.length);
}

describe("taking a tracker's bits over into RAM", () => {
  test("marks exactly the RAM behind each dirty granule, whatever granule, offset and mapping", () => {
    const bitmap = fc.record({
      firstPage: fc.integer({ min: 0, max: PAGES }),
      granule: fc.constantFrom(2048, 4096, 8192, 65536),
      bits: fc.array(fc.boolean(), { minLength: 1, maxLength: 300 }),
    });
    const area = fc.record({
      iovaPage: fc.integer({ min: 0, max: PAGES }),
      pages: fc.integer({ min: 1, max: 700 }),
      guestPage: fc.integer({ min: 0, max: PAGES - 1 }),
    });
    fc.assert(
      fc.property(bitmap, area, ({ firstPage, granule, bits }, { iovaPage, pages, guestPage }) => {
        const dirty = new DirtyBitmap({ iova: iovaOf(firstPage), length: BigInt(bits.length * granule), granule });
        bits.forEach((set, bit) => {
          if (set) dirty.set(bit);
        });
        const mapped: MappedArea = { iova: iovaOf(iovaPage), length: BigInt(pages * PAGE_SIZE), guestPage };
        const into = new RamBitmap(memory);
        addDirty(into, dirty, [mapped]);

        const expected: number[] = [];
        for (const region of memory.regions) {
          for (let page = region.firstPage; page < region.firstPage + region.pages; page++) {
            const offset = page - guestPage;
            if (offset < 0 || offset >= pages) continue;
            const at = (iovaPage + offset - firstPage) * PAGE_SIZE;
            const first = Math.floor(at / granule);
            const last = Math.floor((at + PAGE_SIZE - 1) / granule);
            if (bits.some((set, bit) => set && bit >= first && bit <= last)) expected.push(page);
          }
        }
        expect(markedPages(into)).toEqual(expected);
      }),
      { numRuns: 300 },
    );
  });

  test("a word at a time and a run at a time give the same result", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 767 }), { maxLength: 60 }), (pages) => {
        const [, low] = writeableAreas(memory);
        const whole = new DirtyBitmap({ ...low, granule: PAGE_SIZE });
        // Shifted by a page, so that words of the two sides don't begin at the same pages.
        const shifted = new DirtyBitmap({
          iova: low.iova - BigInt(PAGE_SIZE),
          length: low.length + BigInt(PAGE_SIZE),
          granule: PAGE_SIZE,
        });
        for (const page of pages) {
          whole.set(page);
          shifted.set(page + 1);
        }
        const [a, b] = [whole, shifted].map((dirty) => {
          const into = new RamBitmap(memory);
          addDirty(into, dirty, [low]);
          return markedPages(into);
        });
        expect(a).toEqual(b);
        expect(a).toEqual([...new Set(pages)].sort((x, y) => x - y).map((page) => page + 256));
      }),
    );
  });

  test("what is no RAM (a peer's BAR) is left out", () => {
    const into = new RamBitmap(memory);
    const bar = new DirtyBitmap({ iova: 0xe000_0000n, length: 0x1_0000n, granule: PAGE_SIZE });
    bar.setAll();
    addDirty(into, bar, writeableAreas(memory));
    expect(into.count()).toBe(0);
  });
});

describe("the ranges that a device's log is asked for", () => {
  test("cover all that was given, aligned to the granule, apart from each other, and no more than fit", () => {
    fc.assert(
      fc.property(
        fc.array(range, { minLength: 1, maxLength: 20 }),
        fc.constantFrom(4096, 65536, 1 << 21),
        fc.integer({ min: 1, max: 8 }),
        (given, granule, maxRanges) => {
          const ranges = given.map(toRange);
          const logged = loggingRanges(ranges, granule, maxRanges);
          expect(logged.length).toBeLessThanOrEqual(maxRanges);
          for (const { iova, length } of ranges) {
            expect(logged.some((r) => r.iova <= iova && iova + length <= r.iova + r.length)).toBe(true);
          }
          logged.forEach(({ iova, length }, index) => {
            expect(iova % BigInt(granule)).toBe(0n);
            expect(length % BigInt(granule)).toBe(0n);
            if (index > 0) expect(iova).toBeGreaterThan(logged[index - 1].iova + logged[index - 1].length);
          });
        },
      ),
    );
  });

  test("are joined across the smallest gap first", () => {
    const at = (page: number, pages: number) => ({ iova: iovaOf(page), length: BigInt(pages * PAGE_SIZE) });
    expect(loggingRanges([at(0, 1), at(100, 1), at(103, 1)], PAGE_SIZE, 2)).toEqual([at(0, 1), at(100, 4)]);
  });

  test("joining keeps exactly the addresses that were covered", () => {
    fc.assert(
      fc.property(fc.array(range, { maxLength: 10 }), fc.array(fc.bigInt(0n, 1n << 25n)), (given, addresses) => {
        const ranges = given.map(toRange);
        for (const address of [...addresses, ...ranges.map(({ iova }) => iova)]) {
          expect(covers(joined(ranges), address)).toBe(covers(ranges, address));
        }
      }),
    );
  });
});
