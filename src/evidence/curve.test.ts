import fc from "fast-check";
import { expect, it } from "vitest";
import { valueAt } from "./curve.js";

const points = [
  { x: 10, y: 100 },
  { x: 20, y: 300 },
  { x: 30, y: 350 },
];

it.each([
  [0, 100, "before the first point, its value"],
  [10, 100, "a point's value"],
  [15, 200, "between two points, in proportion"],
  [30, 350, "the last point's value"],
  [50, 450, "beyond the last, on as between the last two"],
])("a curve has at %d the value %d: %s", (x, y) => {
  expect(valueAt(points, x)).toBe(y);
});

it("a curve of one point is the same everywhere", () => {
  expect(valueAt([{ x: 5, y: 7 }], 1000)).toBe(7);
});

it("a falling curve never falls below 0", () => {
  const falling = [
    { x: 0, y: 10 },
    { x: 1, y: 0 },
  ];
  expect(valueAt(falling, 100)).toBe(0);
});

it("a curve that never falls has no value that is less than an earlier one", () => {
  const rising = fc
    .array(fc.record({ dx: fc.nat(100), dy: fc.nat(100) }), { minLength: 1, maxLength: 8 })
    .map((steps) => {
      let [x, y] = [0, 0];
      return steps.map(({ dx, dy }) => {
        x += dx;
        y += dy;
        return { x, y };
      });
    });
  fc.assert(
    fc.property(rising, fc.nat(1000), fc.nat(1000), (curve, a, b) => {
      const [low, high] = a < b ? [a, b] : [b, a];
      expect(valueAt(curve, low)).toBeLessThanOrEqual(valueAt(curve, high));
    }),
  );
});
