import { forEachRun } from "./bits.js";
import type { RamBitmap } from "./ram-bitmap.js";

/**
 * Stretches of guest pages, two words each: the first page and how many. Ascending, neither overlapping nor touching.
 * Guest pages up to 2^32 - 1, which is 16 TiB of guest-physical addresses.
 */
export type PageRuns = Uint32Array<ArrayBuffer>;

/** The marked pages of RAM as stretches of guest pages. O(RAM pages / 32 + stretches). */
export function runsOf(pages: RamBitmap): PageRuns {
  let runs = new Uint32Array(64);
  let length = 0;
  const add = (first: number, count: number) => {
    if (length > 0 && runs[length - 2] + runs[length - 1] === first) {
      runs[length - 1] += count;
      return;
    }
    if (length === runs.length) {
      const larger = new Uint32Array(2 * length);
      larger.set(runs);
      runs = larger;
    }
    runs[length++] = first;
    runs[length++] = count;
  };
  for (const { arena, arenaPage, firstPage, pages: count } of pages.memory.regions) {
    // From the word that holds the region's first page; what lies before that in it belongs to no one or another region.
    const before = arenaPage & 31;
    const words = pages.arenas[arena].subarray(arenaPage >>> 5);
    forEachRun(words, before + count, (first, found) => {
      const from = Math.max(first, before);
      if (from < first + found) add(firstPage + from - before, first + found - from);
    });
  }
  return runs.slice(0, length);
}

/** How many pages the stretches hold. */
export function countPages(runs: PageRuns): number {
  let pages = 0;
  for (let i = 1; i < runs.length; i += 2) pages += runs[i];
  return pages;
}

/** The pages that are in any of these. O(stretches × log stretches). */
export function mergeRuns(all: readonly PageRuns[]): PageRuns {
  const filled = all.filter(({ length }) => length > 0);
  if (filled.length <= 1) return filled[0] ?? new Uint32Array(0);
  let merged = filled[0];
  for (const other of filled.slice(1)) merged = mergeTwo(merged, other);
  return merged;
}

function mergeTwo(a: PageRuns, b: PageRuns): PageRuns {
  const merged = new Uint32Array(a.length + b.length);
  let length = 0;
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    const fromA = j >= b.length || (i < a.length && a[i] <= b[j]);
    const runs = fromA ? a : b;
    const at = fromA ? i : j;
    const first = runs[at];
    const end = first + runs[at + 1];
    if (fromA) i += 2;
    else j += 2;
    if (length > 0 && first <= merged[length - 2] + merged[length - 1]) {
      merged[length - 1] = Math.max(merged[length - 1], end - merged[length - 2]);
    } else {
      merged[length++] = first;
      merged[length++] = end - first;
    }
  }
  return merged.slice(0, length);
}
