/**
 * Leaves out of a failing list what the failure doesn't need (delta debugging, Zeller and Hildebrandt 2002): chunks, ever
 * smaller, as long as it still fails. How it fails may change on the way.
 * @param attempt runs a list; returns the part of it that was needed to fail, or null where it does not
 */
export async function leaveOut<T>(
  failing: readonly T[],
  attempt: (items: readonly T[]) => Promise<readonly T[] | null>,
  maxRuns: number,
): Promise<readonly T[]> {
  let best = failing;
  let runs = 0;
  for (let chunk = Math.ceil(best.length / 2); runs < maxRuns; chunk = Math.max(1, Math.floor(chunk / 2))) {
    let shorter = false;
    for (let from = Math.max(0, best.length - 1 - chunk); from >= 0 && runs < maxRuns; from -= chunk) {
      runs++;
      const still = await attempt([...best.slice(0, from), ...best.slice(from + chunk)]);
      if (still === null) continue;
      best = still;
      shorter = true;
    }
    if (chunk === 1 && !shorter) break;
  }
  return best;
}
