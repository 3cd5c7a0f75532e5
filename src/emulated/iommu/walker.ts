import type { DmaFault } from "../../devices/model.js";
import { PAGE_SHIFT, type PageNumber } from "../../memory/address.js";
import { ADDRESS_LOW, indexOf, LAST_PAGE, LEVELS, type PageTableFormat, READ, WRITE } from "./format.js";

/**
 * The page-table walker of the device side. It translates, checks permissions, and records the access in the leaf by
 * compare-and-swap against the very entry that it translated: if that was unmapped, replaced or cleaned meanwhile, it
 * walks again, so that no bit lands where the device doesn't write.
 *
 * Its results are fields, so that a walk allocates nothing.
 */
export class Walker {
  /** Low 32 bits of the physical address of the page that was translated; unsigned. */
  addressLow = 0;
  /** The physical address from bit 32 on. */
  addressHigh = 0;
  /** READ and WRITE, as the leaf permits. */
  permissions = 0;
  readonly #format: PageTableFormat;
  readonly #words: Int32Array;
  readonly #beforeRecord: (() => void) | undefined;

  /** @param beforeRecord for tests: called between the look at the leaf and the compare-and-swap */
  constructor(format: PageTableFormat, words: Int32Array, beforeRecord?: () => void) {
    this.#format = format;
    this.#words = words;
    this.#beforeRecord = beforeRecord;
  }

  /** Translates a page through the table at `root`; `updates` as the device's entry says. */
  walk(root: number, page: PageNumber, write: boolean, updates: boolean): DmaFault | null {
    const format = this.#format;
    const words = this.#words;
    if (page < 0 || page > LAST_PAGE) return "not-mapped";
    // Each turn but the last means that another thread has changed the leaf, so there is no turn without progress.
    for (;;) {
      let at = 0;
      let low = 0;
      let level = LEVELS;
      for (let table = root; ; level--) {
        at = (table >>> 2) + indexOf(page, level) * 2;
        low = Atomics.load(words, at);
        if ((low & format.presentMask) === 0) return "not-mapped";
        if (format.isLeaf(low, level)) break;
        table = (low & ADDRESS_LOW) >>> 0;
      }
      // Stays what it was when the low half was read: a high half is not reused before DMA in flight has drained.
      const high = Atomics.load(words, at + 1);
      const permissions = format.permissions(low, high, updates);
      if (write && (permissions & WRITE) === 0) return "not-writeable";
      if (!write && (permissions & READ) === 0) return "not-readable";
      if (updates) {
        const recorded = format.recorded(low, write);
        // Test before set: a bit that is there already costs no atomic operation.
        if (recorded !== low) {
          this.#beforeRecord?.();
          if (Atomics.compareExchange(words, at, low, recorded) !== low) continue;
        }
      }
      const shift = format.leafShift(low, level);
      const pageInLeaf = page & ((1 << (shift - PAGE_SHIFT)) - 1);
      this.addressLow = ((low & (-1 << shift)) | (pageInLeaf << PAGE_SHIFT)) >>> 0;
      this.addressHigh = high & format.addressHigh;
      this.permissions = permissions;
      return null;
    }
  }
}
