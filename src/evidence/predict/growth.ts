import type { PageRuns } from "../../bitmap/ram-runs.js";

/** The number of distinct pages dirtied within a time, as measured and extrapolated. */
export interface GrowthCurve {
  /** Points ascending in both, from one interval to the whole observation. Empty if nothing was observed. */
  readonly points: readonly GrowthPoint[];
  /** Returns the distinct pages dirtied in `ms` milliseconds, a mean over all such windows. Never less for a longer time. */
  pagesAfter(ms: number): number;
}

/** A point of a growth curve: the distinct pages dirtied in `ms` milliseconds. */
export interface GrowthPoint {
  readonly ms: number;
  readonly pages: number;
}

/** Pages per part of the table of last sights. */
const PART_SHIFT = 12;
const PART_PAGES = 1 << PART_SHIFT;

/**
 * Returns the number of distinct pages that are dirtied in a window, as a function of its length. It is exact for every window of
 * consecutive intervals, and takes one pass over them.
 *
 * A page counts in all windows of k intervals, except those inside a stretch of time in which it was not dirtied. A stretch of g
 * intervals holds g - k + 1 such windows. So a histogram of the stretches is enough, for any number of windows
 * (Denning and Schwartz, Properties of the working-set model, CACM 15(3), 1972).
 *
 * Between two points the curve is straight. Below the first point and beyond the last, its slope falls with time as it falls near
 * them, because a working set fills up. If the slope does not fall there, the curve goes on straight.
 * O(pages in all intervals + intervals).
 */
export function growthCurve(
  intervals: readonly { readonly elapsedMs: number; readonly runs: PageRuns }[],
): GrowthCurve {
  const n = intervals.length;
  if (n === 0) return { points: [], pagesAfter: () => 0 };
  const meanMs = intervals.reduce((sum, { elapsedMs }) => sum + elapsedMs, 0) / n;
  const { stretches, distinct } = histogram(intervals.map(({ runs }) => runs));
  const points: GrowthPoint[] = [];
  // Of the stretches of at least k: how many there are, and how many windows of k they hold.
  let many = 0;
  let windows = 0;
  for (let k = n; k >= 1; k--) {
    many += stretches[k];
    windows += many;
    points.push({ ms: k * meanMs, pages: distinct - windows / (n - k + 1) });
  }
  points.reverse();
  // Few windows are long ones: their mean may be less than that of shorter ones, and a set that grows never is.
  for (let i = 1; i < n; i++) {
    const { ms, pages } = points[i];
    points[i] = { ms, pages: Math.max(pages, points[i - 1].pages) };
  }
  const beyond = extrapolation(points);
  return { points, pagesAfter: (ms) => (ms <= points[n - 1].ms ? between(points, ms) : beyond(ms)) };
}

/** Distinct pages in all; and per length, how many stretches of intervals there are in which a page was not dirtied. */
function histogram(intervals: readonly PageRuns[]): { stretches: Float64Array; distinct: number } {
  const n = intervals.length;
  const stretches = new Float64Array(n + 1);
  /** By page: 1 + the interval in which it was dirtied last; 0: never. */
  const parts = new Map<number, Int32Array>();
  let distinct = 0;
  intervals.forEach((runs, now) => {
    for (let i = 0; i < runs.length; i += 2) {
      const end = runs[i] + runs[i + 1];
      for (let page = runs[i]; page < end; ) {
        const number = Math.floor(page / PART_PAGES);
        let part = parts.get(number);
        if (part === undefined) {
          part = new Int32Array(PART_PAGES);
          parts.set(number, part);
        }
        const partEnd = Math.min(end, (number + 1) * PART_PAGES);
        for (; page < partEnd; page++) {
          const at = page - number * PART_PAGES;
          const before = part[at];
          if (before === 0) distinct++;
          // Of a page that was never seen, the stretch goes back to the beginning.
          stretches[now - before]++;
          part[at] = now + 1;
        }
      }
    }
  });
  for (const part of parts.values()) {
    for (const last of part) if (last > 0) stretches[n - last]++;
  }
  return { stretches, distinct };
}

/**
 * A set that is full after one interval was full at some time within it: this many times the slope fell by a factor of e
 * is taken to be, which is 95 % full at the interval's end.
 */
const MOST_FALL = 3;

function between(points: readonly GrowthPoint[], ms: number): number {
  if (ms <= 0) return 0;
  const [first, second] = points;
  if (ms < first.ms) return below(first, second, ms);
  let from = first;
  for (const to of points) {
    if (to !== from && ms <= to.ms) return from.pages + ((to.pages - from.pages) * (ms - from.ms)) / (to.ms - from.ms);
    from = to;
  }
  return from.pages;
}

/** Below the first point: the slope's fall from the first interval to the second goes on backwards. */
function below(first: GrowthPoint, second: GrowthPoint | undefined, ms: number): number {
  const more = second === undefined ? first.pages : second.pages - first.pages;
  const fall = more >= first.pages ? 0 : Math.min(MOST_FALL, Math.log(first.pages / more));
  const share = ms / first.ms;
  return first.pages * (fall === 0 ? share : Math.expm1(-fall * share) / Math.expm1(-fall));
}

/** What the curve is behind its last point. */
function extrapolation(points: readonly GrowthPoint[]): (ms: number) => number {
  const last = points[points.length - 1];
  const slope = (fromMs: number, toMs: number) => (between(points, toMs) - between(points, fromMs)) / (toMs - fromMs);
  // The longest windows are few and all alike: the last quarter says little.
  const [a, b, c] = [last.ms / 4, last.ms / 2, (last.ms * 3) / 4];
  const early = slope(a, b);
  const late = slope(b, c);
  if (late <= 0) return () => last.pages;
  if (late >= early) return (ms) => last.pages + late * (ms - last.ms);
  // A slope that falls by the same share in the same time: early at the middle of [a, b], late at that of [b, c].
  const perMs = Math.log(early / late) / (b - a);
  const slopeAtLast = late * Math.exp(-perMs * (last.ms - (b + c) / 2));
  return (ms) => last.pages + (slopeAtLast / perMs) * (1 - Math.exp(-perMs * (ms - last.ms)));
}
