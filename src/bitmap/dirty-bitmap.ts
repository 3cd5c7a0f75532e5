import { hex, type Iova, iovaOf, isPowerOfTwo, PAGE_SIZE, type PageNumber, pageOf } from "../memory/address.js";
import { addressOf } from "../sys/address.js";
import { UapiError } from "../uapi/errno.js";
import { noteAllocation } from "./allocations.js";
import { clearTail, countBits, forEachRun, setBits } from "./bits.js";

/**
 * One bit per granule of an IOVA range; bit 0 is the granule at the range's first address, as in
 * struct iommu_hwpt_get_dirty_bitmap and struct vfio_device_feature_dma_logging_report (little-endian words).
 *
 * A read of a tracker adds bits to its caller's bitmap, and never clears any. The bitmap's memory is shared, page-aligned,
 * padded to a page, and owned by this library, so that a kernel or a worker may write it in place.
 */
export class DirtyBitmap {
  /** The range's first address. A multiple of the granule is not required. */
  readonly iova: Iova;
  /** Bytes per bit, a power of two. */
  readonly granule: number;
  /** Bits in use: the range's length over the granule, rounded up. */
  readonly bits: number;
  /** Bit i is bit i % 32 of word i / 32. Memory of the bitmap's own begins at a page and is padded to whole pages. */
  readonly words: Uint32Array<SharedArrayBuffer>;
  /** Address of the first word in this process; below 2^53, like every user-space address. */
  readonly address: number;

  /**
   * @param length bytes of the range, above 0
   * @param memory zeroed memory of the caller, at least as long as the bits, if the caller sends them from there. Default:
   * memory of the bitmap's own
   * @throws UapiError EINVAL if the granule is not a power of two, or the length is 0 or more than 2^37 granules
   * @throws RangeError if `memory` is too short
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

  /** Bytes of the range that the bits stand for: a multiple of the granule. */
  get length(): bigint {
    return BigInt(this.bits) * BigInt(this.granule);
  }

  /** True if the bit is set. @param bit 0 to {@link bits} - 1 */
  get(bit: number): boolean {
    return ((this.words[Math.floor(bit / 32)] >>> (bit & 31)) & 1) === 1;
  }

  /** Sets one bit. @param bit 0 to {@link bits} - 1 */
  set(bit: number): void {
    this.words[Math.floor(bit / 32)] |= 1 << (bit & 31);
  }

  /** Sets `count` bits from `first` on, which must lie inside the bitmap. */
  setRange(first: number, count: number): void {
    setBits(this.words, first, count);
  }

  /** Sets every bit: after an error from a tracker, all counts as dirty. */
  setAll(): void {
    setBits(this.words, 0, this.bits);
  }

  /** Clears every bit. */
  clear(): void {
    this.words.fill(0);
  }

  /**
   * Clears the bits that a kernel has set past the last one. The kernel sets bits in runs, so the first bit past the last one
   * tells whether there are any.
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

  /** Calls `run` with the first bit and the length of each maximal run of set bits, in ascending order. */
  forEachRun(run: (first: number, count: number) => void): void {
    forEachRun(this.words, this.bits, run);
  }

  /**
   * Adds another bitmap's bits. If the granules differ, bits are rounded outwards: a coarser bit sets all bits that it covers
   * here, and a finer bit sets the whole granule that holds it. Bits outside this bitmap's range are left out.
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

  /** Calls `run` with the first page and the number of pages of each run of dirty 4 KiB pages, rounded outwards. */
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
