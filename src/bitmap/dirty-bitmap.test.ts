import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { addressOf } from "../sys/address.js";
import { countBits, forEachRun, popcount32, setBits } from "./bits.js";
import { DirtyBitmap } from "./dirty-bitmap.js";

const bitmap = (iova: bigint, length: bigint, granule: number): DirtyBitmap =>
  new DirtyBitmap({ iova, length, granule });

/** Bit numbers in runs, near the borders of words. */
const runs = fc.array(fc.tuple(fc.nat({ max: 300 }), fc.integer({ min: 1, max: 80 })), { maxLength: 8 });

function members(words: Uint32Array, bits: number): number[] {
  const found: number[] = [];
  words.forEach((word, index) => {
    for (let bit = 0; word !== 0 && bit < 32; bit++) if ((word >>> bit) & 1) found.push(index * 32 + bit);
  });
  return found.filter((bit) => bit < bits);
}

/** The bits of `into` once it has taken over those of `from`, one address after the other. */
function bitsWith(into: DirtyBitmap, from: DirtyBitmap): number[] {
  const expected = new Set(members(into.words, into.bits));
  const there = members(from.words, from.bits).map((bit) => from.iova + BigInt(bit) * BigInt(from.granule));
  for (let bit = 0; bit < into.bits; bit++) {
    const start = into.iova + BigInt(bit) * BigInt(into.granule);
    const end = start + BigInt(into.granule);
    if (there.some((first) => first < end && start < first + BigInt(from.granule))) expected.add(bit);
  }
  return [...expected].sort((a, b) => a - b);
}

describe("a bit array", () => {
  it("behaves like a set of numbers", () => {
    fc.assert(
      fc.property(runs, (spans) => {
        const words = new Uint32Array(16);
        const model = new Set<number>();
        for (const [first, count] of spans) {
          setBits(words, first, count);
          for (let bit = first; bit < first + count; bit++) model.add(bit);
        }
        expect(members(words, 512)).toEqual([...model].sort((a, b) => a - b));
        expect(countBits(words)).toBe(model.size);
        const found: number[] = [];
        let end = -1;
        forEachRun(words, 512, (first, count) => {
          // Maximal: runs do not touch.
          expect(first).toBeGreaterThan(end);
          end = first + count;
          for (let bit = first; bit < end; bit++) found.push(bit);
        });
        expect(found).toEqual([...model].sort((a, b) => a - b));
      }),
    );
  });

  it("counts a word's bits", () => {
    fc.assert(
      fc.property(fc.integer(), (word) => {
        expect(popcount32(word)).toBe((word >>> 0).toString(2).replaceAll("0", "").length);
      }),
    );
  });
});

