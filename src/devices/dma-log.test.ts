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

  // A range inside one granule, one that begins and ends inside granules, one of whole granules; words end inside of them.
  const EDGED = [
    { page: 5, pages: 1 },
    { page: 0x41, pages: 70 },
    { page: 2 ** 40, pages: 1024 },
  ];
  const edges = EDGED.flatMap(({ page, pages: count }) =>
    [-1, 0, 1, 30, 31, 32, 33, 62, 63, 64].flatMap((by) => [page + by, page + count - 1 + by]),
  );
  const readers: [string, (log: DmaLog, ...args: Parameters<DmaLog["readAndClearAlone"]>) => void][] = [
    ["readAndClear", (log, ...args) => void log.readAndClear(...args)],
    ["readAndClearAlone", (log, ...args) => log.readAndClearAlone(...args)],
  ];

  it.each(readers)("gives each granule at an edge of a range, of a word and of what is read, once: %s", (_, take) => {
    for (const granule of [4096, 16384, 131072]) {
      const perGranule = granule / 4096;
      const granuleOf = (page: number) => Math.floor(page / perGranule);
      const isLogged = (page: number) =>
        EDGED.some(
          (range) =>
            granuleOf(page) >= granuleOf(range.page) && granuleOf(page) <= granuleOf(range.page + range.pages - 1),
        );
      for (const range of EDGED) {
        for (const from of [range.page - 1, range.page, range.page + 31, range.page + 33]) {
          for (const count of [1, 31, 32, 33, 64, 65]) {
            const log = DmaLog.create(EDGED, granule);
            const model = new Set<number>();
            for (const page of edges) {
              log.mark(page);
              if (isLogged(page)) model.add(granuleOf(page));
            }
            // What is read, then all, into bitmaps that begin before the range that is read.
            for (const [first, pages] of [
              [from, count],
              [range.page - 200 + (range.page < 200 ? 200 - range.page : 0), 3000],
            ]) {
              const start = Math.max(0, first - 64);
              const into = new DirtyBitmap({
                iova: BigInt(start) << 12n,
                length: BigInt(first + pages - start) << 12n,
                granule: 4096,
              });
              take(log, first, pages, into);
              const expected: number[] = [];
              for (const at of [...model]) {
                if ((at + 1) * perGranule <= first || at * perGranule >= first + pages) continue;
                model.delete(at);
                for (let page = at * perGranule; page < (at + 1) * perGranule; page++) {
                  if (page >= start && page < first + pages) expected.push(page);
                }
              }
              const found: number[] = [];
              into.forEachPageRun((page, run) => {
                for (let i = 0; i < run; i++) found.push(page + i);
              });
              expect(found).toEqual(expected.sort((a, b) => a - b));
            }
          }
        }
      }
    }
  });

  it.each(readers)("adds nothing before and behind a bitmap that is shorter than what is read: %s", (_, take) => {
    const log = DmaLog.create([{ page: 32, pages: 64 }], 4096);
    for (let page = 32; page < 96; page++) log.mark(page);
    const into = new DirtyBitmap({ iova: 33n << 12n, length: 62n << 12n, granule: 4096 });
    take(log, 32, 64, into);
    expect([into.bits, into.count(), into.get(0), into.get(61), into.get(62)]).toEqual([62, 62, true, true, false]);
    const short = new DirtyBitmap({ iova: 32n << 12n, length: 63n << 12n, granule: 4096 });
    for (let page = 32; page < 96; page++) log.mark(page);
    take(log, 32, 64, short);
    expect([short.bits, short.count(), short.get(63)]).toEqual([63, 63, false]);
    // What had no place was taken, too.
    const rest = new DirtyBitmap({ iova: 0n, length: 128n << 12n, granule: 4096 });
    take(log, 0, 128, rest);
    expect(rest.count()).toBe(0);
  });

  it("is the same on another thread, by what is posted of it", () => {
    const log = DmaLog.create(EDGED, 8192);
    const posted = log.posted();
    expect(posted).toMatchObject({ granule: 8192, ranges: EDGED, bits: 1 + 36 + 512 });
    const other = DmaLog.open(posted);
    expect([other.granule, other.ranges]).toEqual([8192, EDGED]);
    log.mark(2 ** 40 + 1023);
    const into = new DirtyBitmap({ iova: 2n ** 52n, length: 1024n << 12n, granule: 8192 });
    expect(other.readAndClear(2 ** 40, 1024, into)).toBe(1);
    expect(into.get(511)).toBe(true);
  });
});
