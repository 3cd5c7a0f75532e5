import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { type IovaStretch, joined, loggingRanges } from "./ranges.js";

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
