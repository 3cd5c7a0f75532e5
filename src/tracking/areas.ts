import { forEachRun, setBits } from "../bitmap/bits.js";
import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { RamBitmap } from "../bitmap/ram-bitmap.js";
import { overlap } from "../bitmap/ranges.js";
import { iovaOf, PAGE_SIZE, type PageNumber, pageOf } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import type { TrackedRange } from "./tracker.js";

/*
 * Between IOVAs, which trackers speak of, and guest RAM, which a migration sends, lie the mappings. This file knows
 * them, and takes a tracker's bits over.
 */

/** A stretch of IOVAs as it was mapped (one IOMMU_IOAS_MAP), and the guest RAM behind it. */
export interface MappedArea extends TrackedRange {
  /** The guest page behind the first IOVA; the others follow it. */
  readonly guestPage: PageNumber;
}

/** The areas of RAM that devices may write: without a virtual IOMMU, an IOVA is a guest-physical address. */
export function writeableAreas(memory: GuestMemory): MappedArea[] {
  return memory.regions
    .filter(({ writeable }) => writeable)
    .map(({ firstPage, pages }) => ({
      iova: iovaOf(firstPage),
      length: BigInt(pages) * BigInt(PAGE_SIZE),
      guestPage: firstPage,
    }));
}

/** Marks all that an area maps. */
export function addArea(into: RamBitmap, area: MappedArea): void {
  into.addPages(area.guestPage, Number(area.length / BigInt(PAGE_SIZE)));
}

/**
 * Takes a tracker's bits over into the RAM that the areas map. What no area maps (a peer's BAR, a hole that a merged
 * range spans) has no RAM and is left out. A granule is rounded outwards to the pages that it touches.
 */
export function addDirty(into: RamBitmap, dirty: DirtyBitmap, areas: readonly MappedArea[]): void {
  const range = { iova: dirty.iova, length: dirty.length };
  for (const area of areas) {
    if (!overlap(area, range)) continue;
    const shift = Number(dirty.iova - area.iova) / PAGE_SIZE;
    const pages = Number(area.length / BigInt(PAGE_SIZE));
    for (const region of into.memory.regions) {
      // The part of the area that this region backs, in pages from the area's start.
      const from = Math.max(0, region.firstPage - area.guestPage);
      const to = Math.min(pages, region.firstPage + region.pages - area.guestPage);
      if (from >= to) continue;
      const arenaPage = region.arenaPage + area.guestPage - region.firstPage;
      addWords(into.arenas[region.arena], dirty, { from, to, arenaPage, shift });
    }
  }
}

/** Where a bitmap's bits go. All in pages; `shift` is the bitmap's first page counted from the area's. */
interface Placement {
  readonly from: number;
  readonly to: number;
  readonly arenaPage: number;
  readonly shift: number;
}

function addWords(into: Uint32Array, dirty: DirtyBitmap, { from, to, arenaPage, shift }: Placement): void {
  const target = arenaPage + shift;
  const firstBit = Math.max(0, from - shift);
  const endBit = Math.min(dirty.bits, to - shift);
  // The common case, a word at a time: a bit is a page, and the words of both sides begin at the same pages.
  if (dirty.granule === PAGE_SIZE && target % 32 === 0 && firstBit % 32 === 0) {
    const { words } = dirty;
    const offset = target / 32;
    const whole = Math.floor(endBit / 32);
    for (let i = firstBit / 32; i < whole; i++) {
      if (words[i] !== 0) into[offset + i] |= words[i];
    }
    if (endBit > firstBit && endBit % 32 !== 0) into[offset + whole] |= words[whole] & (-1 >>> (32 - (endBit % 32)));
    return;
  }
  const pagesPerBit = dirty.granule / PAGE_SIZE;
  forEachRun(dirty.words, dirty.bits, (first, count) => {
    const start = Math.max(from, Math.floor(first * pagesPerBit + shift));
    const end = Math.min(to, Math.ceil((first + count) * pagesPerBit + shift));
    if (start < end) setBits(into, arenaPage + start, end - start);
  });
}

/** The page behind the last byte of all that is mapped: what a device's log must reach. */
export function endPage(areas: readonly TrackedRange[]): PageNumber {
  return areas.reduce((end, { iova, length }) => Math.max(end, pageOf(iova + length - 1n) + 1), 0);
}
