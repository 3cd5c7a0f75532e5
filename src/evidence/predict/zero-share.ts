import { PAGE_SIZE } from "../../memory/address.js";
import type { GuestMemory } from "../../memory/guest-memory.js";

/** Pages that are looked at: a share of one half is then known to within 2 %, nearly always. */
const SAMPLE_PAGES = 8192;
const WORDS = PAGE_SIZE / 4;

/**
 * The share of a guest's RAM pages that are all zero, as it is now, from pages evenly spaced over all of it. An odd
 * stride, so that what repeats in powers of two doesn't fool it.
 */
export function zeroShare({ regions, arenas }: GuestMemory): number {
  const all = regions.reduce((sum, { pages }) => sum + pages, 0);
  const stride = Math.max(1, Math.floor(all / SAMPLE_PAGES)) | 1;
  let looked = 0;
  let zero = 0;
  for (const { arena, arenaPage, pages } of regions) {
    const words = arenas[arena].u32;
    for (let page = arenaPage; page < arenaPage + pages; page += stride) {
      looked++;
      if (isZero(words, page * WORDS)) zero++;
    }
  }
  return looked === 0 ? 0 : zero / looked;
}

function isZero(words: Uint32Array, from: number): boolean {
  for (let i = from; i < from + WORDS; i++) if (words[i] !== 0) return false;
  return true;
}
