/** The middle and the spread of a few measurements. */
export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** @param values at least one */
export function summarize(values: readonly number[]): Summary {
  const sorted = values.toSorted((a, b) => a - b);
  return {
    median: (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2,
    min: sorted[0],
    max: sorted[sorted.length - 1],
  };
}

/**
 * Measures several ways in turn, so that a noisy minute touches all alike.
 * @param repetitions per way, after one that only warms up (unless `warmUp` is false)
 * @returns per way, what each repetition gave
 */
export async function interleave<T>(
  ways: readonly (() => Promise<T>)[],
  repetitions: number,
  warmUp = true,
): Promise<T[][]> {
  const results: T[][] = ways.map(() => []);
  for (let repetition = warmUp ? -1 : 0; repetition < repetitions; repetition++) {
    for (const [index, way] of ways.entries()) {
      const result = await way();
      if (repetition >= 0) results[index].push(result);
    }
  }
  return results;
}
