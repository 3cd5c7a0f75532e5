import { setBits } from "../../bitmap/bits.js";
import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { PAGE_SHIFT, PAGE_SIZE, type PageNumber } from "../../memory/address.js";

/**
 * A caller's bitmap as the reader fills it, on whatever thread that runs: where its bits are, and what they stand for.
 * Addresses are numbers, exact below 2^53; the aperture ends at 2^48.
 */
export interface DirtyTarget {
  readonly words: Uint32Array<SharedArrayBuffer>;
  /** Address of bit 0, in bytes. */
  readonly base: number;
  readonly granule: number;
  readonly bits: number;
}

/** What is posted of a bitmap. */
export function targetOf(bitmap: DirtyBitmap): DirtyTarget {
  return { words: bitmap.words, base: Number(bitmap.iova), granule: bitmap.granule, bits: bitmap.bits };
}

/** Marks pages, rounded outwards to the bitmap's granules; what lies outside the bitmap is left out. */
export function markPages(target: DirtyTarget, page: PageNumber, pages: number): void {
  const from = page * PAGE_SIZE - target.base;
  const first = Math.max(0, Math.floor(from / target.granule));
  const end = Math.min(target.bits, Math.ceil((from + pages * PAGE_SIZE) / target.granule));
  if (first < end) setBits(target.words, first, end - first);
}

/**
 * Marks the pages whose bits are set in source[at, …): bit i of these `count` bits stands for page + i. Bits from
 * `count` on are clear.
 */
export function markBits(target: DirtyTarget, page: PageNumber, source: Uint32Array, at: number, count: number): void {
  const words = Math.ceil(count / 32);
  const from = page * PAGE_SIZE - target.base;
  const bit = from / PAGE_SIZE;
  const inside = from >= 0 && bit + count <= target.bits;
  if (target.granule === PAGE_SIZE && inside && Number.isInteger(bit)) {
    const shift = bit % 32;
    let word = (bit - shift) / 32;
    for (let i = 0; i < words; i++, word++) {
      const bits = source[at + i];
      if (bits === 0) continue;
      target.words[word] |= bits << shift;
      const carried = shift === 0 ? 0 : bits >>> (32 - shift);
      if (carried !== 0) target.words[word + 1] |= carried;
    }
    return;
  }
  for (let i = 0; i < words; i++) {
    let bits = source[at + i];
    while (bits !== 0) {
      const low = 31 - Math.clz32(bits & -bits);
      markPages(target, page + i * 32 + low, 1);
      bits &= bits - 1;
    }
  }
}

/** log2 of the pages in a bitmap of leaf sizes: bit n stands for leaves of 2^n pages. */
export function leafSizesOf(shifts: number): number[] {
  const sizes: number[] = [];
  for (let bit = 0; bit < 32; bit++) {
    if ((shifts >>> bit) & 1) sizes.push(2 ** (bit + PAGE_SHIFT));
  }
  return sizes;
}
