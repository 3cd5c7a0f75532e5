import type { BitmapQuery, ObjectId } from "../../host/host.js";
import type { Iova } from "../../memory/address.js";
import type { ErrnoName } from "../../uapi/errno.js";
import type { DmaTarget } from "./connection.js";
import type { MappedDevice } from "./dma-mappings.js";
import type { Ioas } from "./ioas.js";
import { WrittenPages } from "./written-pages.js";

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
  readonly #dirty = new WrittenPages();

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
    if (refused === null && this.#tracks) this.#dirty.add(address, from.byteLength);
    return refused;
  }

  /** Switching on clears what was dirty before. */
  setDirtyTracking(on: boolean): void {
    this.#dirty.clear();
    this.#tracks = on;
  }

  /** Adds what was written in [iova, last], of which all is mapped, to the bitmap. */
  readDirty(iova: Iova, last: Iova, { into, clear }: Pick<BitmapQuery, "into"> & { clear: boolean }): void {
    this.#dirty.read(iova, last, { into, clear });
  }

  /** Forgets what was written to pages that are mapped no more. */
  forget(iova: Iova, last: Iova): void {
    if (this.#tracks) this.#dirty.forget(iova, last);
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
