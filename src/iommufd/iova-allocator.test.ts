import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MiB, U64_MAX } from "../memory/address.js";
import { allocateIova, CPU_PAGES, covered, holes } from "./iova-allocator.js";

const spans = fc.array(
  fc.tuple(fc.nat(60), fc.nat(60)).map(([a, b]) => ({ start: BigInt(Math.min(a, b)), last: BigInt(Math.max(a, b)) })),
  { maxLength: 6 },
);

describe("holes and covered", () => {
  it("split a range into maximal stretches, as looking at each address does", () => {
    fc.assert(
      fc.property(spans, fc.nat(60), fc.nat(60), (used, a, b) => {
        const [first, last] = a < b ? [a, b] : [b, a];
        const isUsed = (n: number) => used.some(({ start, last }) => start <= n && n <= last);
        const runs = (wanted: boolean) => {
          const found: { start: bigint; last: bigint }[] = [];
          for (let n = first; n <= last; n++) {
            if (isUsed(n) !== wanted) continue;
            const previous = found.at(-1);
            if (previous !== undefined && previous.last === BigInt(n - 1)) previous.last = BigInt(n);
            else found.push({ start: BigInt(n), last: BigInt(n) });
          }
          return found;
        };
        expect(holes(used, BigInt(first), BigInt(last))).toEqual(runs(false));
        expect(covered(used, BigInt(first), BigInt(last))).toEqual(runs(true));
      }),
    );
  });
});

describe("allocateIova", () => {
  const request = { address: 0n, length: 4096n, alignment: 1n, allowed: [], used: [], cpuPages: CPU_PAGES };

  it("finds the lowest page that fits, as trying each page does", () => {
    const pages = fc.array(
      fc.tuple(fc.nat(40), fc.integer({ min: 1, max: 8 })).map(([page, count]) => {
        return { start: BigInt(page) * 4096n, last: BigInt(page + count) * 4096n - 1n };
      }),
      { maxLength: 8 },
    );
    fc.assert(
      fc.property(pages, fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 64 }), (used, count, page) => {
        const length = BigInt(count) * 4096n;
        const address = BigInt(page) * 4096n;
        const got = allocateIova({ ...request, address, length, used });
        let alignment = 4096n;
        while (alignment < length && address % (alignment * 2n) === 0n) alignment *= 2n;
        let expected = 4096n;
        const taken = (iova: bigint) => used.some((span) => span.start < iova + length && span.last >= iova);
        while (expected % alignment !== 0n || taken(expected)) expected += 4096n;
        expect(got).toBe(expected);
      }),
    );
  });

  it("aligns to 2 MiB at most, keeps the offset in the page, and never answers 0", () => {
    expect(allocateIova({ ...request, length: BigInt(64 * MiB) })).toBe(BigInt(2 * MiB));
    expect(allocateIova({ ...request, address: 0x1001n, length: 3n })).toBe(0x1001n);
    expect(allocateIova({ ...request, length: 1n })).toBe(4096n);
  });

  it("goes by the CPU's pages, of whatever size they are", () => {
    const cpuPages = { size: 16384n, huge: BigInt(32 * MiB) };
    expect(allocateIova({ ...request, length: 1n, cpuPages })).toBe(16384n);
    expect(allocateIova({ ...request, address: 0x5000n, length: 4096n, cpuPages })).toBe(0x5000n);
    expect(allocateIova({ ...request, length: BigInt(64 * MiB), cpuPages })).toBe(BigInt(32 * MiB));
  });

  it("answers EINVAL for memory less aligned than the IOAS demands, EOVERFLOW from 2^63 bytes, ENOSPC when full", () => {
    expect(allocateIova({ ...request, address: 0x800n, alignment: 4096n })).toBe("EINVAL");
    expect(allocateIova({ ...request, length: U64_MAX / 2n })).toBe("EOVERFLOW");
    expect(allocateIova({ ...request, used: [{ start: 0n, last: U64_MAX }] })).toBe("ENOSPC");
    expect(allocateIova({ ...request, allowed: [{ start: 0n, last: 8190n }] })).toBe("ENOSPC");
  });
});
