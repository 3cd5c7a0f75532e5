import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { forEachRun } from "./bits.js";
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

  // Words of 32 bits, blocks of 1024 below one bit of the second level, and a last word that is cut.
  const CUT_BITS = 2 * 1024 + 5 * 32 + 7;
  const EDGES = [0, 1, 31, 32, 33, 63, 64, 1023, 1024, 1025, 2047, 2048, 2079, 2080, CUT_BITS - 7, CUT_BITS - 1];
  const cuts = EDGES.flatMap((first) => EDGES.filter((last) => last >= first).map((last) => [first, last] as const));

  it.each([
    [
      "readAndClear",
      (log: SharedLog, ...args: Parameters<SharedLog["readAndClearAlone"]>) => log.readAndClear(...args),
    ],
    [
      "readAndClearAlone",
      (log: SharedLog, ...args: Parameters<SharedLog["readAndClearAlone"]>) => log.readAndClearAlone(...args),
    ],
  ])("gives a range from its first granule to its last, and keeps the granules beside it: %s", (_, read) => {
    const log = SharedLog.create(CUT_BITS);
    for (const [first, last] of cuts) {
      const model = new Set<number>();
      for (let bit = 0; bit < CUT_BITS; bit++) {
        log.mark(bit);
        model.add(bit);
      }
      // The second read finds nothing any more, the last one what the first has left.
      for (const [from, to, into] of [
        [first, last, 0],
        [first, last, 5],
        [0, CUT_BITS - 1, 0],
      ]) {
        const found = new Uint32Array(80);
        read(log, from, to - from + 1, found, into);
        const expected = new Uint32Array(80);
        for (let bit = from; bit <= to; bit++) {
          if (model.delete(bit)) expected[(into + bit - from) >>> 5] |= 1 << ((into + bit - from) & 31);
        }
        expect(Buffer.compare(bytesOf(found), bytesOf(expected))).toBe(0);
      }
      expect(log.arena.u32.subarray(0, log.summary / 4).some((word) => word !== 0)).toBe(false);
    }
  });

  it("gives whole blocks at once to a reader on the writers' thread, and keeps the granules beside them", () => {
    const bits = 8 * 1024 + 40;
    const log = SharedLog.create(bits);
    for (const first of [0, 1, 31, 32, 1023, 1024, 1025]) {
      for (const end of [bits, 8 * 1024 + 1, 8 * 1024, 8 * 1024 - 1, 7 * 1024 + 1, 7 * 1024]) {
        for (let bit = 0; bit < bits; bit++) log.mark(bit);
        // Where its bits fall on whole words, as they lie in the log.
        const into = new Uint32Array(300);
        log.readAndClearAlone(first, end - first, into, first % 32);
        expect(runsIn(into)).toEqual([[first % 32, end - first]]);
        const rest = new Uint32Array(300);
        log.readAndClearAlone(0, bits, rest, 0);
        const left: [number, number][] = [
          [0, first],
          [end, bits - end],
        ];
        expect(runsIn(rest)).toEqual(left.filter(([, count]) => count > 0));
        // The second level says no more than it has to of blocks that were taken whole.
        expect(log.arena.u32.subarray(log.summary / 4, log.summary / 4 + 8).some((word) => word !== 0)).toBe(false);
      }
    }
  });

  it("takes again what is marked again after whole blocks were taken at once", () => {
    const log = SharedLog.create(16 * 1024);
    const words = 16 * 32;
    // Blocks 4 to 11 are taken, the fifth of them without bits; those beside them keep theirs.
    const marked = [3 * 1024, 4 * 1024, 4 * 1024 + 1023, 9 * 1024, 10 * 1024 + 31, 12 * 1024 - 1, 12 * 1024];
    const rest = [5, 6, 7, 11].map((block) => block * 1024 + 500);
    const bits = [...marked, ...rest].sort((a, b) => a - b);
    const inside = bits.filter((bit) => bit >= 4 * 1024 && bit < 12 * 1024);
    for (let round = 0; round < 2; round++) {
      for (const bit of bits) log.mark(bit);
      const into = new Uint32Array(words);
      log.readAndClearAlone(4 * 1024, 8 * 1024, into, 4 * 1024);
      expect(runsIn(into)).toEqual(inside.map((bit) => [bit, 1]));
    }
    const left = new Uint32Array(words);
    log.readAndClear(0, 16 * 1024, left, 0);
    expect(runsIn(left)).toEqual([3 * 1024, 12 * 1024].map((bit) => [bit, 1]));
  });

  it("leaves nothing to be looked at where all was taken: a read costs what is dirty", () => {
    const log = SharedLog.create(CUT_BITS);
    for (const bit of EDGES) log.mark(bit);
    for (const [first, count] of [
      [0, 1024],
      [1024, 1024],
      [2048, CUT_BITS - 2048],
    ]) {
      log.readAndClear(first, count, new Uint32Array(32), 0);
    }
    expect(log.arena.u32.subarray(log.summary / 4, log.summary / 4 + 3)).toEqual(Uint32Array.of(0, 0, 0));
    for (let block = 0; block < 2; block++) {
      log.mark(block * 1024);
      log.readAndClearAlone(block * 1024, 1024, new Uint32Array(32), 0);
    }
    expect(log.arena.u32.subarray(log.summary / 4, log.summary / 4 + 3)).toEqual(Uint32Array.of(0, 0, 0));
  });

  it.each([1, 31, 32, 33, 1023, 1024, 1025, 32_768, 32_769, 508_416])(
    "has a place for the last of %d granules",
    (bits) => {
      const log = SharedLog.create(bits);
      log.mark(bits - 1);
      expect(log.arena.memory.buffer.byteLength).toBeGreaterThanOrEqual(log.summary + Math.ceil(log.summary / 128) * 4);
      // The second level lies behind the first.
      expect(log.summary).toBeGreaterThanOrEqual(Math.ceil(bits / 32) * 4);
      const into = new Uint32Array(1);
      expect(log.readAndClear(bits - 1, 1, into, 31)).toBe(1);
      expect(into[0]).toBe(0x8000_0000);
    },
  );

  it("adds to the reader's bits and leaves those that are there", () => {
    const log = SharedLog.create(64);
    log.mark(3);
    const into = Uint32Array.of(0x80000000);
    log.readAndClear(0, 32, into, 0);
    expect(into[0]).toBe(0x80000008);
  });

  it("has as many bits as can be numbered", () => {
    const log = SharedLog.create(2 ** 32);
    const last = 2 ** 32 - 1;
    for (const bit of [2 ** 31 - 1, 2 ** 31, last]) log.mark(bit);
    const into = new Uint32Array(2);
    expect(log.readAndClear(2 ** 31 - 1, 2, into, 0)).toBe(2);
    expect(log.readAndClear(last - 31, 32, into, 32)).toBe(1);
    expect([...into]).toEqual([3, 0x8000_0000]);
  });

  it("refuses more bits than it can number", () => {
    expect(() => SharedLog.create(2 ** 32 + 1)).toThrowError(/too long/);
  });
});

