import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { markedPages } from "../../test/support/fake-host/machine.js";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { addArea, addDirty, endPage, type MappedArea, writeableAreas } from "./areas.js";

const memory = createGuestMemory(4 * 2 ** 20);
const PAGES = 1024;

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

describe("areas", () => {
  const at = (iova: bigint, length: bigint): MappedArea => ({ iova, length, guestPage: 0 });

  test("of RAM that devices may write are its writeable regions, at their own addresses", () => {
    const expected = memory.regions.filter(({ writeable }) => writeable);
    expect(expected.length).toBeLessThan(memory.regions.length);
    expect(writeableAreas(memory)).toEqual(
      expected.map(({ firstPage, pages }) => ({
        iova: BigInt(firstPage) * 4096n,
        length: BigInt(pages) * 4096n,
        guestPage: firstPage,
      })),
    );
  });

  test("end with the page behind their last byte", () => {
    expect(endPage([])).toBe(0);
    expect(endPage([at(0n, 1n)])).toBe(1);
    expect(endPage([at(0n, 4096n)])).toBe(1);
    expect(endPage([at(0n, 4097n)])).toBe(2);
    expect(endPage([at(0x10000n, 4096n), at(0n, 4096n)])).toBe(17);
    expect(endPage([at(2n ** 64n - 4096n, 4096n)])).toBe(2 ** 52);
  });

  test("are marked as wholes, as far as they are RAM", () => {
    const into = new RamBitmap(memory);
    const [, low] = writeableAreas(memory);
    addArea(into, { ...low, length: 3n * 4096n });
    expect(markedPages(into)).toEqual([0, 1, 2].map((page) => low.guestPage + page));
  });

  test("take nothing from a bitmap that ends where they begin, or begins where they end", () => {
    const [, low] = writeableAreas(memory);
    for (const iova of [low.iova - 32n * 4096n, low.iova + 64n * 4096n]) {
      const into = new RamBitmap(memory);
      const dirty = new DirtyBitmap({ iova, length: 32n * 4096n, granule: PAGE_SIZE });
      dirty.setAll();
      addDirty(into, dirty, [{ ...low, length: 64n * 4096n }]);
      expect(into.count()).toBe(0);
    }
  });

  test.each([1, 31, 32, 33])("that begin %d pages behind a bitmap's first words take what is theirs", (by) => {
    const [, low] = writeableAreas(memory);
    const into = new RamBitmap(memory);
    const dirty = new DirtyBitmap({ iova: low.iova - 32n * 4096n, length: 256n * 4096n, granule: PAGE_SIZE });
    dirty.setAll();
    const bytes = BigInt(by) * 4096n;
    addDirty(into, dirty, [{ iova: low.iova + bytes, length: 64n * 4096n, guestPage: low.guestPage + by }]);
    expect(markedPages(into)).toEqual(Array.from({ length: 64 }, (_, i) => low.guestPage + by + i));
  });

  test.each([31, 32, 33, 63, 64, 65])("take the first %d pages of a longer bitmap, and no more", (pages) => {
    const [, low] = writeableAreas(memory);
    for (const shift of [0n, 1n, 32n]) {
      const into = new RamBitmap(memory);
      const dirty = new DirtyBitmap({ iova: low.iova - shift * 4096n, length: 256n * 4096n, granule: PAGE_SIZE });
      dirty.setAll();
      addDirty(into, dirty, [{ ...low, length: BigInt(pages) * 4096n }]);
      expect(markedPages(into)).toEqual(Array.from({ length: pages }, (_, i) => low.guestPage + i));
    }
  });
});
