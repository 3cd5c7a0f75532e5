import { PAGE_SIZE, type PageNumber } from "../memory/address.js";

/** A stretch of guest pages. */
export interface PageSpan {
  readonly firstPage: PageNumber;
  readonly pages: number;
}

/** Where a writer's units go: each sequence number (from 1) to a slot, each slot to a page of its own. */
export interface SlotOrder {
  readonly slots: number;
  /** The stretches of pages that the slots lie in, as far as they are known as such. */
  readonly spans: readonly PageSpan[];
  readonly blockSlots: number;
  slotOf(sequence: number): number;
  pageOf(slot: number): PageNumber;
  /** The stretches of pages of the block that holds a slot. */
  blockOf(slot: number): PageSpan[];
  /** Where what a slot holds does not follow from the number of slots: what it holds after this sequence number. */
  places?(lastSequence: number): StampPlaces;
}

/** Per slot, its page and the number of the last unit in it; 0: none. */
export interface StampPlaces {
  readonly pages: Uint32Array;
  readonly sequences: Float64Array;
}

/**
 * Slots are shuffled inside blocks of at most this many, so that the product of an index and the multiplier below stays
 * an exact integer.
 */
const MAX_BLOCK = 65536;

/**
 * The buffers of a device or vCPU: a ring of slots of a page each, over the stretches of guest memory that are its own.
 * Slots lie scattered (a fixed permutation inside each block), because devices that write in order would never
 * show what a tracker does with scattered pages.
 */
export class BufferRing implements SlotOrder {
  readonly spans: readonly PageSpan[];
  readonly slots: number;
  /** Consecutive slots of which the pages lie together: what an mdev pins as one window. */
  readonly blockSlots: number;

  /**
   * @param spans disjoint; at least one page together
   * @param blockSlots from 1 to 65536
   */
  constructor(spans: readonly PageSpan[], blockSlots = MAX_BLOCK) {
    this.spans = spans;
    this.slots = spans.reduce((sum, { pages }) => sum + pages, 0);
    this.blockSlots = Math.min(blockSlots, MAX_BLOCK);
  }

  /** The slot that sequence number `sequence` (from 1) is written to. */
  slotOf(sequence: number): number {
    return sequence % this.slots;
  }

  /** The guest page of a slot. */
  pageOf(slot: number): PageNumber {
    const index = slot % this.blockSlots;
    const base = slot - index;
    const size = Math.min(this.blockSlots, this.slots - base);
    return this.#pageAt(base + ((index * scatter(size)) % size));
  }

  /** The stretches of pages of the block that holds `slot`. */
  blockOf(slot: number): PageSpan[] {
    let from = slot - (slot % this.blockSlots);
    let left = Math.min(this.blockSlots, this.slots - from);
    const block: PageSpan[] = [];
    for (const { firstPage, pages } of this.spans) {
      if (from < pages && left > 0) {
        const count = Math.min(left, pages - from);
        block.push({ firstPage: firstPage + from, pages: count });
        left -= count;
        from = 0;
      } else from -= pages;
    }
    return block;
  }

  get bytes(): number {
    return this.slots * PAGE_SIZE;
  }

  #pageAt(position: number): PageNumber {
    let rest = position;
    for (let i = 0; i < this.spans.length; i++) {
      const { firstPage, pages } = this.spans[i];
      if (rest < pages) return firstPage + rest;
      rest -= pages;
    }
    throw new RangeError(`position ${position} of a ring of ${this.slots} slots`);
  }
}

const scatterOf = new Map<number, number>();

/** A number coprime to `size` and near its golden section, whose multiples visit all of 0 … size - 1, far apart. */
function scatter(size: number): number {
  let multiplier = scatterOf.get(size);
  if (multiplier === undefined) {
    multiplier = Math.max(1, Math.round(size * 0.618));
    while (gcd(multiplier, size) !== 1) multiplier++;
    scatterOf.set(size, multiplier);
  }
  return multiplier;
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}
