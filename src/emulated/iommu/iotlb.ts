import type { PageNumber } from "../../memory/address.js";

/*
 * Flags of an entry, beside READ and WRITE of the leaf.
 */

/** The write is recorded in the leaf, or needs no recording. */
export const RECORDED = 4;
/** The page is in another device's BAR. */
export const PEER = 8;
/** The page is marked in the device's own log. */
export const LOGGED = 16;

/**
 * The translations that a port has cached. It is direct-mapped and holds 4 KiB translations, also of larger leaves. It
 * remembers that a leaf is dirty already ({@link RECORDED}), which is why clearing a dirty bit needs a flush.
 *
 * What holds: an entry hits only under the flush generation that it was filled under. The arrays are by slot, and say
 * something of a page only where {@link hits} has said so, or {@link fill} has just filled.
 */
export class Iotlb {
  /** The flush generation that translations are made under now; whoever flushes raises it, and all that is cached is stale. */
  generation = 0;
  readonly flags: Uint8Array;
  /** Index of the arena that a page lies in. */
  readonly arenas: Uint32Array;
  /** Of a page in its arena, in bytes. */
  readonly offsets: Uint32Array;
  readonly #mask: number;
  readonly #tags: Float64Array;
  readonly #generations: Int32Array;

  /** @param capacity entries; rounded down to a power of two */
  constructor(capacity: number) {
    const entries = 2 ** Math.floor(Math.log2(Math.max(1, capacity)));
    this.#mask = entries - 1;
    this.#tags = new Float64Array(entries).fill(-1);
    this.#generations = new Int32Array(entries);
    this.flags = new Uint8Array(entries);
    this.arenas = new Uint32Array(entries);
    this.offsets = new Uint32Array(entries);
  }

  /** The one slot that a page's translation can be in. */
  slotOf(page: PageNumber): number {
    return page & this.#mask;
  }

  /** Whether a slot holds the page's translation, with all of these flags. */
  hits(slot: number, page: PageNumber, flags: number): boolean {
    return (
      this.#tags[slot] === page && this.#generations[slot] === this.generation && (this.flags[slot] & flags) === flags
    );
  }

  /** Puts a page's translation into its slot, in place of what was there. */
  fill(slot: number, page: PageNumber, arena: number, offset: number, flags: number): void {
    this.#tags[slot] = page;
    this.#generations[slot] = this.generation;
    this.arenas[slot] = arena;
    this.offsets[slot] = offset;
    this.flags[slot] = flags;
  }

  /** Takes a flag away from all entries. */
  clearFlag(flag: number): void {
    for (let slot = 0; slot < this.flags.length; slot++) this.flags[slot] &= ~flag;
  }
}
