import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { growthCurve } from "./growth.js";

/** Runs of the pages in a set. */
function runsOf(pages: Iterable<number>) {
  const sorted = [...new Set(pages)].sort((a, b) => a - b);
  const runs: number[] = [];
  for (const page of sorted) {
    if (runs.length > 0 && runs[runs.length - 2] + runs[runs.length - 1] === page) runs[runs.length - 1]++;
    else runs.push(page, 1);
  }
  return Uint32Array.from(runs);
}

const curveOf = (sets: readonly (readonly number[])[], elapsedMs = 10) =>
  growthCurve(sets.map((pages) => ({ elapsedMs, runs: runsOf(pages) })));

/** The definition: the union of each window's intervals, averaged. */
function slowly(sets: readonly (readonly number[])[], k: number): number {
  let sum = 0;
  for (let from = 0; from + k <= sets.length; from++) sum += new Set(sets.slice(from, from + k).flat()).size;
  return sum / (sets.length - k + 1);
}

/** A writer that goes round a ring of pages. */
function ring(size: number, perInterval: number, intervals: number): number[][] {
  return Array.from({ length: intervals }, (_, i) =>
    Array.from({ length: Math.min(size, perInterval) }, (_, j) => (i * perInterval + j) % size),
  );
}

describe("the growth of what is dirtied", () => {
  it("is the mean over all windows of each length, and never falls", () => {
    const sets = fc.array(
      fc.array(
        fc.nat({ max: 40 }).map((page) => page * 400),
        { maxLength: 20 },
      ),
      {
        minLength: 1,
        maxLength: 12,
      },
    );
    fc.assert(
      fc.property(sets, (all) => {
        const { points } = curveOf(all);
        let most = 0;
        all.forEach((_, i) => {
          most = Math.max(most, slowly(all, i + 1));
          expect(points[i].ms).toBeCloseTo((i + 1) * 10);
          expect(points[i].pages).toBeCloseTo(most, 6);
        });
      }),
      { numRuns: 100 },
    );
  });

  it("never falls between the points or behind them, and begins at nothing", () => {
    const sets = fc.array(fc.array(fc.nat({ max: 60 }), { maxLength: 20 }), { minLength: 1, maxLength: 12 });
    const times = fc.array(fc.double({ min: 0, max: 1000, noNaN: true }), { minLength: 2, maxLength: 20 });
    fc.assert(
      fc.property(sets, times, (all, when) => {
        const curve = curveOf(all);
        expect(curve.pagesAfter(0)).toBe(0);
        const found = when.toSorted((a, b) => a - b).map((ms) => curve.pagesAfter(ms));
        for (let i = 1; i < found.length; i++) expect(found[i]).toBeGreaterThanOrEqual(found[i - 1] - 1e-9);
      }),
      { numRuns: 100 },
    );
  });

  it("stops at the size of a ring that was seen whole", () => {
    const curve = curveOf(ring(100, 20, 20));
    expect(curve.pagesAfter(25)).toBeCloseTo(50);
    for (const ms of [50, 100, 200, 1000, 60_000]) expect(curve.pagesAfter(ms)).toBeCloseTo(100);
  });

  it("goes straight on where nothing was written twice", () => {
    const curve = curveOf(ring(1e6, 20, 20));
    expect(curve.pagesAfter(400)).toBeCloseTo(800);
    expect(curve.pagesAfter(1000)).toBeCloseTo(2000);
  });

  it("fills up as a working set does that is written at random, to within 3 %", () => {
    // Of 1000 pages 50 an interval: 1000 (1 - (1 - 1/1000)^(50 k)) are expected after k.
    let x = 12345;
    const next = () => {
      x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
      return Math.floor((x / 2 ** 32) * 1000);
    };
    const curve = curveOf(Array.from({ length: 60 }, () => Array.from({ length: 50 }, next)));
    const expected = (k: number) => 1000 * (1 - (1 - 1 / 1000) ** (50 * k));
    for (const k of [1, 5, 20, 40, 60, 90, 120]) {
      expect(Math.abs(curve.pagesAfter(k * 10) / expected(k) - 1)).toBeLessThan(0.03);
    }
  });

  it("is flat where nothing was observed, or nothing written", () => {
    expect(growthCurve([]).pagesAfter(1000)).toBe(0);
    expect(curveOf([[], [], []]).pagesAfter(1e6)).toBe(0);
  });
});
