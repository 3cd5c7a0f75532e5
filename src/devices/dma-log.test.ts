import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { DmaLog } from "./dma-log.js";

/** Ranges that do not overlap, after rounding to 64 KiB. */
const RANGES = [
  { page: 0x100, pages: 40 },
  { page: 0x205, pages: 1 },
  { page: 2 ** 35 + 3, pages: 100 },
];

const pages = fc.oneof(
  fc.integer({ min: 0xf0, max: 0x140 }),
  fc.constantFrom(0x204, 0x205, 0x206),
  fc.integer({ min: 2 ** 35, max: 2 ** 35 + 120 }),
);

describe("a device's DMA log", () => {
  it("reports, per range and outwards to granules, what was marked since the last read", () => {
    fc.assert(
      fc.property(
        fc.array(pages, { maxLength: 50 }),
        fc.constantFrom(4096, 65536),
        fc.constantFrom(4096, 16384, 65536),
        (marked, granule, bitmapGranule) => {
          const log = DmaLog.create(RANGES, granule);
          const device = DmaLog.open(log.posted());
          for (const page of marked) device.mark(page);
          const perGranule = granule / 4096;
          const perBit = bitmapGranule / 4096;
          const logged = (page: number): boolean =>
            RANGES.some(
              (range) =>
                Math.floor(page / perGranule) >= Math.floor(range.page / perGranule) &&
                Math.floor(page / perGranule) <= Math.floor((range.page + range.pages - 1) / perGranule),
            );
          for (const range of RANGES) {
            const first = Math.floor(range.page / 16) * 16;
            const count = Math.ceil((range.page + range.pages) / 16) * 16 - first;
            const make = (): DirtyBitmap =>
              new DirtyBitmap({ iova: BigInt(first) * 4096n, length: BigInt(count) * 4096n, granule: bitmapGranule });
            const into = make();
            log.readAndClear(first, count, into);
            const expected = make();
            for (const page of marked) {
              if (!logged(page) || page < first || page >= first + count) continue;
              const from = Math.floor(page / perGranule) * perGranule - first;
              for (let at = from; at < from + perGranule; at++) expected.set(Math.floor(at / perBit));
            }
            expect([...into.words.subarray(0, 8)]).toEqual([...expected.words.subarray(0, 8)]);
            const again = make();
            expect(log.readAndClear(first, count, again)).toBe(0);
            expect(again.count()).toBe(0);
          }
        },
      ),
    );
  });

  it("leaves the marks of other ranges alone", () => {
    const log = DmaLog.create(RANGES, 4096);
    log.mark(0x101);
    log.mark(0x205);
    const into = new DirtyBitmap({ iova: 0x205000n, length: 4096n, granule: 4096 });
    expect(log.readAndClear(0x205, 1, into)).toBe(1);
    const rest = new DirtyBitmap({ iova: 0x100000n, length: 40n * 4096n, granule: 4096 });
    expect(log.readAndClear(0x100, 40, rest)).toBe(1);
    expect(rest.get(1)).toBe(true);
  });
});
