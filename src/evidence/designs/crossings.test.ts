import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type CurvePoint, compareCurves } from "./crossings.js";

const exact = (x: number, y: number): CurvePoint => ({ x, y, low: y, high: y });
const curveOf = (points: readonly (readonly [number, number])[]) => points.map(([x, y]) => exact(x, y));

describe("where two curves cross", () => {
  test("is found between the measured points, as powers of x meet", () => {
    // x and 10 / x^0 … they meet at 10.
    const xs = [1, 2, 4, 8, 16, 32];
    const { crossings } = compareCurves(curveOf(xs.map((x) => [x, x])), curveOf(xs.map((x) => [x, 10])));
    expect(crossings).toHaveLength(1);
    expect(crossings[0].at).toBeCloseTo(10, 9);
    expect(crossings[0].between).toEqual([8, 16]);
  });

  test("is the exact meeting of any two powers", () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0.1, max: 2, noNaN: true }),
        fc.double({ min: 2.1, max: 4, noNaN: true }),
        fc.double({ min: 1.5, max: 60, noNaN: true }),
        (slow, steep, at) => {
          const xs = [1, 2, 4, 8, 16, 32, 64];
          const a = curveOf(xs.map((x) => [x, x ** steep]));
          const b = curveOf(xs.map((x) => [x, at ** (steep - slow) * x ** slow]));
          const { crossings } = compareCurves(a, b);
          // A measured point may be the very meeting; then it is found there, or a rounding error beside it.
          expect(crossings).toHaveLength(1);
          expect(Math.abs(crossings[0].at / at - 1)).toBeLessThan(1e-6);
        },
      ),
    );
  });

  test("is nowhere where one is always the greater, also where they touch", () => {
    const result = compareCurves(
      curveOf([
        [1, 2],
        [2, 2],
        [4, 9],
      ]),
      curveOf([
        [1, 1],
        [2, 2],
        [4, 3],
      ]),
    );
    expect(result).toEqual({
      crossings: [],
      settledFrom: 4,
      ratioFirst: 2,
      ratioLast: 3,
      decidedFirst: true,
      decidedLast: true,
    });
  });

  test("is where they part, if they were equal before", () => {
    const { crossings } = compareCurves(
      curveOf([
        [1, 2],
        [2, 2],
        [4, 2],
        [8, 2],
      ]),
      curveOf([
        [1, 1],
        [2, 2],
        [4, 2],
        [8, 3],
      ]),
    );
    expect(crossings).toEqual([{ at: 4, between: [1, 8] }]);
  });

  test("is nowhere where the middle halves overlap at one side: that decides nothing", () => {
    const noisy = [
      { x: 1, y: 1, low: 0.5, high: 3 },
      { x: 2, y: 4, low: 3.5, high: 5 },
      { x: 4, y: 9, low: 8, high: 10 },
    ];
    const result = compareCurves(
      noisy,
      [1, 2, 4].map((x) => exact(x, 2 + x / 4)),
    );
    expect(result).toMatchObject({ crossings: [], settledFrom: 2, decidedFirst: false, decidedLast: true });
  });

  test("is where the medians last change sides, if some points between decide nothing", () => {
    const noisy = [exact(1, 1), { x: 2, y: 3, low: 1, high: 5 }, { x: 4, y: 1.5, low: 1, high: 5 }, exact(8, 6)];
    const { crossings, settledFrom } = compareCurves(
      noisy,
      [1, 2, 4, 8].map((x) => exact(x, 2)),
    );
    expect(crossings).toHaveLength(1);
    expect(crossings[0].between).toEqual([1, 8]);
    expect(crossings[0].at).toSatisfy((at: number) => at > 4 && at < 8);
    expect(settledFrom).toBe(8);
  });

  test("of curves that reach 0 is found on plain axes, and a ratio to 0 is none", () => {
    const { crossings, ratioFirst } = compareCurves(
      curveOf([
        [1, 4],
        [3, 0],
      ]),
      curveOf([
        [1, 0],
        [3, 4],
      ]),
    );
    expect(crossings).toEqual([{ at: 2, between: [1, 3] }]);
    expect(ratioFirst).toBeNull();
  });

  test("of one point is nowhere", () => {
    expect(compareCurves(curveOf([[1, 4]]), curveOf([[1, 5]])).crossings).toEqual([]);
  });
});
