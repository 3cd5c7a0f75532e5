import { countBitsIn } from "../bitmap/bits.js";
import type { RamBitmap } from "../bitmap/ram-bitmap.js";

/** Into how many stretches of equal size RAM is divided, to show where its dirty pages lie. */
export const HEAT_BUCKETS = 256;

/**
 * Marked pages per stretch of RAM: bucket `i` of `n` stands for RAM pages [i × pages / n, (i + 1) × pages / n), counted in
 * the order of their guest-physical addresses, holes left out. The sum over all buckets is the number of marked pages.
 * O(RAM pages / 32).
 */
export function heatOf(pages: RamBitmap, buckets = HEAT_BUCKETS): number[] {
  const { regions } = pages.memory;
  const all = regions.reduce((sum, region) => sum + region.pages, 0);
  const heat: number[] = new Array(buckets).fill(0);
  let before = 0;
  for (const { arena, arenaPage, pages: length } of regions) {
    const words = pages.arenas[arena];
    let done = 0;
    for (let bucket = Math.floor((before * buckets) / all); done < length; bucket++) {
      const end = Math.min(length, Math.ceil(((bucket + 1) * all) / buckets) - before);
      if (end > done) heat[bucket] += countBitsIn(words, arenaPage + done, end - done);
      done = Math.max(done, end);
    }
    before += length;
  }
  return heat;
}
