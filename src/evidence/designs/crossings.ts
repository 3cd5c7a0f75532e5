import { PAGE_SIZE } from "../../memory/address.js";
import type { TrackingDesign } from "../../tracking/choice.js";
import { type CrossingRow, MEASURES, type ReadRow } from "./result.js";

/*
 * Where the curves cross, computed. Between two measured numbers of devices a curve is taken to be straight on two
 * logarithmic axes: what grows as a power of the number of devices is.
 */

/** A point of a curve: a number of devices, and what was measured with it. */
export interface CurvePoint {
  readonly x: number;
  readonly y: number;
  /** The middle half of the repetitions lies between these; both `y` for what was counted. */
  readonly low: number;
  readonly high: number;
}

/** Bytes per second of the link that {@link VALUES} reckons with: 10 Gbit/s. */
export const LINK = 1.25e9;

/**
 * What is compared, as it follows from a row. `moved`: the bytes of the pages that the last read names, which have to be moved
 * while the machine stands still. `downtime`: the least that it can be, the last read and moving these; what stopping and
 * starting take comes on top, whatever the design.
 */
export const VALUES: Readonly<Record<CrossingRow["measure"], (row: ReadRow) => Omit<CurvePoint, "x">>> = {
  cpu: ({ cpuMs }) => ({ y: cpuMs.median, low: cpuMs.q1, high: cpuMs.q3 }),
  memory: ({ held }) => exactly(bitmapBytesOf(held)),
  calls: ({ perRead }) => exactly(perRead.calls),
  copied: ({ perRead }) => exactly(perRead.bitmapBytes),
  moved: (row) => exactly(bytesToMove(row)),
  downtime: (row) => {
    const moving = (bytesToMove(row) / LINK) * 1000;
    const { median, q1, q3 } = row.lastReadMs;
    return { y: median + moving, low: q1 + moving, high: q3 + moving };
  },
};

function bytesToMove({ pagesReported }: ReadRow): number {
  return pagesReported * PAGE_SIZE;
}

function exactly(y: number): Omit<CurvePoint, "x"> {
  return { y, low: y, high: y };
}

/** All memory for dirty bits, wherever it is. */
export function bitmapBytesOf({ logs, kernel, reader }: ReadRow["held"]): number {
  return logs + kernel + reader;
}

/** Compares `design` with each of the others, measure by measure. */
export function findCrossings(rows: readonly ReadRow[], design: TrackingDesign = "split"): CrossingRow[] {
  const workloads = [...new Set(rows.map(({ workload }) => workload))];
  const rivals = [...new Set(rows.map((row) => row.design))].filter((rival) => rival !== design);
  return workloads.flatMap((workload) =>
    MEASURES.flatMap((measure) =>
      rivals.map((rival) => {
        const curveOf = (wanted: TrackingDesign) => curve(rows, workload, wanted, measure);
        return { workload, measure, design, rival, ...compareCurves(curveOf(design), curveOf(rival)) };
      }),
    ),
  );
}

/** One design's curve, by ascending number of devices. */
export function curve(
  rows: readonly ReadRow[],
  workload: ReadRow["workload"],
  design: TrackingDesign,
  measure: CrossingRow["measure"],
): CurvePoint[] {
  return rows
    .filter((row) => row.workload === workload && row.design === design)
    .map((row) => ({ x: row.devices, ...VALUES[measure](row) }))
    .sort((a, b) => a.x - b.x);
}

/**
 * Where two curves with the same values of x cross, and how they stand to each other at their ends. Points whose middle halves
 * overlap decide nothing: curves that run together and part again on the same side don't cross.
 */
export function compareCurves(
  a: readonly CurvePoint[],
  b: readonly CurvePoint[],
): Pick<CrossingRow, "crossings" | "settledFrom" | "ratioFirst" | "ratioLast" | "decidedFirst" | "decidedLast"> {
  const crossings: CrossingRow["crossings"] = [];
  const sides = a.map((point, index) => (isApart(point, b[index]) ? Math.sign(point.y - b[index].y) : 0));
  let before: number | null = null;
  let settled: number | null = null;
  for (const [index, side] of sides.entries()) {
    if (side === 0) {
      settled = null;
      continue;
    }
    if (before !== null && side !== sides[before]) {
      crossings.push({ at: lastMeeting(a, b, before, index), between: [a[before].x, a[index].x] });
      settled = null;
    }
    settled ??= index;
    before = index;
  }
  const [firstA, firstB, lastA, lastB] = [a[0], b[0], a[a.length - 1], b[b.length - 1]];
  return {
    crossings,
    settledFrom: settled === null ? null : a[settled].x,
    ratioFirst: ratio(firstA.y, firstB.y),
    ratioLast: ratio(lastA.y, lastB.y),
    decidedFirst: isApart(firstA, firstB),
    decidedLast: isApart(lastA, lastB),
  };
}

/** Where the medians change sides for the last time, between points `from` and `to` at which they are on different ones. */
function lastMeeting(a: readonly CurvePoint[], b: readonly CurvePoint[], from: number, to: number): number {
  const side = Math.sign(a[to].y - b[to].y);
  let index = to - 1;
  while (index > from && Math.sign(a[index].y - b[index].y) === side) index--;
  return meeting(a, b, index);
}

/** The x at which two curves that change sides between points `index` and `index` + 1 meet. */
function meeting(a: readonly CurvePoint[], b: readonly CurvePoint[], index: number): number {
  const points = [a[index], b[index], a[index + 1], b[index + 1]];
  const [x0, x1] = [a[index].x, a[index + 1].x];
  if (points.some(({ y }) => y <= 0)) {
    // No logarithm: straight on plain axes then.
    const d0 = a[index].y - b[index].y;
    const d1 = a[index + 1].y - b[index + 1].y;
    return x0 + ((x1 - x0) * d0) / (d0 - d1);
  }
  const d0 = Math.log(a[index].y / b[index].y);
  const d1 = Math.log(a[index + 1].y / b[index + 1].y);
  return Math.exp(Math.log(x0) + ((Math.log(x1) - Math.log(x0)) * d0) / (d0 - d1));
}

function isApart(a: CurvePoint, b: CurvePoint): boolean {
  return a.low > b.high || b.low > a.high;
}

function ratio(a: number, b: number): number | null {
  return b === 0 ? null : a / b;
}
