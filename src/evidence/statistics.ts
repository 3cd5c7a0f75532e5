import { z } from "zod";
import type { Immutable } from "../immutable.js";

/*
 * How few and noisy measurements are spoken of: by their middle and their spread, and, where two ways are compared, by what
 * their differences in pairs allow to be said at all.
 */

const amount = z.number().min(0);

/** A {@link Summary}, and how one from elsewhere is checked. */
export const summarySchema = z
  .strictObject({ count: z.int().min(1), median: amount, min: amount, max: amount, q1: amount, q3: amount })
  .describe("the middle and the spread of a few measurements; between the quartiles q1 and q3 lies the middle half");

/** The middle and the spread of a few measurements. */
export type Summary = Immutable<z.output<typeof summarySchema>>;

/** @param values at least one */
export function summarize(values: readonly number[]): Summary {
  const sorted = values.toSorted((a, b) => a - b);
  return {
    count: sorted.length,
    median: quantile(sorted, 0.5),
    min: sorted[0],
    max: sorted[sorted.length - 1],
    q1: quantile(sorted, 0.25),
    q3: quantile(sorted, 0.75),
  };
}

/** Of sorted values, between two neighbours in proportion (Hyndman and Fan's type 7). @param share 0 to 1 */
function quantile(sorted: readonly number[], share: number): number {
  const at = (sorted.length - 1) * share;
  const below = Math.floor(at);
  const above = Math.ceil(at);
  return sorted[below] + (sorted[above] - sorted[below]) * (at - below);
}

/** How wide the middle half is, as a share of the median; 0 where all are 0. */
export function spread({ median, q1, q3 }: Summary): number {
  if (q3 === q1) return 0;
  return median === 0 ? Number.POSITIVE_INFINITY : (q3 - q1) / Math.abs(median);
}

/** A spread from which on a median alone says little. */
export const WIDE_SPREAD = 0.5;

/**
 * Measures several ways in turn, so that a noisy minute touches all alike, and every other time in the opposite order, so
 * that none is always the one that follows another.
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
    const order = [...ways.entries()];
    for (const [index, way] of repetition % 2 === 0 ? order : order.reverse()) {
      const result = await way();
      if (repetition >= 0) results[index].push(result);
    }
  }
  return results;
}

/** A {@link Comparison}, and how one from elsewhere is checked. */
export const comparisonSchema = z
  .object({
    pairs: z.int().min(1),
    ratio: amount.describe("the median of what the second is of the first, pair by pair"),
    low: amount.describe(
      "the true ratio is no less with 95 % confidence, as far as so few pairs tell (percentile bootstrap)",
    ),
    high: amount.describe("nor is it more"),
    p: z
      .number()
      .min(0)
      .max(1)
      .describe("how probable as one-sided a result is if neither were the greater (two-sided sign test)"),
    decides: z.boolean().describe("the pairs decide which is the greater; false: that needs a longer measurement"),
  })
  .describe("what pairs of measurements, taken one after the other, say of one way against another");

/** What pairs of measurements, taken one after the other, say of one way against another. */
export type Comparison = Immutable<z.output<typeof comparisonSchema>>;

/** The error that is accepted: in one of twenty comparisons of equals. */
const SIGNIFICANCE = 0.05;
const RESAMPLES = 1000;

/**
 * Compares two ways by pairs. A pure function: the resampling is seeded.
 * @param pairs at least one; `a` above 0
 */
export function comparePairs(pairs: readonly { readonly a: number; readonly b: number }[]): Comparison {
  const ratios = pairs.map(({ a, b }) => b / a);
  const random = mulberry32(pairs.length);
  const medians = Float64Array.from({ length: RESAMPLES }, () => {
    const resample = ratios.map(() => ratios[Math.floor(random() * ratios.length)]);
    return summarize(resample).median;
  }).sort();
  const low = medians[Math.floor(RESAMPLES * (SIGNIFICANCE / 2))];
  const high = medians[Math.ceil(RESAMPLES * (1 - SIGNIFICANCE / 2)) - 1];
  const p = signTest(pairs.filter(({ a, b }) => b > a).length, pairs.filter(({ a, b }) => b < a).length);
  const decides = p < SIGNIFICANCE && (low > 1 || high < 1);
  return { pairs: pairs.length, ratio: summarize(ratios).median, low, high, p, decides };
}

/** The two-sided p of so many wins against so many losses of a fair coin; ties were left out. */
export function signTest(wins: number, losses: number): number {
  const tosses = wins + losses;
  const least = Math.min(wins, losses);
  let tail = 0;
  // The logarithm of the binomial coefficient, kept while it is walked along.
  let logChoose = 0;
  for (let heads = 0; heads <= least; heads++) {
    if (heads > 0) logChoose += Math.log((tosses - heads + 1) / heads);
    tail += Math.exp(logChoose - tosses * Math.LN2);
  }
  return Math.min(1, 2 * tail);
}

/** A small generator of numbers in [0, 1), good enough for resampling (Tommy Ettinger's mulberry32). */
function mulberry32(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
