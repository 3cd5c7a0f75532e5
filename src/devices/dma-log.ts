import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { SharedLog } from "../bitmap/shared-log.js";
import { PAGE_SIZE, type PageNumber } from "../memory/address.js";

/** A stretch of IOVA that is logged, in pages. */
export interface LogRange {
  readonly page: PageNumber;
  readonly pages: number;
}

/** What a thread needs for {@link DmaLog.open}. */
export interface PostedDmaLog {
  readonly memory: WebAssembly.Memory;
  readonly bits: number;
  readonly granule: number;
  readonly ranges: readonly LogRange[];
}

/**
 * A device's own log of what it has written: the IOVA ranges of DMA_LOGGING_START over a {@link SharedLog} in device
 * memory, a bit per granule. The device marks after each store; a reader reads and clears, then drains the port.
 */
export class DmaLog {
  /** Bytes per bit. */
  readonly granule: number;
  readonly ranges: readonly LogRange[];
  readonly #log: SharedLog;
  readonly #pagesPerGranule: number;
  /** Per range: first granule (IOVA / granule), granules, and the log's bit for the first. */
  readonly #spans: readonly { readonly first: number; readonly count: number; readonly bit: number }[];
  /** The span that was marked last, spread out: a device writes to the same buffers again and again. */
  #first = 0;
  #count = 0;
  #bit = 0;

  private constructor(ranges: readonly LogRange[], granule: number, open: (bits: number) => SharedLog) {
    this.ranges = ranges;
    this.granule = granule;
    const perGranule = granule / PAGE_SIZE;
    this.#pagesPerGranule = perGranule;
    let bit = 0;
    this.#spans = ranges.map(({ page, pages }) => {
      const first = Math.floor(page / perGranule);
      const count = Math.ceil((page + pages) / perGranule) - first;
      bit += count;
      return { first, count, bit: bit - count };
    });
    this.#log = open(bit);
  }

  /**
   * @param granule bytes per bit: a power of two, at least 4096
   * @param ranges that do not overlap; each is rounded outwards to granules
   * @throws UsageError `MEMORY_DOES_NOT_FIT` for more than {@link SharedLog} holds
   */
  static create(ranges: readonly LogRange[], granule: number): DmaLog {
    return new DmaLog(ranges, granule, (bits) => SharedLog.create(bits));
  }

  /** The same log on another thread. */
  static open({ memory, bits, granule, ranges }: PostedDmaLog): DmaLog {
    return new DmaLog(ranges, granule, () => SharedLog.open(memory, bits));
  }

  posted(): PostedDmaLog {
    return { memory: this.#log.arena.memory, bits: this.#log.bits, granule: this.granule, ranges: this.ranges };
  }

  /** Device's side, after the store and before the DMA ends: the page was written. Outside the ranges: nothing. */
  mark(page: PageNumber): void {
    const granule = this.#pagesPerGranule === 1 ? page : Math.floor(page / this.#pagesPerGranule);
    const index = granule - this.#first;
    if ((index >= 0 && index < this.#count) || this.#find(granule)) this.#log.mark(this.#bit + granule - this.#first);
  }

  /** Makes the span that holds a granule the last one; false: no span does. */
  #find(granule: number): boolean {
    for (const { first, count, bit } of this.#spans) {
      if (granule < first || granule >= first + count) continue;
      this.#first = first;
      this.#count = count;
      this.#bit = bit;
      return true;
    }
    return false;
  }

  /**
   * Reader's side: takes the bits of pages [page, page + pages) out of the log and adds them to `into`, whatever its
   * granule, rounded outwards. A granule that reaches out of that range is taken as a whole. The caller flushes and
   * drains the port before it trusts the answer. Returns the number of granules taken.
   */
  readAndClear(page: PageNumber, pages: number, into: DirtyBitmap): number {
    let taken = 0;
    this.#read(page, pages, into, (first, count, words, intoBit) => {
      taken += this.#log.readAndClear(first, count, words, intoBit);
    });
    return taken;
  }

  /**
   * The same on the thread of the only writer: nothing is in flight, nothing is counted, and it is faster.
   * @param into clean, where what is logged goes
   */
  readAndClearAlone(page: PageNumber, pages: number, into: DirtyBitmap): void {
    this.#read(page, pages, into, (first, count, words, intoBit) => {
      this.#log.readAndClearAlone(first, count, words, intoBit);
    });
  }

  #read(
    page: PageNumber,
    pages: number,
    into: DirtyBitmap,
    take: (first: number, count: number, words: Uint32Array, intoBit: number) => void,
  ): void {
    const perGranule = this.#pagesPerGranule;
    const first = Math.floor(page / perGranule);
    const end = Math.ceil((page + pages) / perGranule);
    for (const span of this.#spans) {
      const from = Math.max(first, span.first);
      const to = Math.min(end, span.first + span.count);
      if (from >= to) continue;
      const bit = span.bit + from - span.first;
      const intoBit = (BigInt(from) * BigInt(this.granule) - into.iova) / BigInt(into.granule);
      const aligned = intoBit * BigInt(into.granule) === BigInt(from) * BigInt(this.granule) - into.iova;
      if (aligned && into.granule === this.granule && intoBit >= 0n && Number(intoBit) + (to - from) <= into.bits) {
        take(bit, to - from, into.words, Number(intoBit));
        continue;
      }
      const own = new DirtyBitmap({
        iova: BigInt(from) * BigInt(this.granule),
        length: BigInt(to - from) * BigInt(this.granule),
        granule: this.granule,
      });
      take(bit, to - from, own.words, 0);
      into.or(own);
    }
  }
}
