import { countBits, popcount32 } from "../bitmap/dirty-bitmap.js";
import { RamBitmap } from "../bitmap/ram-bitmap.js";
import type { PageNumber } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";

/** What one tracker reported, in 4 KiB pages of RAM. */
export interface OwnerCounts {
  readonly reported: number;
  /** Of these, pages that no other tracker reported in the same read. */
  readonly exclusive: number;
  /** Milliseconds spent reading it. */
  readonly readMs: number;
}

/** The pages that one tracker reported in one read. */
export interface OwnerPages {
  readonly owner: string;
  readonly pages: RamBitmap;
  readonly readMs: number;
}

/** The name of a tracker's owner in the ledger and in reports: devices that share a domain are named as the domain. */
export function ledgerKey(owner: string): string {
  return owner.includes("+") ? `domain:${owner}` : owner;
}

/**
 * Who reported what, read by read. A domain that devices share is one owner: the dirty bits belong to it, and there is
 * no share per device.
 */
export class Ledger {
  readonly #reads: Readonly<Record<string, OwnerCounts>>[] = [];
  /** Per owner, all that it ever reported. */
  readonly #ever = new Map<string, RamBitmap>();
  readonly #once: RamBitmap;
  readonly #twice: RamBitmap;

  constructor(memory: GuestMemory) {
    this.#once = new RamBitmap(memory);
    this.#twice = new RamBitmap(memory);
  }

  /** Each read's counts per owner, in order. */
  get reads(): readonly Readonly<Record<string, OwnerCounts>>[] {
    return this.#reads;
  }

  /** Counts what the owners reported in one read, each owner once, and keeps the counts. */
  record(entries: readonly OwnerPages[]): Readonly<Record<string, OwnerCounts>> {
    this.#once.clear();
    this.#twice.clear();
    for (const { pages } of entries) {
      pages.arenas.forEach((words, arena) => {
        addOnceAndTwice(words, this.#once.arenas[arena], this.#twice.arenas[arena]);
      });
    }
    const counts: Record<string, OwnerCounts> = {};
    for (const { owner, pages, readMs } of entries) {
      let reported = 0;
      let shared = 0;
      pages.arenas.forEach((words, arena) => {
        reported += countBits(words);
        shared += countCommonBits(words, this.#twice.arenas[arena]);
      });
      const key = ledgerKey(owner);
      counts[key] = { reported, exclusive: reported - shared, readMs };
      const ever = this.#ever.get(key) ?? new RamBitmap(pages.memory);
      ever.or(pages);
      this.#ever.set(key, ever);
    }
    this.#reads.push(counts);
    return counts;
  }

  /** Who ever reported a page of an arena. */
  ownersOf(arena: number, page: PageNumber): string[] {
    const reported = ({ arenas }: RamBitmap) => ((arenas[arena][page >>> 5] >>> (page & 31)) & 1) === 1;
    return [...this.#ever].filter(([, pages]) => reported(pages)).map(([owner]) => owner);
  }

  /** The sums over all reads, per owner. */
  totals(): Record<string, OwnerCounts> {
    const sums: Record<string, OwnerCounts> = {};
    for (const read of this.#reads) {
      for (const [key, { reported, exclusive, readMs }] of Object.entries(read)) {
        const sum = sums[key] ?? { reported: 0, exclusive: 0, readMs: 0 };
        sums[key] = {
          reported: sum.reported + reported,
          exclusive: sum.exclusive + exclusive,
          readMs: sum.readMs + readMs,
        };
      }
    }
    return sums;
  }

  /**
   * The sums for one device. Pages are null where nobody can tell its share: it shares a domain, whose time of reading
   * is then given, or a container. All 0 for a device that nothing was read of.
   */
  device(id: string): { pagesReported: number | null; pagesExclusive: number | null; readMs: number } {
    const totals = this.totals();
    const own = totals[id];
    if (own !== undefined) {
      return { pagesReported: own.reported, pagesExclusive: own.exclusive, readMs: own.readMs };
    }
    for (const [key, { readMs }] of Object.entries(totals)) {
      if (key === "container" || (key.startsWith("domain:") && key.slice("domain:".length).split("+").includes(id))) {
        return { pagesReported: null, pagesExclusive: null, readMs };
      }
    }
    return { pagesReported: 0, pagesExclusive: 0, readMs: 0 };
  }
}

function addOnceAndTwice(words: Uint32Array, once: Uint32Array, twice: Uint32Array): void {
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    if (word === 0) continue;
    twice[i] |= once[i] & word;
    once[i] |= word;
  }
}

function countCommonBits(a: Uint32Array, b: Uint32Array): number {
  let count = 0;
  for (let i = 0; i < a.length; i++) {
    const word = a[i] & b[i];
    if (word !== 0) count += popcount32(word);
  }
  return count;
}
