import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { BitmapQuery, ObjectId } from "../../host/host.js";
import { type Iova, PAGE_SIZE, type PageNumber, pageOf } from "../../memory/address.js";
import type { ErrnoName } from "../../uapi/errno.js";
import type { DmaTarget } from "./connection.js";
import type { MappedDevice } from "./dma-mappings.js";
import type { Ioas } from "./ioas.js";

/** Pages per block of dirty bits: 128 MiB of memory take 4 KiB of bits, once something was written there. */
const BLOCK_PAGES = 32768;

/**
 * What devices whose DMA goes by messages are attached to: where their reads and writes go, and, with dirty tracking, where
 * it is noted what they wrote. This process is their IOMMU: a write is stored, then marked, then answered, in one go.
 */
export class Hwpt implements DmaTarget {
  readonly id: ObjectId;
  readonly ioas: Ioas;
  readonly dirtyTracking: boolean;
  /** Made by an attach to the IOAS; it ends with its last device. */
  readonly auto: boolean;
  readonly devices = new Set<MappedDevice>();
  #tracks = false;
  readonly #dirty = new Map<number, Uint32Array>();

  constructor(id: ObjectId, ioas: Ioas, { dirtyTracking, auto }: { dirtyTracking: boolean; auto: boolean }) {
    this.id = id;
    this.ioas = ioas;
    this.dirtyTracking = dirtyTracking;
    this.auto = auto;
  }

  read(address: Iova, into: Uint8Array): ErrnoName | null {
    return this.#reach(address, into.byteLength, "readable", (memory, done) => into.set(memory, done));
  }

  write(address: Iova, from: Uint8Array): ErrnoName | null {
    const refused = this.#reach(address, from.byteLength, "writeable", (memory, done) =>
      memory.set(from.subarray(done, done + memory.byteLength)),
    );
    if (refused === null && this.#tracks && from.byteLength > 0) {
      const last = pageOf(address + BigInt(from.byteLength) - 1n);
      for (let page = pageOf(address); page <= last; page++) this.#mark(page);
    }
    return refused;
  }

  /** Switching on clears what was dirty before. */
  setDirtyTracking(on: boolean): void {
    this.#dirty.clear();
    this.#tracks = on;
  }

  /** Adds what was written in [iova, last], of which all is mapped, to the bitmap. */
  readDirty(iova: Iova, last: Iova, { into, clear }: Pick<BitmapQuery, "into"> & { clear: boolean }): void {
    const first = pageOf(iova);
    const end = pageOf(last) + 1;
    for (const [block, bits] of this.#dirty) {
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

  /** Forgets what was written to pages that are mapped no more. */
  forget(iova: Iova, last: Iova): void {
    if (!this.#tracks) return;
    const end = pageOf(last) + 1;
    for (const [block, bits] of this.#dirty) {
      const base = block * BLOCK_PAGES;
      const to = Math.min(end, base + BLOCK_PAGES);
      for (let page = Math.max(pageOf(iova), base); page < to; page++) {
        bits[(page - base) >>> 5] &= ~(1 << ((page - base) & 31));
      }
    }
  }

  #mark(page: PageNumber): void {
    const block = Math.floor(page / BLOCK_PAGES);
    let bits = this.#dirty.get(block);
    if (bits === undefined) {
      bits = new Uint32Array(BLOCK_PAGES / 32);
      this.#dirty.set(block, bits);
    }
    const bit = page - block * BLOCK_PAGES;
    bits[bit >>> 5] |= 1 << (bit & 31);
  }

  /** All of a stretch is reached, or nothing. */
  #reach(
    address: Iova,
    bytes: number,
    way: "readable" | "writeable",
    use: (memory: Uint8Array, done: number) => void,
  ): ErrnoName | null {
    if (bytes === 0) return null;
    const { parts, whole } = this.ioas.contiguous(address, address + BigInt(bytes) - 1n);
    if (!whole) return "EFAULT";
    if (parts.some(({ area }) => !area[way])) return "EPERM";
    let done = 0;
    for (const { span } of parts) {
      use(span.arena.u8.subarray(span.offset, span.offset + span.length), done);
      done += span.length;
    }
    return null;
  }
}
