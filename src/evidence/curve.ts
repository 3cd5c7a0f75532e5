/** A point of a curve that was measured. */
export interface Point {
  readonly x: number;
  readonly y: number;
}

/**
 * The value of a curve between its points, in proportion; beyond the last it goes on as between the last two, before the
 * first it has the first's value. Never less than 0.
 * @param points at least one, ascending in x
 */
export function valueAt(points: readonly Point[], x: number): number {
  const [first] = points;
  if (points.length === 1 || x <= first.x) return first.y;
  let i = 1;
  while (i < points.length - 1 && points[i].x < x) i++;
  const [a, b] = [points[i - 1], points[i]];
  if (a.x === b.x) return b.y;
  return Math.max(0, a.y + ((b.y - a.y) * (x - a.x)) / (b.x - a.x));
}
