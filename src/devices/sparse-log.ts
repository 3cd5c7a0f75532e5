import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { PAGE_SIZE, type PageNumber } from "../memory/address.js";

/** Granules of a chunk: its bits take 4 KiB. */
const CHUNK = 32768;
const CHUNK_BYTES = CHUNK / 8;

/** Bits for 16 TiB at 4 KiB, in 512 MiB: as many as a {@link DmaLog} has at most. */
const MAX_CHUNKS = 2 ** 32 / CHUNK;

/**
 * A device's own log of all that it writes, wherever that is: chunks of bits, each made when something in it is first
 * written. Its writer and its reader are on one thread.
 */
export class SparseLog {
  /** Bytes per bit. */
  readonly granule: number;
  readonly #pagesPerGranule: number;
  readonly #maxChunks: number;
  readonly #chunks = new Map<number, Uint32Array>();
  /** What is taken out of a chunk, on its way into the reader's bitmap. */
  readonly #taken = new Uint32Array(new SharedArrayBuffer(CHUNK_BYTES));
  /** The chunk that was marked last, and its first granule: a device writes to the same buffers again and again. */
  #words: Uint32Array | undefined;
  #first = 0;
  #lost = false;

  /** @param granule bytes per bit: a power of two, at least 4096; @param maxChunks for tests */
  constructor(granule: number, maxChunks = MAX_CHUNKS) {
    this.granule = granule;
    this.#pagesPerGranule = granule / PAGE_SIZE;
    this.#maxChunks = maxChunks;
  }

  /** A mark had no place: the log does not tell all that was written, and never will. */
  get lost(): boolean {
    return this.#lost;
  }

  /** The page was written. */
  mark(page: PageNumber): void {
    const granule = Math.floor(page / this.#pagesPerGranule);
    let bit = granule - this.#first;
    if (this.#words === undefined || bit < 0 || bit >= CHUNK) {
      bit = granule % CHUNK;
      this.#first = granule - bit;
      this.#words = this.#chunk(this.#first / CHUNK);
    }
    if (this.#words !== undefined) this.#words[bit >>> 5] |= 1 << (bit & 31);
    else this.#lost = true;
  }

  /**
   * Takes the bits of pages [page, page + pages) out of the log and adds them to `into`, whatever its granule, rounded
   * outwards. A granule that reaches out of that range is taken as a whole.
   */
  readAndClear(page: PageNumber, pages: number, into: DirtyBitmap): void {
    const first = Math.floor(page / this.#pagesPerGranule);
    const end = Math.ceil((page + pages) / this.#pagesPerGranule);
    for (const chunk of this.#chunksIn(Math.floor(first / CHUNK), Math.floor((end - 1) / CHUNK))) {
      this.#take(chunk, Math.max(0, first - chunk * CHUNK), Math.min(CHUNK, end - chunk * CHUNK));
      const bytes = BigInt(CHUNK) * BigInt(this.granule);
      into.or(new DirtyBitmap({ iova: BigInt(chunk) * bytes, length: bytes, granule: this.granule }, this.#taken));
    }
  }

  /** A chunk, made if need be; undefined where there are as many as there may be. */
  #chunk(number: number): Uint32Array | undefined {
    let words = this.#chunks.get(number);
    if (words === undefined && this.#chunks.size < this.#maxChunks) {
      words = new Uint32Array(CHUNK_BYTES / 4);
      this.#chunks.set(number, words);
    }
    return words;
  }

  /** The chunks that there are from one to another, both included. */
  #chunksIn(first: number, last: number): number[] {
    if (last - first >= this.#chunks.size) return [...this.#chunks.keys()].filter((at) => at >= first && at <= last);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i).filter((at) => this.#chunks.has(at));
  }

  /** Moves bits [from, to) of a chunk to where they are taken from. One that was taken whole is gone. */
  #take(number: number, from: number, to: number): void {
    const words = this.#chunks.get(number);
    this.#taken.fill(0);
    if (words === undefined) return;
    for (let at = from >>> 5; at <= (to - 1) >>> 5; at++) {
      let mask = -1;
      if (at === from >>> 5) mask &= -1 << (from & 31);
      if (at === (to - 1) >>> 5) mask &= -1 >>> (31 - ((to - 1) & 31));
      this.#taken[at] = words[at] & mask;
      words[at] &= ~mask;
    }
    if (to - from < CHUNK) return;
    this.#chunks.delete(number);
    if (this.#words === words) this.#words = undefined;
  }
}