/*
 * What another thread does between two accesses of this one, without a second thread: each access is an Atomics operation,
 * before and after which something can be done.
 */
describe("a shared log's reader and writers", () => {
  const METHODS = ["load", "or", "and", "exchange", "store", "compareExchange"] as const;
  afterEach(() => {
    vi.restoreAllMocks();
  });

  /** Calls `meanwhile` at the access with this number, and returns how many accesses `run` has. */
  function interleave(run: () => void, at: number, side: "before" | "after", meanwhile: () => void): number {
    let accesses = 0;
    let busy = false;
    const spies = METHODS.map((method) => {
      const original = Atomics[method] as (...args: unknown[]) => unknown;
      return vi.spyOn(Atomics, method).mockImplementation(((...args: unknown[]) => {
        if (busy) return original(...args);
        const isDue = accesses++ === at;
        const interrupt = () => {
          busy = true;
          meanwhile();
          busy = false;
        };
        if (isDue && side === "before") interrupt();
        const result = original(...args);
        if (isDue && side === "after") interrupt();
        return result;
      }) as never);
    });
    run();
    for (const spy of spies) spy.mockRestore();
    return accesses;
  }

  const BITS_OF_TWO_BLOCKS = 2048;
  const take = (log: SharedLog, first = 0, count = BITS_OF_TWO_BLOCKS): Set<number> => {
    const into = new Uint32Array(BITS_OF_TWO_BLOCKS / 32);
    log.readAndClear(first, count, into, first);
    const found = new Set<number>();
    for (let bit = 0; bit < BITS_OF_TWO_BLOCKS; bit++) if ((into[bit >>> 5] >>> (bit & 31)) & 1) found.add(bit);
    return found;
  };
  const MARKED = [0, 31, 32, 1023, 1024];

  it("lose no mark that comes between two accesses of a read", () => {
    // In a word that is being read, beside one, in the same block and in another; in the range and beside it.
    for (const bit of [1, 30, 33, 64, 1022, 1025, 2047]) {
      for (const [first, count] of [
        [0, BITS_OF_TWO_BLOCKS],
        [0, 32],
        [16, 1010],
      ]) {
        for (const side of ["before", "after"] as const) {
          for (let at = 0, accesses = 1; at < accesses; at++) {
            const log = SharedLog.create(BITS_OF_TWO_BLOCKS);
            for (const marked of MARKED) log.mark(marked);
            let taken = new Set<number>();
            accesses = interleave(
              () => {
                taken = take(log, first, count);
              },
              at,
              side,
              () => log.mark(bit),
            );
            const rest = take(log);
            expect([...taken, ...rest].sort((a, b) => a - b)).toEqual([...MARKED, bit].sort((a, b) => a - b));
          }
        }
      }
    }
  });

  it("lose no mark in the middle of which a read comes", () => {
    for (const bit of [0, 5, 1030]) {
      for (const side of ["before", "after"] as const) {
        for (let at = 0, accesses = 1; at < accesses; at++) {
          const log = SharedLog.create(BITS_OF_TWO_BLOCKS);
          log.mark(7);
          let taken = new Set<number>();
          accesses = interleave(
            () => log.mark(bit),
            at,
            side,
            () => {
              taken = take(log);
            },
          );
          const rest = take(log);
          expect(taken.has(bit) || rest.has(bit)).toBe(true);
        }
      }
    }
  });

  it("take what they clear in one step, and store nothing that they have only looked at", () => {
    const log = SharedLog.create(BITS_OF_TWO_BLOCKS);
    for (const marked of MARKED) log.mark(marked);
    const taken = { exchange: vi.spyOn(Atomics, "exchange"), and: vi.spyOn(Atomics, "and") };
    const store = vi.spyOn(Atomics, "store");
    take(log);
    const places = (spy: { mock: { calls: unknown[][] } }) => spy.mock.calls.map(([, at]) => at);
    expect(places(taken.exchange)).toEqual([log.summary / 4, log.summary / 4 + 1]);
    expect(places(taken.and)).toEqual([0, 1, 31, 32]);
    expect(store).not.toHaveBeenCalled();
  });

  it("set a bit, and then the bit above it, in one step each; a bit that is set already costs none", () => {
    const log = SharedLog.create(BITS_OF_TWO_BLOCKS);
    const or = vi.spyOn(Atomics, "or");
    log.mark(1029);
    log.mark(1029);
    expect(or.mock.calls.map(([, at, value]) => [at, value])).toEqual([
      [32, 1 << 5],
      [log.summary / 4 + 1, 1],
    ]);
  });
});

function runsIn(words: Uint32Array): [first: number, count: number][] {
  const runs: [number, number][] = [];
  forEachRun(words, words.length * 32, (first, count) => runs.push([first, count]));
  return runs;
}

function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}
