import type { Iova } from "../memory/address.js";
import type { ArenaHolds } from "../memory/holds.js";
import { type Interval, IntervalMap } from "../memory/interval-map.js";

/**
 * What memory of this process one IOAS maps, and so holds.
 *
 * It follows the kernel: an entry is made when the kernel has mapped, and goes when the kernel has unmapped. Where the
 * two could differ, the kernel's word counts and nothing is refused: a new mapping at an address proves that an older one
 * there is gone. Files are not in it, since the kernel itself holds the file.
 */
export class Mappings {
  readonly #held = new IntervalMap<bigint, ArenaHolds>();

  /** The kernel maps `length` bytes of the arena from `iova` on. A hold, which the caller has taken, is now this table's. */
  add(iova: Iova, length: bigint, holds: ArenaHolds): void {
    const last = iova + length - 1n;
    if (this.#held.tryInsert(iova, last, holds)) return;
    this.remove(iova, last);
    this.#held.insert(iova, last, holds);
  }

  /** The kernel maps nothing from `start` to `last` any more. */
  remove(start: Iova, last: Iova): void {
    for (let from = start; ; ) {
      const entry = this.#held.deleteFirstIn(from, last);
      if (entry === undefined) return;
      entry.value.release();
      if (entry.last >= last) return;
      from = entry.last + 1n;
    }
  }

  /** The kernel maps nothing at all any more. */
  clear(): void {
    for (const { value } of this.#held) value.release();
    this.#held.clear();
  }

  /** The kernel has copied `length` bytes at `iova` to `to` of another table, or of this one. */
  copyTo(target: Mappings, { iova, length, to }: { iova: Iova; length: bigint; to: Iova }): void {
    const end = iova + length;
    for (const { start, last, value } of this.in(iova, end - 1n)) {
      let from = start;
      let until = last + 1n;
      if (from < iova) from = iova;
      if (until > end) until = end;
      value.take();
      target.add(to + (from - iova), until - from, value);
    }
  }

  /** The mappings that have an address from `start` to `last`, ascending. */
  in(start: Iova, last: Iova): readonly Interval<bigint, ArenaHolds>[] {
    return this.#held.in(start, last);
  }

  get empty(): boolean {
    return this.#held.size === 0;
  }
}
