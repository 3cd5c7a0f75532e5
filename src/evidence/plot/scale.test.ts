import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { makeScale, type ScaleKind } from "./scale.js";

const values = fc.array(fc.double({ min: 1e-9, max: 1e12, noNaN: true }), { minLength: 1, maxLength: 30 });
const kinds: ScaleKind[] = ["linear", "log2", "log10"];

describe.each(kinds)("a %s scale", (kind) => {
  test("has a place between its ends for each of its values, in their order", () => {
    fc.assert(
      fc.property(values, (given) => {
        const scale = makeScale(kind, given);
        const places = given.toSorted((a, b) => a - b).map((value) => scale.at(value));
        for (const place of places) expect(place).toSatisfy((at: number) => at >= -1e-9 && at <= 1 + 1e-9);
        expect(places).toEqual(places.toSorted((a, b) => a - b));
      }),
    );
  });

  test("has few ticks, ascending, each in its place, the last at or above every value", () => {
    fc.assert(
      fc.property(values, (given) => {
        const { ticks, at } = makeScale(kind, given);
        expect(ticks.length).toSatisfy((count: number) => count >= 2 && count <= 12);
        expect(ticks).toEqual([...new Set(ticks)].sort((a, b) => a - b));
        const places = ticks.map(at);
        expect(places).toEqual(places.toSorted((a, b) => a - b));
        expect(places[0]).toBeCloseTo(0, 6);
        expect(Math.max(...places)).toBeLessThanOrEqual(1 + 1e-9);
      }),
    );
  });

  test("refuses what has no place", () => {
    expect(() => makeScale(kind, [1, Number.NaN])).toThrow(RangeError);
    expect(() => makeScale(kind, [Number.POSITIVE_INFINITY])).toThrow(RangeError);
    if (kind !== "linear") expect(() => makeScale(kind, [-1])).toThrow(RangeError);
  });

  test("of nothing has an origin", () => {
    const { ticks, at } = makeScale(kind, []);
    expect(at(ticks[0])).toBe(0);
  });
});

test("linear ticks are multiples of 1, 2 or 5 times a power of ten, evenly apart", () => {
  fc.assert(
    fc.property(values, (given) => {
      const { ticks } = makeScale("linear", given);
      const step = ticks[1] - ticks[0];
      const mantissa = step / 10 ** Math.floor(Math.log10(step) + 1e-9);
      expect([1, 2, 5].some((factor) => Math.abs(mantissa - factor) < 1e-6)).toBe(true);
      ticks.forEach((tick, index) => {
        expect(Math.abs(tick - index * step)).toBeLessThan(step * 1e-6);
      });
    }),
  );
});

test("a linear scale begins at 0, so that lengths can be compared, and below it where a value is", () => {
  expect(makeScale("linear", [90, 100]).ticks[0]).toBe(0);
  expect(makeScale("linear", [-30, 100]).ticks[0]).toBeLessThanOrEqual(-30);
});

test("a logarithmic scale shows 0 apart from, and below, what is above 0", () => {
  const scale = makeScale("log10", [0, 0.5, 2000]);
  expect(scale.ticks[0]).toBe(0);
  expect(scale.at(0)).toBe(0);
  expect(scale.at(0.1)).toBeGreaterThan(0.05);
  expect(scale.at(10_000)).toBeCloseTo(1, 9);
});

test("numbers of devices that are powers of two are ticks of a log2 scale", () => {
  expect(makeScale("log2", [1, 2, 4, 8, 16, 32, 64]).ticks).toEqual([1, 2, 4, 8, 16, 32, 64]);
});
