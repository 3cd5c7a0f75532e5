import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { contains, type IovaStretch, joined, loggingRanges, overlap } from "./ranges.js";

const range = fc.record({ iova: fc.integer({ min: 0, max: 1 << 24 }), length: fc.integer({ min: 1, max: 1 << 20 }) });
const toRange = ({ iova, length }: { iova: number; length: number }) => ({
  iova: BigInt(iova),
  length: BigInt(length),
});

function covers(ranges: readonly IovaStretch[], iova: bigint): boolean {
  return ranges.some((r) => r.iova <= iova && iova < r.iova + r.length);
}

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

  const at = (page: number, pages: number) => ({ iova: iovaOf(page), length: BigInt(pages * PAGE_SIZE) });

  test("are joined across the smallest gap first", () => {
    expect(loggingRanges([at(0, 1), at(100, 1), at(103, 1)], PAGE_SIZE, 2)).toEqual([at(0, 1), at(100, 4)]);
  });

  test("are joined across the gap itself, however long what lies beside it is", () => {
    // The gaps are 10, 20 and 30 pages; the stretches before them 50, 1 and 100.
    const given = [at(0, 50), at(60, 1), at(81, 100), at(211, 1)];
    expect(loggingRanges(given, PAGE_SIZE, 3)).toEqual([at(0, 61), at(81, 100), at(211, 1)]);
    expect(loggingRanges(given, PAGE_SIZE, 2)).toEqual([at(0, 181), at(211, 1)]);
    expect(loggingRanges(given, PAGE_SIZE, 1)).toEqual([at(0, 212)]);
    // There is no log of fewer ranges.
    expect(loggingRanges(given, PAGE_SIZE, 0)).toEqual([at(0, 212)]);
    expect(loggingRanges(given.toReversed(), PAGE_SIZE, 4)).toEqual(given);
  });

  test("that reach no further than their granules keep their ends", () => {
    expect(loggingRanges([at(16, 16)], 65536, 1)).toEqual([at(16, 16)]);
    expect(loggingRanges([at(15, 2)], 65536, 1)).toEqual([at(0, 32)]);
    expect(loggingRanges([at(31, 2)], 65536, 1)).toEqual([at(16, 32)]);
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

describe("two stretches", () => {
  const at = (iova: number, length: number) => ({ iova: BigInt(iova), length: BigInt(length) });

  test("overlap where they have an address in common, and hold each other where all are", () => {
    const sets = (stretch: IovaStretch) =>
      new Set(Array.from({ length: Number(stretch.length) }, (_, i) => Number(stretch.iova) + i));
    for (let iova = 0; iova < 8; iova++) {
      for (let length = 1; length < 8; length++) {
        const [other, own] = [at(3, 3), at(iova, length)];
        const [a, b] = [sets(other), sets(own)];
        expect(overlap(other, own)).toBe([...a].some((address) => b.has(address)));
        expect(overlap(own, other)).toBe(overlap(other, own));
        expect(contains(other, own)).toBe([...b].every((address) => a.has(address)));
        expect(contains(own, other)).toBe([...a].every((address) => b.has(address)));
      }
    }
  });

  test("are joined where they touch, and keep the longer end where one holds the other", () => {
    expect(joined([at(4, 2), at(0, 4)])).toEqual([at(0, 6)]);
    expect(joined([at(0, 4), at(5, 1)])).toEqual([at(0, 4), at(5, 1)]);
    expect(joined([at(0, 9), at(2, 3)])).toEqual([at(0, 9)]);
    expect(joined([at(0, 3), at(0, 7), at(0, 5)])).toEqual([at(0, 7)]);
  });
});
