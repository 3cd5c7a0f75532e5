/** Longer words are no misspelt names. */
const MAX_WORD = 64;
/** Candidates that a message lists. */
const MAX_LISTED = 24;

/**
 * The candidate that a misspelt word most likely meant, or undefined where none is near: at most a third of the word's
 * letters, or two, inserted, dropped, replaced or swapped with a neighbour.
 */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  if (word.length > MAX_WORD) return undefined;
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance && distance < candidate.length) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** "; did you mean 'x'?" or nothing, and then the list: what an error about a name ends with. */
export function suggest(word: string, candidates: readonly string[]): string {
  const near = nearest(word, candidates);
  const more = candidates.length - MAX_LISTED;
  const listed = `${candidates.slice(0, MAX_LISTED).join(", ")}${more > 0 ? `, and ${more} more` : ""}`;
  const list = candidates.length === 0 ? "there are none" : `there are: ${listed}`;
  return near === undefined ? list : `did you mean '${near}'? (${list})`;
}

/** Optimal string alignment distance. */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = last[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(replaced, last[j] + 1, row[j - 1] + 1);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j], beforeLast[j - 2] + 1);
      }
    }
    beforeLast = last;
    last = row;
  }
  return last[b.length];
}