describe("a dirty bitmap", () => {
  it("has bit 0 at its first address, whatever that is aligned to", () => {
    const dirty = bitmap(0x1800n, 0x3000n, 0x1000);
    expect(dirty.bits).toBe(3);
    dirty.set(0);
    const pages: [number, number][] = [];
    dirty.forEachPageRun((first, count) => pages.push([first, count]));
    expect(pages).toEqual([[1, 2]]);
  });

  it("is padded to a page, and refuses granules and lengths that make no sense", () => {
    expect(bitmap(0n, 4096n, 4096).words.byteLength).toBe(4096);
    for (const [length, granule] of [
      [0n, 4096],
      [4096n, 3000],
      [4096n, 0],
      [1n << 60n, 1],
    ] as const) {
      expect(() => bitmap(0n, length, granule)).toThrowError(/EINVAL/);
    }
  });

  it("has 2^37 granules at most, and a caller's memory holds them all", () => {
    const words = new Uint32Array(new SharedArrayBuffer(4));
    const inCallers = (length: bigint) => new DirtyBitmap({ iova: 0n, length, granule: 1 }, words);
    expect(inCallers(32n).words).toBe(words);
    expect(() => inCallers(33n)).toThrow(RangeError);
    expect(() => inCallers(1n << 37n)).toThrow(RangeError);
    expect(() => inCallers((1n << 37n) + 1n)).toThrowError(/EINVAL/);
  });

  it("takes another's bits over outwards, and only inside its own range", () => {
    const granules = fc.constantFrom(512, 4096, 16384, 65536);
    fc.assert(
      fc.property(
        fc.record({ at: fc.nat({ max: 64 }), granules: fc.integer({ min: 1, max: 100 }), granule: granules }),
        fc.record({ at: fc.nat({ max: 64 }), granules: fc.integer({ min: 1, max: 100 }), granule: granules }),
        fc.array(fc.nat({ max: 99 })),
        fc.array(fc.nat({ max: 99 })),
        (own, other, ownBits, otherBits) => {
          const make = (args: typeof own): DirtyBitmap =>
            bitmap(BigInt(args.at * 4096), BigInt(args.granules * args.granule), args.granule);
          const into = make(own);
          const from = make(other);
          for (const bit of ownBits) if (bit < own.granules) into.set(bit);
          for (const bit of otherBits) if (bit < other.granules) from.set(bit);
          const expected = bitsWith(into, from);
          into.or(from);
          expect(members(into.words, into.words.length * 32)).toEqual(expected);
        },
      ),
    );
  });

  it("takes over bits of the same place and granule, as many as it has", () => {
    for (const [bits, others] of [
      [70, 70],
      [70, 40],
      [40, 70],
    ]) {
      const [into, from] = [bits, others].map((count) => bitmap(0x1800n, BigInt(count) * 4096n, 4096));
      into.set(3);
      for (const bit of [0, 31, 32, 39, 40, 64, 69].filter((at) => at < others)) from.set(bit);
      const expected = bitsWith(into, from);
      into.or(from);
      expect(members(into.words, into.words.length * 32)).toEqual(expected);
    }
  });

  it("takes over bits at distances that no number holds exactly", () => {
    const far = 1n << 61n;
    const granule = 2 ** 56;
    // Each begins a byte off the granules of the other, where a rounded address falls into the neighbour.
    for (const [own, other] of [
      [bitmap(0n, 100n << 56n, granule), bitmap(far - 1n, 4096n, 4096)],
      [bitmap(0n, 100n << 56n, granule), bitmap(far + 1n, 3n * 4096n, 4096)],
      [bitmap(far - 1n, 2n * 4096n, 4096), bitmap(0n, 100n << 56n, granule)],
      [bitmap(far - 1n, 2n * 4096n, 4096), bitmap(0n, 32n << 56n, granule)],
      [bitmap(far + 1n, 2n * 4096n, 4096), bitmap(0n, 32n << 56n, granule)],
      [bitmap(0n, 5n << 56n, granule), bitmap(1n << 56n, 9n << 54n, 2 ** 54)],
      [bitmap(3n << 56n, 5n << 56n, granule), bitmap(1n << 56n, 9n << 54n, 2 ** 54)],
      [bitmap(far, 3n << 56n, granule), bitmap(0n, 2n << 56n, granule)],
      [bitmap(0n, 2n << 56n, granule), bitmap(far, 2n << 56n, granule)],
    ]) {
      for (const bit of [0, 1, 30, 31, 32, 63, 99].filter((bit) => bit < other.bits)) {
        const from = bitmap(other.iova, other.length, other.granule);
        const into = bitmap(own.iova, own.length, own.granule);
        from.set(bit);
        const expected = bitsWith(into, from);
        into.or(from);
        expect(members(into.words, into.words.length * 32), `bit ${bit} of ${from} into ${into}`).toEqual(expected);
      }
    }
  });

  it("says with setAll that everything is dirty, and not more", () => {
    const dirty = bitmap(0n, 45n * 4096n, 4096);
    dirty.setAll();
    expect(dirty.count()).toBe(45);
    dirty.clear();
    expect(dirty.count()).toBe(0);
  });
});

describe("a dirty bitmap's memory", () => {
  it("is whole pages, whatever the number of bits, so that a kernel may write them in place", () => {
    for (const granules of [1n, 4096n * 8n, 4096n * 8n + 1n, 1n << 24n]) {
      const { words, address } = bitmap(0n, granules * 4096n, 4096);
      expect([address % 4096, words.byteLength % 4096]).toEqual([0, 0]);
      expect(BigInt(address)).toBe(addressOf(words));
      expect(words.byteLength).toBeGreaterThanOrEqual(Number(granules) / 8);
    }
  });

  it("forgets what was set behind its last bit, and nothing else", () => {
    for (const granules of [1n, 31n, 32n, 33n, 32768n]) {
      const bitmap = new DirtyBitmap({ iova: 0n, length: granules * 4096n, granule: 4096 });
      bitmap.setAll();
      const { length } = bitmap.words;
      setBits(bitmap.words, bitmap.bits, length * 32 - bitmap.bits);
      bitmap.clearPadding();
      expect(bitmap.count()).toBe(Number(granules));
      bitmap.clear();
      bitmap.clearPadding();
      expect(bitmap.count()).toBe(0);
    }
  });
});
