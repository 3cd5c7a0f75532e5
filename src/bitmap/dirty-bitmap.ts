import { hex, type Iova, iovaOf, isPowerOfTwo, PAGE_SIZE, type PageNumber, pageOf } from "../memory/address.js";
import { UapiError } from "../uapi/errno.js";

/** A bitmap's memory is a whole number of pages: Linux may write a page at a time into a bitmap that it was given. */
const WORDS_PER_PAGE = PAGE_SIZE / 4;

/**
 * One bit per granule of an IOVA range; bit 0 is the granule at the range's first address, as in
 * struct iommu_hwpt_get_dirty_bitmap and struct vfio_device_feature_dma_logging_report (little-endian words).
 *
 * Readers only ever add bits to a caller's bitmap. Its memory is shared, page-aligned and padded to a page, and owned
 * by this library, so that a kernel or a worker may write it in place.
 */
export class DirtyBitmap {
  /** The range's first address. A multiple of the granule is not required. */
  readonly iova: Iova;
  /** Bytes per bit, a power of two. */
  readonly granule: number;
  /** Bits in use: the range's length over the granule, rounded up. */
  readonly bits: number;
  /** Bit i is bit i % 32 of word i / 32. Longer than `bits` needs: padded to a page. */
  readonly words: Uint32Array<SharedArrayBuffer>;

  /**
   * @param length of the range in bytes, above 0
   * @throws UapiError EINVAL for a granule that is no power of two, or a length of 0 or of more than 2^37 granules
   */
  constructor({ iova, length, granule }: { iova: Iova; length: bigint; granule: number }) {
    if (!isPowerOfTwo(granule) || length <= 0n || length / BigInt(granule) > 1n << 37n) {
      throw new UapiError("EINVAL", {
        syscall: "DirtyBitmap",
        attempted: `make a bitmap of ${hex(length)} bytes at ${hex(iova)} with a granule of ${granule}`,
        remedy: "the granule must be a power of two and the length above 0",
      });
    }
    this.iova = iova;
    this.granule = granule;
    this.bits = Number((length + BigInt(granule) - 1n) / BigInt(granule));
    const words = Math.ceil(this.bits / 32 / WORDS_PER_PAGE) * WORDS_PER_PAGE;
    this.words = new Uint32Array(new SharedArrayBuffer(words * 4));
  }

  /** Bytes that the bits stand for. */
  get length(): bigint {
    return BigInt(this.bits) * BigInt(this.granule);
  }

  get(bit: number): boolean {
    return ((this.words[Math.floor(bit / 32)] >>> (bit & 31)) & 1) === 1;
  }

  set(bit: number): void {
    this.words[Math.floor(bit / 32)] |= 1 << (bit & 31);
  }

  /** Sets `count` bits from `first` on, which must lie inside the bitmap. */
  setRange(first: number, count: number): void {
    setBits(this.words, first, count);
  }

  /** Sets every bit: what an error from a tracker means. */
  setAll(): void {
    setBits(this.words, 0, this.bits);
  }

  clear(): void {
    this.words.fill(0);
  }

  /** Number of set bits. */
  count(): number {
    return countBits(this.words);
  }

  /** Calls `run` with each maximal run of set bits, in order: first bit and length. */
  forEachRun(run: (first: number, count: number) => void): void {
    forEachRun(this.words, this.bits, run);
  }

  /**
   * Adds another bitmap's bits. Granules may differ; a bit of a coarser one sets all that it covers here, a bit of a
   * finer one the whole granule that holds it: always outwards. What lies outside this bitmap's range is left out.
   */
  or(other: DirtyBitmap): void {
    if (other.iova === this.iova && other.granule === this.granule) {
      const words = Math.ceil(Math.min(this.bits, other.bits) / 32);
      const { words: from } = other;
      for (let i = 0; i < words; i++) this.words[i] |= from[i];
      clearTail(this.words, this.bits);
      return;
    }
    const granule = BigInt(this.granule);
    const end = this.iova + this.length;
    other.forEachRun((first, count) => {
      let from = other.iova + BigInt(first) * BigInt(other.granule);
      let to = from + BigInt(count) * BigInt(other.granule);
      if (from < this.iova) from = this.iova;
      if (to > end) to = end;
      if (from >= to) return;
      const firstBit = Number((from - this.iova) / granule);
      const lastBit = Number((to - 1n - this.iova) / granule);
      this.setRange(firstBit, lastBit - firstBit + 1);
    });
  }

  /** The dirty 4 KiB pages as runs: first page and number of pages, clipped to whole pages outwards. */
  forEachPageRun(run: (firstPage: PageNumber, pages: number) => void): void {
    this.forEachRun((first, count) => {
      const from = this.iova + BigInt(first) * BigInt(this.granule);
      const last = from + BigInt(count) * BigInt(this.granule) - 1n;
      const firstPage = pageOf(from);
      run(firstPage, pageOf(last) - firstPage + 1);
    });
  }

  toString(): string {
    return `${this.count()} of ${this.bits} granules of ${this.granule} from ${hex(iovaOf(pageOf(this.iova)))}`;
  }
}

/** Sets `count` bits of a little-endian bit array from `first` on. */
export function setBits(words: Uint32Array, first: number, count: number): void {
  if (count <= 0) return;
  const last = first + count - 1;
  const firstWord = Math.floor(first / 32);
  const lastWord = Math.floor(last / 32);
  const head = -1 << (first & 31);
  const tail = -1 >>> (31 - (last & 31));
  if (firstWord === lastWord) {
    words[firstWord] |= head & tail;
    return;
  }
  words[firstWord] |= head;
  words.fill(0xffffffff, firstWord + 1, lastWord);
  words[lastWord] |= tail;
}

/** Clears what lies at and above bit `bits` in the word that holds it. */
function clearTail(words: Uint32Array, bits: number): void {
  if ((bits & 31) !== 0) words[Math.floor(bits / 32)] &= -1 >>> (32 - (bits & 31));
}

/** Number of set bits in a word (Hacker's Delight, figure 5-2). */
export function popcount32(value: number): number {
  let v = value - ((value >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** Number of set bits in a bit array. */
export function countBits(words: Uint32Array): number {
  let count = 0;
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    if (word !== 0) count += popcount32(word);
  }
  return count;
}

/** Calls `run` with each maximal run of set bits below bit `bits`, in order. */
export function forEachRun(words: Uint32Array, bits: number, run: (first: number, count: number) => void): void {
  const end = Math.ceil(bits / 32);
  let start = -1;
  for (let i = 0; i < end; i++) {
    const word = words[i];
    if (start < 0 ? word === 0 : word === 0xffffffff) continue;
    for (let bit = 0; bit < 32; bit++) {
      const set = (word >>> bit) & 1;
      if (set && start < 0) start = i * 32 + bit;
      else if (!set && start >= 0) {
        run(start, i * 32 + bit - start);
        start = -1;
      }
    }
  }
  if (start >= 0) run(start, bits - start);
}
