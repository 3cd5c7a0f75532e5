import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { type Iova, PAGE_SIZE, type PageNumber, pageOf } from "../../memory/address.js";

/** Pages per block of dirty bits: 128 MiB of memory take 4 KiB of bits, once something was written there. */
const BLOCK_PAGES = 32768;

/** Pages that devices wrote by messages: noted by the thread that stores what they write, and read by the same. */
export class WrittenPages {
  readonly #blocks = new Map<number, Uint32Array>();

  /** Notes the pages of [iova, iova + bytes). */
  add(iova: Iova, bytes: number): void {
    if (bytes === 0) return;
    const last = pageOf(iova + BigInt(bytes) - 1n);
    for (let page = pageOf(iova); page <= last; page++) this.#mark(page);
  }

  clear(): void {
    this.#blocks.clear();
  }

  /** Adds those in [iova, last] to the bitmap, whatever its granule; they stay noted unless `clear`. */
  read(iova: Iova, last: Iova, { into, clear }: { into: DirtyBitmap; clear: boolean }): void {
    const first = pageOf(iova);
    const end = pageOf(last) + 1;
    for (const [block, bits] of this.#blocks) {
      const base = block * BLOCK_PAGES;
      const from = Math.max(first, base);
      const to = Math.min(end, base + BLOCK_PAGES);
      if (from >= to) continue;
      const found = new DirtyBitmap({
        iova: BigInt(from) * BigInt(PAGE_SIZE),
        length: BigInt(to - from) * BigInt(PAGE_SIZE),
        granule: PAGE_SIZE,
      });
      for (let page = from; page < to; page++) {
        const bit = page - base;
        if (((bits[bit >>> 5] >>> (bit & 31)) & 1) === 0) {
          // Most are clean: whole words of them are passed over.
          if ((bit & 31) === 0 && bits[bit >>> 5] === 0) page += 31;
          continue;
        }
        found.set(page - from);
        if (clear) bits[bit >>> 5] &= ~(1 << (bit & 31));
      }
      into.or(found);
    }
  }

  /** Forgets those in [iova, last]. */
  forget(iova: Iova, last: Iova): void {
    const end = pageOf(last) + 1;
    for (const [block, bits] of this.#blocks) {
      const base = block * BLOCK_PAGES;
      const to = Math.min(end, base + BLOCK_PAGES);
      for (let page = Math.max(pageOf(iova), base); page < to; page++) {
        bits[(page - base) >>> 5] &= ~(1 << ((page - base) & 31));
      }
    }
  }

  #mark(page: PageNumber): void {
    const block = Math.floor(page / BLOCK_PAGES);
    let bits = this.#blocks.get(block);
    if (bits === undefined) {
      bits = new Uint32Array(BLOCK_PAGES / 32);
      this.#blocks.set(block, bits);
    }
    const bit = page - block * BLOCK_PAGES;
    bits[bit >>> 5] |= 1 << (bit & 31);
  }
}
