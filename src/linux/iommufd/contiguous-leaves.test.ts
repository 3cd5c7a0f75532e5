import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { GiB, KiB, MiB } from "../../memory/address.js";
import { completeLeaves, leafReport, mayBeLastEntry, whyNotInside } from "./contiguous-leaves.js";

describe("a contiguous leaf that was reported one entry short", () => {
  const ENTRIES = [4 * KiB, 32 * KiB];

  it("is completed, wherever it lies, whatever the bitmap's granule and first address", () => {
    const leaf = fc.record({
      level: fc.constantFrom(...ENTRIES),
      /** log2 of its entries */
      size: fc.integer({ min: 0, max: 3 }),
      place: fc.nat({ max: 40 }),
    });
    fc.assert(
      fc.property(
        fc.array(leaf, { maxLength: 4 }),
        fc.constantFrom(512, 4096, 8192, 65536),
        fc.nat({ max: 3 }),
        (leaves, granule, before) => {
          const iova = BigInt(before * 65536);
          const start = Number(iova) + 65536;
          const bytes = 2 ** 21;
          const bitmap = new DirtyBitmap({ iova, length: BigInt(65536 + bytes), granule });
          for (const { level, size, place } of leaves) {
            const length = level * 2 ** size;
            const at = Math.ceil(start / length) * length + place * length;
            if (at + length > start + bytes) continue;
            const reported = size === 0 ? length : length - level;
            const first = Math.floor((at - Number(iova)) / granule);
            bitmap.setRange(first, Math.ceil((at + reported - Number(iova)) / granule) - first);
            bitmap.set(0);
            completeLeaves(bitmap, { iova: BigInt(start), length: BigInt(bytes) }, ENTRIES);
            const whole = Math.ceil((at + length - Number(iova)) / granule);
            for (let bit = first; bit < whole; bit++) expect(bitmap.get(bit)).toBe(true);
          }
          for (let bit = 1; bit < 65536 / granule; bit++) expect(bitmap.get(bit)).toBe(false);
        },
      ),
    );
  });

  it("is all that is added: nothing outside the range, nothing after an odd entry, nothing where nothing was", () => {
    const bitmap = new DirtyBitmap({ iova: 0n, length: 64n * 4096n, granule: 4096 });
    bitmap.set(1);
    bitmap.set(31);
    bitmap.set(40);
    bitmap.set(62);
    completeLeaves(bitmap, { iova: 0n, length: 63n * 4096n });
    expect([1, 2, 31, 32, 40, 41, 42, 62, 63].filter((bit) => bitmap.get(bit))).toEqual([1, 31, 40, 41, 62]);
    expect(bitmap.count()).toBe(5);
  });
});

describe("a read that begins inside a mapping", () => {
  it("may begin in the last entry of a contiguous leaf at every odd entry, whatever its level", () => {
    const odd = [4 * KiB, 12 * KiB + 1, 2 * MiB, GiB + 8 * KiB].map((iova) => mayBeLastEntry(BigInt(iova)));
    const even = [0, 8 * KiB, 4 * MiB + 8 * KiB + 1, 2 * GiB].map((iova) => mayBeLastEntry(BigInt(iova)));
    expect([...odd, ...even]).toEqual([true, true, true, true, false, false, false, false]);
  });

  it("is refused where a kernel could hang, or could lose what it was asked for", () => {
    const [odd, even] = [4096n, 8192n];
    expect([whyNotInside("as-read", odd), whyNotInside("short", even)]).toEqual([undefined, undefined]);
    expect(whyNotInside("short", odd)).toContain("never return");
    for (const iova of [odd, even]) expect(whyNotInside("whole", iova)).toContain("reports nothing");
  });
});

describe("how a kernel reports leaves", () => {
  it.each([
    ["6.1.0-40-amd64", "as-read"],
    ["6.18.3", "as-read"],
    ["6.19.0-rc1", "short"],
    ["7.2.13+deb14-amd64", "short"],
    ["7.3.0-1-amd64", "short"],
    ["7.3.3", "short"],
    ["7.3.4+deb14-amd64", "whole"],
    ["7.4.0-rc2", "short"],
    ["7.4", "whole"],
    ["8.0.1", "whole"],
    ["odd", "short"],
  ] as const)("%s: %s", (kernel, report) => {
    expect(leafReport(kernel)).toBe(report);
  });
});
