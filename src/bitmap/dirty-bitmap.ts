import { hex, type Iova, iovaOf, isPowerOfTwo, PAGE_SIZE, type PageNumber, pageOf } from "../memory/address.js";
import { addressOf } from "../sys/address.js";
import { UapiError } from "../uapi/errno.js";
import { noteAllocation } from "./allocations.js";
import { clearTail, countBits, forEachRun, setBits } from "./bits.js";

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
  /** Bit i is bit i % 32 of word i / 32. Its own memory is whole pages: they begin at one, and are longer than needed. */
  readonly words: Uint32Array<SharedArrayBuffer>;
  /** Of the first word, in this process; below 2^53, as every address of a user is. */
  readonly address: number;

  /**
   * @param length of the range in bytes, above 0
   * @param memory the caller's, zeroed and at least as long as the bits: for one who sends them from where they are put;
   * absent: memory of its own
   * @throws UapiError EINVAL for a granule that is no power of two, or a length of 0 or of more than 2^37 granules
   */
  constructor(
    { iova, length, granule }: { iova: Iova; length: bigint; granule: number },
    memory?: Uint32Array<SharedArrayBuffer>,
  ) {
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
    if (memory !== undefined) {
      if (memory.length * 32 < this.bits) throw new RangeError(`${this.bits} bits in ${memory.length} words`);
      this.words = memory;
      this.address = Number(addressOf(memory));
      return;
    }
    const bytes = Math.ceil(this.bits / 8 / PAGE_SIZE) * PAGE_SIZE;
    // Nothing aligns a SharedArrayBuffer to pages: one page more has room for that.
    const buffer = new SharedArrayBuffer(bytes + PAGE_SIZE);
    const start = Number(addressOf(new Uint8Array(buffer)));
    this.address = Math.ceil(start / PAGE_SIZE) * PAGE_SIZE;
    this.words = new Uint32Array(buffer, this.address - start, bytes / 4);
    noteAllocation({ holder: this, kind: "bitmap", bytes: buffer.byteLength });
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

  /**
   * Takes out what a kernel has set behind the last bit. It sets bits from some bit on without a break, so that the first
   * one behind tells whether there are any.
   */
  clearPadding(): void {
    if (this.bits === this.words.length * 32 || !this.get(this.bits)) return;
    clearTail(this.words, this.bits);
    this.words.fill(0, Math.ceil(this.bits / 32));
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
    // Bytes from this bitmap's start, in numbers: there may be millions of runs.
    const offset = other.iova - this.iova;
    const { granule, bits } = this;
    if (isExact(offset) && isExact(this.length) && isExact(offset + other.length)) {
      const start = Number(offset);
      other.forEachRun((first, count) => {
        const from = Math.max(0, start + first * other.granule);
        const to = Math.min(bits * granule, start + (first + count) * other.granule);
        if (from >= to) return;
        const firstBit = Math.floor(from / granule);
        this.setRange(firstBit, Math.floor((to - 1) / granule) - firstBit + 1);
      });
      return;
    }
    const end = this.iova + this.length;
    other.forEachRun((first, count) => {
      let from = other.iova + BigInt(first) * BigInt(other.granule);
      let to = from + BigInt(count) * BigInt(other.granule);
      if (from < this.iova) from = this.iova;
      if (to > end) to = end;
      if (from >= to) return;
      const firstBit = Number((from - this.iova) / BigInt(granule));
      const lastBit = Number((to - 1n - this.iova) / BigInt(granule));
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

/** True for a number of bytes that a number holds exactly. */
function isExact(bytes: bigint): boolean {
  return bytes >= -BigInt(Number.MAX_SAFE_INTEGER) && bytes <= BigInt(Number.MAX_SAFE_INTEGER);
}
