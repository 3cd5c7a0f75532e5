import { describe, expect, it } from "vitest";
import { areSet, clearTail, countBits, countBitsIn, setBits } from "./bits.js";

/** At the ends of words. */
const EDGES = [0, 1, 30, 31, 32, 33, 62, 63, 64, 65, 95, 96, 127];
const SPANS = EDGES.flatMap((first) => EDGES.filter((end) => end >= first).map((end) => [first, end - first] as const));

const bitsOf = (words: Uint32Array) =>
  Array.from({ length: words.length * 32 }, (_, bit) => bit).filter((bit) => (words[bit >>> 5] >>> (bit & 31)) & 1);
const inside = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i);

describe("bits from one to another", () => {
  it("are set, and those that are there stay", () => {
    for (const [first, count] of SPANS) {
      const words = new Uint32Array(4);
      words[0] = 1;
      words[3] = 0x8000_0000;
      setBits(words, first, count);
      expect(bitsOf(words)).toEqual([...new Set([0, ...inside(first, count), 127])].sort((a, b) => a - b));
    }
  });

  it("are counted, and no others", () => {
    const every = new Uint32Array(4).fill(0xffff_ffff);
    const some = Uint32Array.of(0x8000_0001, 0, 0xffff_0000, 0x8000_0001);
    for (const [first, count] of SPANS) {
      expect(countBitsIn(every, first, count)).toBe(count);
      const expected = bitsOf(some).filter((bit) => bit >= first && bit < first + count).length;
      expect(countBitsIn(some, first, count)).toBe(expected);
    }
    expect(countBitsIn(every, 40, -1)).toBe(0);
  });

  it("are all set, or one of them isn't", () => {
    for (const [first, count] of SPANS) {
      const words = new Uint32Array(4);
      setBits(words, first, count);
      expect(areSet(words, first, count)).toBe(true);
      for (const bit of [first, first + count - 1, Math.floor(first + count / 2)]) {
        if (count === 0) continue;
        words[bit >>> 5] &= ~(1 << (bit & 31));
        expect(areSet(words, first, count), `${first} ${count} without ${bit}`).toBe(false);
        words[bit >>> 5] |= 1 << (bit & 31);
      }
    }
  });
});

it("what lies behind the last bit in its word is cleared, and no other word", () => {
  for (const bits of [0, 1, 31, 32, 33, 64, 65]) {
    const words = new Uint32Array(3).fill(0xffff_ffff);
    clearTail(words, bits);
    expect(countBits(words)).toBe(bits % 32 === 0 ? 96 : 96 - 32 + (bits % 32));
    expect(areSet(words, 0, bits)).toBe(true);
  }
});
