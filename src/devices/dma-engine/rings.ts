import { PAGE_SHIFT, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { MAX_RING_ENTRIES } from "./spec.js";

/** Pages that there are on the bus: 2^64 bytes. */
const PAGES = 2 ** 52;

/**
 * A ring of entries in guest memory, from the beginning of a page on. Who puts in owns the tail, who takes out the head; it
 * is empty where they are equal, and full with one entry less than it has.
 */
export class Ring {
  readonly #entryBytes: number;
  page: PageNumber = 0;
  entries = 0;
  head = 0;
  tail = 0;

  /** @param entryBytes divides a page, so that no entry crosses into the next */
  constructor(entryBytes: number) {
    this.#entryBytes = entryBytes;
  }

  /** It can be: this many entries, all of them on the bus. */
  get isPossible(): boolean {
    if (this.entries < 2 || this.entries > MAX_RING_ENTRIES) return false;
    return this.page + Math.ceil((this.entries * this.#entryBytes) / PAGE_SIZE) <= PAGES;
  }

  /** Entries that were put in and not taken out. */
  get waiting(): number {
    return (this.tail - this.head + this.entries) % this.entries;
  }

  /** True where another entry can be put in. */
  get hasRoom(): boolean {
    return (this.tail + 1) % this.entries !== this.head;
  }

  /** Where an entry lies. */
  place(index: number): { page: PageNumber; offset: number } {
    const at = index * this.#entryBytes;
    return { page: this.page + (at >> PAGE_SHIFT), offset: at % PAGE_SIZE };
  }

  next(index: number): number {
    return (index + 1) % this.entries;
  }
}
