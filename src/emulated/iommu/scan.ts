import { type IopteKernels, RESULT_ANY, RESULT_FIRST_HOLE } from "../../kernels/ioptes.js";
import type { PageNumber } from "../../memory/address.js";
import type { Arena } from "../../memory/arena.js";
import { type DirtyTarget, markBits, markPages } from "./dirty-target.js";
import { ADDRESS_LOW, ENTRIES, indexOf, LEVELS, type PageTableFormat, pagesPerEntry, replicasOf } from "./format.js";

/** What to read. Plain data but for the format, so that it can be posted. */
export interface ScanRequest {
  /** Byte offset of the root table. */
  readonly root: number;
  readonly page: PageNumber;
  readonly pages: number;
  /** Where dirty pages are added; null where they are only to be cleared. */
  readonly into: DirtyTarget | null;
  readonly clear: boolean;
  /** true: end at the first page that isn't mapped, as Linux does; false: leap over holes. */
  readonly stopAtHole: boolean;
}

/**
 * Reads, and clears, the dirty bits of a page table. It runs on any thread, beside devices that set bits at the same
 * time; the caller flushes and drains afterwards. Runs of entries in the lowest tables are the kernel's; what lies above
 * is walked here. A leaf is always cleaned as a whole, also where only a part of it was asked for, as on Linux.
 */
export class Scanner {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #unsigned: Uint32Array<SharedArrayBuffer>;
  readonly #kernels: IopteKernels;
  readonly #result: number;

  /** @param result byte offset in the arena of a result block (see IopteKernels) that no one else uses */
  constructor({ i32, u32 }: Arena, kernels: IopteKernels, result: number) {
    this.#words = i32;
    this.#unsigned = u32;
    this.#kernels = kernels;
    this.#result = result;
  }

  /** Returns the sizes of the leaves that were met: bit n for leaves of 2^n pages. */
  scan(format: PageTableFormat, { root, page, pages, into, clear, stopAtHole }: ScanRequest): number {
    const end = page + pages;
    let sizes = 0;
    for (let at = page; at < end; ) {
      let table = root;
      let level = LEVELS;
      let low = 0;
      let index = 0;
      for (; ; level--) {
        index = indexOf(at, level);
        if (level === 1) break;
        low = Atomics.load(this.#words, (table >>> 2) + index * 2);
        if ((low & format.presentMask) === 0 || format.isLeaf(low, level)) break;
        table = (low & ADDRESS_LOW) >>> 0;
      }
      if (level === 1) {
        const to = Math.min(ENTRIES, index + end - at);
        sizes |= this.#scanLowest(format, table, index, to, at, page, end, into, clear, stopAtHole);
        const firstHole = this.#hole;
        if (firstHole >= 0) return sizes;
        at += to - index;
      } else if ((low & format.presentMask) === 0) {
        if (stopAtHole) return sizes;
        const reach = pagesPerEntry(level);
        at += reach - (at % reach);
      } else {
        const shift = format.leafShift(low, level);
        const leafPages = 2 ** (shift - 12);
        const leaf = at - (at % leafPages);
        sizes |= 1 << (shift - 12);
        const from = Math.max(leaf, page);
        const to = Math.min(leaf + leafPages, end);
        if (this.#takeLeaf(format, table, index, shift, clear) && into !== null) markPages(into, from, to - from);
        at = leaf + leafPages;
      }
    }
    return sizes;
  }

  /** Index of the hole that ended the last run, or -1. */
  #hole = -1;

  /** Scans entries [from, to) of a lowest table; `at` is the page of entry `from`. */
  #scanLowest(
    format: PageTableFormat,
    table: number,
    from: number,
    to: number,
    at: PageNumber,
    page: PageNumber,
    end: PageNumber,
    into: DirtyTarget | null,
    clear: boolean,
    stopAtHole: boolean,
  ): number {
    const words = this.#words;
    const first = table >>> 2;
    let start = from;
    let stop = to;
    if (format.sizedMask !== 0) {
      // A leaf of several entries is read and cleaned in all of them.
      const firstLow = words[first + from * 2];
      const lastLow = words[first + (to - 1) * 2];
      if ((firstLow & format.sizedMask) !== 0) start &= -replicasOf(format.leafShift(firstLow, 1));
      if ((lastLow & format.sizedMask) !== 0) stop = ((to - 1) | (replicasOf(format.leafShift(lastLow, 1)) - 1)) + 1;
    }
    const dirty = this.#kernels.scanIoptes(
      table + start * 8,
      stop - start,
      this.#result,
      format.dirtyMask,
      format.dirtyValue,
      stopAtHole ? format.presentMask : 0,
      clear ? format.cleanAnd : -1,
      clear ? format.cleanOr : 0,
    );
    const block = this.#result >>> 2;
    const hole = words[block + RESULT_FIRST_HOLE];
    this.#hole = hole < stop - start ? start + hole : -1;
    const startPage = at - (from - start);
    if (format.sizedMask === 0 || (words[block + RESULT_ANY] & format.sizedMask) === 0) {
      if (dirty > 0 && into !== null) markBits(into, startPage, this.#unsigned, block, hole);
      return hole > 0 && words[block + RESULT_ANY] !== 0 ? 1 : 0;
    }
    let sizes = 0;
    for (let entry = 0; entry < hole; ) {
      const low = words[first + (start + entry) * 2];
      if ((low & format.presentMask) === 0) {
        entry++;
        continue;
      }
      const replicas = replicasOf(format.leafShift(low, 1));
      sizes |= replicas;
      let any = 0;
      for (let i = entry; dirty > 0 && i < entry + replicas; i++) any |= (words[block + (i >>> 5)] >>> (i & 31)) & 1;
      if (any !== 0 && into !== null) {
        const leaf = Math.max(startPage + entry, page);
        markPages(into, leaf, Math.min(startPage + entry + replicas, end) - leaf);
      }
      entry += replicas;
    }
    return sizes;
  }

  /** Reads, and clears, one leaf above the lowest level, in all its entries. */
  #takeLeaf(format: PageTableFormat, table: number, index: number, shift: number, clear: boolean): boolean {
    const words = this.#words;
    const replicas = replicasOf(shift);
    const first = (table >>> 2) + (index & -replicas) * 2;
    let dirty = false;
    for (let at = first; at < first + replicas * 2; at += 2) {
      if ((Atomics.load(words, at) & format.dirtyMask) !== format.dirtyValue) continue;
      dirty = true;
      if (!clear) return true;
      if (format.cleanAnd !== -1) Atomics.and(words, at, format.cleanAnd);
      if (format.cleanOr !== 0) Atomics.or(words, at, format.cleanOr);
    }
    return dirty;
  }
}
