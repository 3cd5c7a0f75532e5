/*
 * The order of candidates by several criteria, each measured with an error.
 *
 * By one criterion, candidates fall into classes. Sorted by their figures, a new class begins at each figure that lies further from
 * the one before it than the error. Candidates of one class cannot be told apart; candidates of two classes always can.
 * Classes are compared criterion by criterion, and the first difference decides. Three things follow:
 *
 * - The order is transitive.
 * - A loser is worse than the winner itself, by more than the error, and not only worse than a third candidate.
 * - A winner that gets better still wins, and a loser that gets worse still loses to it.
 *
 * A class reaches further than one error if its candidates lie close together in a chain. A rule that keeps "what is near the
 * best" at each step has no such chains, but keeps neither the second nor the third property.
 */

/**
 * The class of each figure: 0 is the best, which is the least.
 * @param figures null: not known, and given the benefit of the doubt
 * @param error how far apart a figure and the next greater one may lie without being told apart; must not fall as figures rise
 */
export function classesOf(figures: readonly (number | null)[], error: (figure: number) => number): number[] {
  const known = [...new Set(figures.filter((figure) => figure !== null))].sort((a, b) => a - b);
  const classes = new Map<number | null, number>([[null, 0]]);
  let current = 0;
  for (const [index, figure] of known.entries()) {
    if (index > 0 && figure - known[index - 1] > error(known[index - 1])) current++;
    classes.set(figure, current);
  }
  return figures.map((figure) => classes.get(figure) ?? 0);
}

/** The first criterion by which two candidates are in different classes, as an index; -1: there is none. */
export function firstDifference(a: readonly number[], b: readonly number[]): number {
  return a.findIndex((value, index) => value !== b[index]);
}

/** Compares two candidates by their classes, for sorting: the better one first. 0: they cannot be told apart. */
export function compareClasses(a: readonly number[], b: readonly number[]): number {
  const at = firstDifference(a, b);
  return at === -1 ? 0 : a[at] - b[at];
}
