import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SharedLog } from "./shared-log.js";

const BITS = 5000;

const actions = fc.array(
  fc.oneof(
    fc.record({
      do: fc.constant("mark" as const),
      bit: fc.nat({ max: BITS - 1 }),
      count: fc.integer({ min: 1, max: 70 }),
    }),
    fc.record({
      do: fc.constant("read" as const),
      bit: fc.nat({ max: BITS - 1 }),
      count: fc.integer({ min: 1, max: 3000 }),
    }),
  ),
  { maxLength: 60 },
);

describe("a shared log", () => {
  it("behaves like a set from which reads take", () => {
    fc.assert(
      fc.property(actions, fc.nat({ max: 100 }), (sequence, intoBit) => {
        const writer = SharedLog.create(BITS);
        const log = SharedLog.open(writer.arena.memory, BITS);
        const model = new Set<number>();
        for (const { do: what, bit, count } of sequence) {
          const end = Math.min(BITS, bit + count);
          if (what === "mark") {
            for (let at = bit; at < end; at++) {
              writer.mark(at);
              model.add(at);
            }
            continue;
          }
          const into = new Uint32Array(256);
          const expected = new Uint32Array(256);
          let taken = 0;
          for (let at = bit; at < end; at++) {
            if (!model.delete(at)) continue;
            const to = intoBit + at - bit;
            expected[to >>> 5] |= 1 << (to & 31);
            taken++;
          }
          expect(log.readAndClear(bit, end - bit, into, intoBit)).toBe(taken);
          expect([...into]).toEqual([...expected]);
        }
      }),
    );
  });

  it("gives the same to a reader on the writers' thread, whatever is asked for and wherever it goes", () => {
    const BITS_ALONE = 9000;
    const reads = fc.array(
      fc.record({
        bit: fc.nat({ max: BITS_ALONE - 1 }),
        count: fc.integer({ min: 1, max: BITS_ALONE }),
        into: fc.oneof(fc.nat({ max: 100 }), fc.constant(0), fc.constant(1024)),
        aligned: fc.boolean(),
      }),
      { maxLength: 8 },
    );
    const marks = fc.array(
      fc.record({ bit: fc.nat({ max: BITS_ALONE - 1 }), count: fc.integer({ min: 1, max: 3000 }) }),
      {
        maxLength: 8,
      },
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(marks, reads), { maxLength: 4 }), (rounds) => {
        const log = SharedLog.create(BITS_ALONE);
        const twin = SharedLog.create(BITS_ALONE);
        for (const [marked, asked] of rounds) {
          for (const { bit, count } of marked) {
            for (let at = bit; at < Math.min(BITS_ALONE, bit + count); at++) {
              log.mark(at);
              twin.mark(at);
            }
          }
          for (const { bit, count, into: anywhere, aligned } of asked) {
            const wanted = Math.min(count, BITS_ALONE - bit);
            const intoBit = aligned ? bit % 32 : anywhere;
            const found = new Uint32Array(400);
            const expected = new Uint32Array(400);
            log.readAndClearAlone(bit, wanted, found, intoBit);
            twin.readAndClear(bit, wanted, expected, intoBit);
            expect([...found]).toEqual([...expected]);
          }
        }
      }),
    );
  });

  it("adds to the reader's bits and leaves those that are there", () => {
    const log = SharedLog.create(64);
    log.mark(3);
    const into = Uint32Array.of(0x80000000);
    log.readAndClear(0, 32, into, 0);
    expect(into[0]).toBe(0x80000008);
  });

  it("refuses more bits than it can number", () => {
    expect(() => SharedLog.create(2 ** 32 + 1)).toThrowError(/too long/);
  });
});
