import { MiB } from "./address.js";
import type { GuestMemory } from "./guest-memory.js";

/** Data and zero memory alternate in blocks of this size, so that both come in runs, as in a real guest. */
const BLOCK = 1 * MiB;

/**
 * Fills a share of a guest's memory with pseudo-random data and leaves the rest zero. The same seed, share and layout
 * give the same memory.
 * @param share 0 to 1: how much of each region is filled, in whole blocks of 1 MiB, spread evenly
 * @param seed 32 bits
 */
export function fillMemory(memory: GuestMemory, share: number, seed: number): void {
  let state = (seed ^ 0x9e3779b9) | 1;
  let block = 0;
  for (const region of memory.regions) {
    const { u32 } = memory.arenas[region.arena];
    const end = (region.arenaPage + region.pages) * 1024;
    for (let at = region.arenaPage * 1024; at < end; at += BLOCK / 4, block++) {
      if (Math.floor((block + 1) * share) === Math.floor(block * share)) continue;
      const stop = Math.min(at + BLOCK / 4, end);
      for (let i = at; i < stop; i++) {
        // xorshift32 (Marsaglia 2003, triple 13, 17, 5): never zero, so a filled page is never mistaken for a zero page.
        state ^= state << 13;
        state ^= state >>> 17;
        state ^= state << 5;
        u32[i] = state;
      }
    }
  }
}
