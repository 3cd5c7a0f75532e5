import { release } from "node:os";
import { areSet, setBits } from "../../bitmap/bits.js";
import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { GiB, type Iova, KiB, MiB } from "../../memory/address.js";

/*
 * How Linux's generic page tables (drivers/iommu/generic_pt/iommu_pt.h, record_dirty) report dirty leaves: docs/kernel-bugs.md, 1, 2
 * and 5. From 6.19 on a contiguous leaf is reported one entry short: of a leaf that is made of n entries the last is left out, and
 * cleaned with the rest. Of the formats that can be tracked only AMD v1 has such leaves. A write that is reported by nobody is a
 * lost write, so here the missing entries are added. Since 7.3.4 a leaf is reported whole, or not at all if its start is not read.
 */

/** What an entry of AMD v1 tables stands for, by level, in bytes; at the levels above, no memory is that contiguous. */
export const AMD_V1_ENTRIES: readonly number[] = [4 * KiB, 2 * MiB, 1 * GiB];

/**
 * How a kernel reports leaves. `as-read`: the part of a leaf that was read. `short`: a contiguous leaf without its last entry.
 * `whole`: a leaf from its start, or, if the read begins inside it, nothing of it.
 */
export type LeafReport = "as-read" | "short" | "whole";

/** The release that moved AMD's tables to the generic ones. */
const GENERIC_TABLES = [6, 19, 0] as const;
/** "iommupt: Do not allow PTEs to be split when dirty logging". */
const WHOLE_LEAVES = [7, 3, 4] as const;

/** How this kernel, or the one of the given release, reports leaves. */
export function leafReport(kernel: string = release()): LeafReport {
  const numbers = /^(\d+)\.(\d+)(?:\.(\d+))?/
    .exec(kernel)
    ?.slice(1)
    .map((part) => Number(part ?? 0));
  // What is added for a kernel that needs nothing costs time; what is missing would be lost.
  if (numbers === undefined) return "short";
  if (isBefore(numbers, GENERIC_TABLES)) return "as-read";
  // A candidate of a later release may be older than the mend.
  return isBefore(numbers, WHOLE_LEAVES) || kernel.includes("-rc") ? "short" : "whole";
}

function isBefore(numbers: readonly number[], other: readonly number[]): boolean {
  const at = numbers.findIndex((number, index) => number !== other[index]);
  return at >= 0 && numbers[at] < other[at];
}

/**
 * Adds the entries that the kernel may have left out. A contiguous leaf has a power of two of entries and is aligned to
 * its size, so the last one is odd, and all that is known of it is that the even one before it is dirty as a whole: then it
 * counts as dirty too. What is added beyond the leaves is at most as much as was reported.
 * @param range what was read: whole mappings
 * @param entries bytes that an entry stands for, by level
 */
export function completeLeaves(
  bitmap: DirtyBitmap,
  range: { readonly iova: Iova; readonly length: bigint },
  entries: readonly number[] = AMD_V1_ENTRIES,
): void {
  const granule = BigInt(bitmap.granule);
  const first = Number((range.iova - bitmap.iova) / granule);
  const end = first + Number(range.length / granule);
  for (const entry of entries) {
    // An entry that is smaller than a bit shares its bit with the even one before it.
    if (entry < bitmap.granule) continue;
    if (entry === bitmap.granule) {
      addOddBits(bitmap.words, first, end, (bitmap.iova / granule) % 2n === 1n);
      continue;
    }
    const bits = entry / bitmap.granule;
    const size = BigInt(entry);
    // The first odd entry with an even one inside the range before it.
    let odd = (range.iova + size - 1n) / size + 1n;
    if (odd % 2n === 0n) odd++;
    let at = Number((odd * size - bitmap.iova) / granule);
    for (; at < end; at += 2 * bits) {
      if (areSet(bitmap.words, at - bits, bits)) setBits(bitmap.words, at, Math.min(bits, end - at));
    }
  }
}

/**
 * True for an IOVA that may lie in the last entry of a contiguous leaf: at some level its entry is an odd one. A read that
 * begins there, if the leaf is dirty, marks a length of 0, and a kernel that reports leaves short never returns from it
 * (iova_bitmap_set of drivers/iommu/iommufd/iova_bitmap.c): no signal ends the loop.
 */
export function mayBeLastEntry(iova: Iova, entries: readonly number[] = AMD_V1_ENTRIES): boolean {
  return entries.some((entry) => (iova / BigInt(entry)) % 2n === 1n);
}

/** Why a read may not begin at this IOVA, inside a mapping; undefined if it may. */
export function whyNotInside(report: LeafReport, iova: Iova): string | undefined {
  if (report === "whole") return "of a page that it cuts, this kernel reports nothing";
  if (report === "short" && mayBeLastEntry(iova)) return "inside one, this kernel may never return";
  return undefined;
}

/** Sets each bit of an odd entry in [first, end) that comes after a set bit in there. */
function addOddBits(words: Uint32Array, first: number, end: number, bit0IsOdd: boolean): void {
  const even = bit0IsOdd ? 0xaaaaaaaa : 0x55555555;
  let carry = 0;
  for (let word = Math.floor(first / 32); word * 32 < end; word++) {
    let inside = -1;
    if (word * 32 < first) inside &= -1 << (first & 31);
    if (word * 32 + 32 > end) inside &= -1 >>> (32 - (end & 31));
    const before = words[word] & inside & even;
    if (before !== 0 || carry !== 0) words[word] |= ((before << 1) | carry) & inside;
    carry = before >>> 31;
  }
}
