/** One entry: a value for every key from `start` to `last`, inclusive, so that the top of the 64-bit space can be said. */
export interface Interval<K, V> {
  readonly start: K;
  readonly last: K;
  readonly value: V;
}

/**
 * A map from disjoint intervals to values: what is mapped where. Keys are page numbers, or addresses as bigints where
 * bytes matter.
 *
 * Invariant: entries are sorted by `start`, each has start <= last, and no two share a key. An array under binary
 * search: lookups are O(log n); inserting and deleting move the entries behind, which is cheap for the thousands of
 * mappings that an address space has.
 */
export class IntervalMap<K extends number | bigint, V> {
  readonly #entries: Interval<K, V>[] = [];

  get size(): number {
    return this.#entries.length;
  }

  /** All entries, by ascending start. Changing the map while iterating is not allowed. */
  [Symbol.iterator](): IterableIterator<Interval<K, V>> {
    return this.#entries[Symbol.iterator]();
  }

  /** The entry that holds `key`. O(log n) */
  at(key: K): Interval<K, V> | undefined {
    return this.firstIn(key, key);
  }

  /** The lowest entry that shares a key with [start, last]. O(log n) */
  firstIn(start: K, last: K): Interval<K, V> | undefined {
    const entry = this.#entries[this.#indexFrom(start)];
    return entry !== undefined && entry.start <= last ? entry : undefined;
  }

  /** The entries that share a key with [start, last], by ascending start. O(log n + entries) */
  in(start: K, last: K): Interval<K, V>[] {
    const from = this.#indexFrom(start);
    let to = from;
    while (to < this.#entries.length && this.#entries[to].start <= last) to++;
    return this.#entries.slice(from, to);
  }

  /** Adds an entry. @throws RangeError where start > last, or where another entry has one of the keys */
  insert(start: K, last: K, value: V): void {
    if (this.tryInsert(start, last, value)) return;
    const other = this.#entries[this.#indexFrom(start)];
    throw new RangeError(`${start} to ${last} overlaps ${other.start} to ${other.last}`);
  }

  /** Adds an entry, or returns false where another entry has one of the keys. O(log n) @throws RangeError where start > last */
  tryInsert(start: K, last: K, value: V): boolean {
    if (start > last) throw new RangeError(`an interval ends at ${last}, before its start ${start}`);
    const index = this.#indexFrom(start);
    if (index < this.#entries.length && this.#entries[index].start <= last) return false;
    this.#entries.splice(index, 0, { start, last, value });
    return true;
  }

  /** Removes the lowest entry that shares a key with [start, last], and returns it. O(log n) */
  deleteFirstIn(start: K, last: K): Interval<K, V> | undefined {
    const index = this.#indexFrom(start);
    const entry = this.#entries[index];
    if (entry === undefined || entry.start > last) return undefined;
    this.#entries.splice(index, 1);
    return entry;
  }

  /** Removes the entry that starts at `start` and returns it. */
  delete(start: K): Interval<K, V> | undefined {
    const index = this.#indexFrom(start);
    const entry = this.#entries[index];
    if (entry === undefined || entry.start !== start) return undefined;
    this.#entries.splice(index, 1);
    return entry;
  }

  clear(): void {
    this.#entries.length = 0;
  }

  /** Index of the first entry whose last key is at or behind `key`. */
  #indexFrom(key: K): number {
    let low = 0;
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#entries[middle].last < key) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** A part of an entry of an {@link IntervalMap}. */
export interface IntervalPart<V> {
  readonly value: V;
  readonly start: bigint;
  /** Inclusive. */
  readonly last: bigint;
  /** How far behind the entry's start it begins. */
  readonly skipped: bigint;
}

/** What entries hold of [start, last], from `start` on up to the first key that none has; `whole` if there is none. */
export function contiguousParts<V>(
  map: IntervalMap<bigint, V>,
  start: bigint,
  last: bigint,
): { parts: IntervalPart<V>[]; whole: boolean } {
  const parts: IntervalPart<V>[] = [];
  let expected = start;
  for (const entry of map.in(start, last)) {
    if (entry.start > expected) break;
    const end = entry.last < last ? entry.last : last;
    parts.push({ value: entry.value, start: expected, last: end, skipped: expected - entry.start });
    expected = end + 1n;
  }
  return { parts, whole: expected > last };
}
