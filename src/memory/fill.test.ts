import { expect, test } from "vitest";
import { MiB } from "./address.js";
import { fillMemory } from "./fill.js";
import { createGuestMemory } from "./guest-memory.js";

function filledShare(share: number): number {
  const memory = createGuestMemory(64 * MiB);
  fillMemory(memory, share, 7);
  let filled = 0;
  let pages = 0;
  for (const region of memory.regions) {
    for (let page = region.arenaPage; page < region.arenaPage + region.pages; page++) {
      pages++;
      if (memory.arenas[region.arena].u32[page * 1024] !== 0) filled++;
    }
  }
  return filled / pages;
}

test("a share of the memory is filled and the rest stays zero", () => {
  expect(filledShare(0)).toBe(0);
  expect(filledShare(0.25)).toBeCloseTo(0.25, 1);
  expect(filledShare(1)).toBe(1);
});

test("the same seed fills the same data, another seed other data, and the holes stay untouched", () => {
  const [a, b, c] = [1, 1, 2].map((seed) => {
    const memory = createGuestMemory(4 * MiB);
    fillMemory(memory, 1, seed);
    return memory.arenas[0].u8;
  });
  expect(Buffer.compare(a, b)).toBe(0);
  expect(Buffer.compare(a, c)).not.toBe(0);
  expect(a.subarray(640 * 1024, 768 * 1024).every((byte) => byte === 0)).toBe(true);
});
