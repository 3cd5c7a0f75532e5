import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { SparseLog } from "./sparse-log.js";

/** At the edges of words and of chunks of 32768 granules, near and far. */
const EDGES = [0, 31, 32, 63, 64, 32767, 32768, 32800, 65535, 65536, 2 ** 35 - 1, 2 ** 35, 2 ** 52 - 2];
const pages = fc.oneof(fc.constantFrom(...EDGES), fc.nat({ max: 70_000 }));

const actions = fc.array(
  fc.oneof(
    fc.record({ mark: pages }),
    fc.record({ read: pages, pages: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.integer({ min: 1, max: 100_000 })) }),
  ),
  { maxLength: 40 },
);

describe("a sparse log", () => {
  it("behaves like a set from which reads take", () => {
    fc.assert(
      fc.property(
        actions,
        fc.constantFrom(4096, 8192, 65536),
        fc.constantFrom(4096, 16384),
        (sequence, granule, bitmapGranule) => {
          const log = new SparseLog(granule);
          const perGranule = granule / 4096;
          const model = new Set<number>();
          for (const action of sequence) {
            if ("mark" in action) {
              log.mark(action.mark);
              model.add(Math.floor(action.mark / perGranule));
              continue;
            }
            const first = action.read;
            const count = Math.min(action.pages, 2 ** 52 - 1 - first);
            const make = () =>
              new DirtyBitmap({ iova: BigInt(first) << 12n, length: BigInt(count) << 12n, granule: bitmapGranule });
            const found = make();
            const expected = make();
            log.readAndClear(first, count, found);
            for (const at of [...model]) {
              const [from, end] = [at * perGranule, (at + 1) * perGranule];
              if (end <= first || from >= first + count) continue;
              model.delete(at);
              for (let page = Math.max(from, first); page < Math.min(end, first + count); page++) {
                expected.set(Math.floor((page - first) / (bitmapGranule / 4096)));
              }
            }
            expect(runs(found)).toEqual(runs(expected));
          }
          expect(log.lost).toBe(false);
        },
      ),
    );
  });

  it("keeps what lies beside a read that ends inside a word", () => {
    const log = new SparseLog(4096);
    for (let page = 0; page < 128; page++) log.mark(page);
    const middle = new DirtyBitmap({ iova: 0n, length: 128n * 4096n, granule: 4096 });
    log.readAndClear(31, 34, middle);
    expect(runs(middle)).toEqual([[31, 34]]);
    const rest = new DirtyBitmap({ iova: 0n, length: 128n * 4096n, granule: 4096 });
    log.readAndClear(0, 128, rest);
    expect(runs(rest)).toEqual([
      [0, 31],
      [65, 63],
    ]);
  });

  it("goes on with a chunk that was taken while it was the last", () => {
    const log = new SparseLog(4096);
    const all = () => new DirtyBitmap({ iova: 0n, length: 65536n * 4096n, granule: 4096 });
    for (let round = 0; round < 3; round++) {
      log.mark(7);
      const into = all();
      log.readAndClear(0, 65536, into);
      expect(runs(into)).toEqual([[7, 1]]);
    }
  });

  it("says that it has lost a mark where it may not grow, and keeps the others", () => {
    const log = new SparseLog(4096, 2);
    log.mark(0);
    log.mark(32768);
    expect(log.lost).toBe(false);
    log.mark(65536);
    log.mark(1);
    expect(log.lost).toBe(true);
    const into = new DirtyBitmap({ iova: 0n, length: 65536n * 4096n, granule: 4096 });
    log.readAndClear(0, 65536, into);
    expect(runs(into)).toEqual([
      [0, 2],
      [32768, 1],
    ]);
  });
});

function runs(bitmap: DirtyBitmap): [number, number][] {
  const found: [number, number][] = [];
  bitmap.forEachRun((first, count) => found.push([first, count]));
  return found;
}
