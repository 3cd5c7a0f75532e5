import { popcount32 } from "../bitmap/bits.js";
import { RamBitmap } from "../bitmap/ram-bitmap.js";
import type { PageNumber } from "../memory/address.js";
import { covers, type Owner, ownerName, parseOwner } from "./owner.js";

/** The number of 4 KiB pages of RAM that one tracker reported. */
export interface OwnerCounts {
  readonly reported: number;
  /** The pages among them that no other tracker reported in the same read. */
  readonly exclusive: number;
  /** Milliseconds spent reading the tracker. */
  readonly readMs: number;
}

/** The pages that one tracker reported in one read. */
export interface OwnerPages {
  readonly owner: Owner;
  readonly pages: RamBitmap;
  readonly readMs: number;
}

/**
 * The pages that each owner reported, read by read, by the owners' names. A domain that devices share is one owner, because
 * the dirty bits belong to it and there is no share per device.
 */
export class Ledger {
  readonly #reads: Readonly<Record<string, OwnerCounts>>[] = [];
  /** Per owner, all that it ever reported. */
  readonly #ever = new Map<string, RamBitmap>();

  /** The counts per owner of each read, in order. */
  get reads(): readonly Readonly<Record<string, OwnerCounts>>[] {
    return this.#reads;
  }

  /** Counts and keeps the pages that the owners reported in one read. Each owner is given once. */
  record(entries: readonly OwnerPages[]): Readonly<Record<string, OwnerCounts>> {
    const tally = { reported: entries.map(() => 0), shared: entries.map(() => 0) };
    const ever = entries.map(({ owner, pages }) => {
      const key = ownerName(owner);
      const known = this.#ever.get(key) ?? new RamBitmap(pages.memory);
      this.#ever.set(key, known);
      return known;
    });
    const arenas = entries[0]?.pages.arenas.length ?? 0;
    for (let arena = 0; arena < arenas; arena++) {
      const words = entries.map(({ pages }) => pages.arenas[arena]);
      const everWords = ever.map((pages) => pages.arenas[arena]);
      addTo(tally, words, everWords);
    }
    const counts: Record<string, OwnerCounts> = {};
    entries.forEach(({ owner, readMs }, index) => {
      const reported = tally.reported[index];
      counts[ownerName(owner)] = { reported, exclusive: reported - tally.shared[index], readMs };
    });
    this.#reads.push(counts);
    return counts;
  }

  /** Returns the owners that ever reported a page of an arena. */
  ownersOf(arena: number, page: PageNumber): string[] {
    const reported = ({ arenas }: RamBitmap) => ((arenas[arena][page >>> 5] >>> (page & 31)) & 1) === 1;
    return [...this.#ever].filter(([, pages]) => reported(pages)).map(([owner]) => owner);
  }

  /** Returns the sums over all reads, per owner. */
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
   * Returns the sums for one device. Pages are null if its share is unknown, because it shares a container or a domain.
   * `readMs` is then the domain's. All are 0 for a device of which nothing was read.
   */
  device(id: string): { pagesReported: number | null; pagesExclusive: number | null; readMs: number } {
    const totals = this.totals();
    const own = totals[id];
    if (own !== undefined) {
      return { pagesReported: own.reported, pagesExclusive: own.exclusive, readMs: own.readMs };
    }
    for (const [key, { readMs }] of Object.entries(totals)) {
      if (covers(parseOwner(key), id)) {
        return { pagesReported: null, pagesExclusive: null, readMs };
      }
    }
    return { pagesReported: 0, pagesExclusive: 0, readMs: 0 };
  }
}

/**
 * One pass over all owners' words side by side, since the last read's counting is downtime: per owner, bits that are set,
 * and bits that another has set too. Adds each owner's words to what it ever reported.
 */
function addTo(
  { reported, shared }: { reported: number[]; shared: number[] },
  owners: readonly Uint32Array[],
  ever: readonly Uint32Array[],
): void {
  const length = owners[0].length;
  for (let i = 0; i < length; i++) {
    let once = 0;
    let twice = 0;
    for (let owner = 0; owner < owners.length; owner++) {
      const word = owners[owner][i];
      twice |= once & word;
      once |= word;
    }
    if (once === 0) continue;
    for (let owner = 0; owner < owners.length; owner++) {
      const word = owners[owner][i];
      if (word === 0) continue;
      reported[owner] += popcount32(word);
      if ((word & twice) !== 0) shared[owner] += popcount32(word & twice);
      ever[owner][i] |= word;
    }
  }
}
