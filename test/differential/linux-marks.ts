import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import { larger, smaller } from "./units.js";

/** A leaf of an I/O page table. */
export interface Leaf {
  readonly start: bigint;
  readonly size: bigint;
}

/**
 * What Linux 7.2 marks of a dirty leaf, which is not what it cleans (record_dirty of drivers/iommu/generic_pt/iommu_pt.h,
 * iova_bitmap_set of drivers/iommu/iommufd/iova_bitmap.c). The emulated host marks the part of the leaf that was asked
 * for; docs/fidelity.md has the difference. Linux counts in entries of the page table:
 * - Of a leaf that is one entry, an entry's length is marked, from where the read begins: also beyond the leaf.
 * - Of a leaf that is several equal entries, the last is left out.
 * @param entry what one entry reaches, at the level that the leaf is made at
 * @returns from where to where, exclusive; null where Linux never comes back: of a leaf of several entries a read that
 * begins in the last marks a length of 0, from which iova_bitmap_set does not find out
 */
export function linuxMarks(
  leaf: Leaf,
  read: { readonly iova: bigint; readonly last: bigint },
  entry: bigint,
): { from: bigint; end: bigint } | null {
  const from = larger(leaf.start, read.iova);
  if (leaf.size === entry) return { from, end: from + entry };
  const lastEntry = (leaf.start + leaf.size) / entry - 1n;
  const endOfRead = read.last / entry + 1n;
  const entries = smaller(lastEntry, endOfRead) - from / entry;
  return entries === 0n ? null : { from, end: from + entries * entry };
}

/** Sets the bits of [from, end), as far as they are below the bit after `last`. */
export function setMarks(bitmap: DirtyBitmap, from: bigint, end: bigint, last: bigint): void {
  const granule = BigInt(bitmap.granule);
  const to = end <= last ? end : last + 1n;
  if (to <= from) return;
  const first = Number((from - bitmap.iova) / granule);
  bitmap.setRange(first, Math.min(bitmap.bits, Number((to - 1n - bitmap.iova) / granule) + 1) - first);
}
