import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { comparePairs, interleave, signTest, spread, summarize } from "./statistics.js";

const some = fc.array(fc.double({ min: 0, max: 1e9, noNaN: true }), { minLength: 1, maxLength: 50 });

describe("a summary", () => {
  it("has the middle, the quartiles and the ends", () => {
    expect(summarize([4, 1, 3, 2, 5])).toEqual({ count: 5, median: 3, min: 1, max: 5, q1: 2, q3: 4 });
    expect(summarize([1, 2])).toMatchObject({ median: 1.5, q1: 1.25, q3: 1.75 });
    expect(summarize([7])).toEqual({ count: 1, median: 7, min: 7, max: 7, q1: 7, q3: 7 });
  });

  it("is in order, whatever was measured, and in whatever order", () => {
    fc.assert(
      fc.property(some, (values) => {
        const summary = summarize(values);
        const { min, q1, median, q3, max } = summary;
        expect([min, q1, median, q3, max]).toEqual([min, q1, median, q3, max].toSorted((a, b) => a - b));
        expect(summarize(values.toReversed())).toEqual(summary);
      }),
    );
  });

  it("has a spread that is the middle half's width as a share of the median", () => {
    expect(spread(summarize([1, 2, 3, 4, 5]))).toBeCloseTo(2 / 3);
    expect(spread(summarize([5, 5, 5]))).toBe(0);
    expect(spread(summarize([0, 0, 0]))).toBe(0);
  });
});

describe("interleave", () => {
  it("warms up once, takes turns, and turns the order round each time", async () => {
    const calls: string[] = [];
    const way = (name: string) => async () => {
      calls.push(name);
      return calls.length;
    };
    const results = await interleave([way("a"), way("b")], 2);
    expect(calls.join("")).toBe("baabba");
    expect(results).toEqual([
      [3, 6],
      [4, 5],
    ]);
  });
});

describe("pairs", () => {
  it("decide where one is greater each time, and say by how much", () => {
    const pairs = Array.from({ length: 12 }, (_, i) => ({ a: 100 + i, b: (100 + i) * 0.8 }));
    const { ratio, low, high, p, decides } = comparePairs(pairs);
    expect({ ratio, low, high }).toEqual({ ratio: 0.8, low: 0.8, high: 0.8 });
    expect(p).toBeCloseTo(2 / 2 ** 12);
    expect(decides).toBe(true);
  });

  it("don't decide where each is the greater half of the time, however far apart they are", () => {
    const pairs = Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? { a: 1, b: 10 } : { a: 10, b: 1 }));
    expect(comparePairs(pairs)).toMatchObject({ p: 1, decides: false });
  });

  it("don't decide where there are too few of them", () => {
    const pairs = Array.from({ length: 5 }, () => ({ a: 1, b: 2 }));
    expect(comparePairs(pairs).decides).toBe(false);
  });

  it("say the same each time, and the opposite of the opposite", () => {
    const measured = fc.record({
      a: fc.double({ min: 1, max: 1e6, noNaN: true }),
      b: fc.double({ min: 1, max: 1e6, noNaN: true }),
    });
    fc.assert(
      fc.property(fc.array(measured, { minLength: 1, maxLength: 20 }), (pairs) => {
        const forth = comparePairs(pairs);
        expect(comparePairs(pairs)).toEqual(forth);
        expect(forth.low).toBeLessThanOrEqual(forth.high);
        const back = comparePairs(pairs.map(({ a, b }) => ({ a: b, b: a })));
        expect(back.p).toBeCloseTo(forth.p);
      }),
      { numRuns: 30 },
    );
  });

  it("of equals decide in few cases", () => {
    // Of a fair coin: an error rate of at most one in twenty, and some more for luck.
    let decided = 0;
    let state = 1;
    const random = () => {
      state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
      return state / 0x7fffffff;
    };
    for (let i = 0; i < 200; i++) {
      const pairs = Array.from({ length: 15 }, () => ({ a: 1 + random(), b: 1 + random() }));
      if (comparePairs(pairs).decides) decided++;
    }
    expect(decided).toBeLessThan(20);
  });
});

describe("the sign test", () => {
  it.each([
    [0, 0, 1],
    [5, 5, 1],
    [6, 0, 2 / 64],
    [0, 6, 2 / 64],
    [1, 9, (2 * 11) / 1024],
  ])("of %d wins against %d losses gives %d", (wins, losses, p) => {
    expect(signTest(wins, losses)).toBeCloseTo(p);
  });
});
