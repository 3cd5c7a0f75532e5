import { UsageError } from "../errors.js";
import { type Arena, createArena, openArena } from "../memory/arena.js";
import { noteAllocation } from "./allocations.js";
import { setBits } from "./bits.js";

/** From this many blocks on, one call that copies them all is faster than a loop over their words. */
const BULK_BLOCKS = 4;

/**
 * A log of dirty granules that writers on several threads mark while a reader reads and clears it: the log in the
 * memory of a device that tracks its own DMA, the vCPUs' dirty log, the tracker that mdevs share.
 *
 * Two levels: a bit per granule, and above it a bit per word of the first level that may have bits. A read costs what
 * is dirty, and one look at the second level: 1/1024 of the granules.
 *
 * Order, against a writer at that moment: the writer stores its data, sets the bit, then the bit above; the reader
 * takes the bit above, then the word. A writer that finds the bit set already does not set it again, so a read is
 * complete only once the writers' DMA in flight has drained ({@link InFlight}).
 */
export class SharedLog {
  readonly arena: Arena;
  readonly bits: number;
  /** Byte offset of the second level; the first is at 0. */
  readonly summary: number;
  readonly #words: Int32Array<SharedArrayBuffer>;

  private constructor(arena: Arena, bits: number) {
    this.arena = arena;
    this.bits = bits;
    this.summary = Math.ceil(bits / 32 / 16) * 64;
    this.#words = arena.i32;
  }

  /**
   * A log of `bits` granules, all clean.
   * @throws UsageError `MEMORY_DOES_NOT_FIT` above 2^32: a bit's number is split with 32-bit shifts
   */
  static create(bits: number): SharedLog {
    if (bits > 2 ** 32) {
      throw new UsageError(`a log of ${bits} granules is too long`, {
        code: "MEMORY_DOES_NOT_FIT",
        remedy: "a log holds up to 2^32 granules, 16 TiB at 4 KiB: choose a larger granule",
      });
    }
    const summary = Math.ceil(bits / 32 / 16) * 64;
    const bytes = summary + Math.ceil(summary / 4 / 32) * 4;
    const log = new SharedLog(createArena(bytes), bits);
    noteAllocation({ holder: log, kind: "log", bytes });
    return log;
  }

  /** The log of another thread: its arena's memory and its size were posted here. */
  static open(memory: WebAssembly.Memory, bits: number): SharedLog {
    return new SharedLog(openArena(memory), bits);
  }

  /** Writer's side, after the data is stored. Any number of threads. */
  mark(bit: number): void {
    const word = bit >>> 5;
    const mask = 1 << (bit & 31);
    if ((Atomics.load(this.#words, word) & mask) !== 0) return;
    Atomics.or(this.#words, word, mask);
    Atomics.or(this.#words, (this.summary >>> 2) + (word >>> 5), 1 << (word & 31));
  }

  /**
   * Reader's side: takes the bits [first, first + count) out of the log and adds them to `into`, bit `first` at
   * `intoBit`. What lies outside the range stays. Returns the number of bits taken. The caller then drains the writers.
   */
  readAndClear(first: number, count: number, into: Uint32Array, intoBit: number): number {
    const words = this.#words;
    const summaryAt = this.summary >>> 2;
    const last = first + count - 1;
    const firstWord = first >>> 5;
    const lastWord = last >>> 5;
    let taken = 0;
    for (let s = firstWord >>> 5; s <= lastWord >>> 5; s++) {
      if (Atomics.load(words, summaryAt + s) === 0) continue;
      let above = Atomics.exchange(words, summaryAt + s, 0);
      let keep = 0;
      while (above !== 0) {
        const bit = 31 - Math.clz32(above & -above);
        above &= above - 1;
        const word = s * 32 + bit;
        if (word < firstWord || word > lastWord) {
          keep |= 1 << bit;
          continue;
        }
        let mask = -1;
        if (word === firstWord) mask &= -1 << (first & 31);
        if (word === lastWord) mask &= -1 >>> (31 - (last & 31));
        const old = Atomics.and(words, word, ~mask);
        if ((old & ~mask) !== 0) keep |= 1 << bit;
        taken += addBits(into, intoBit + word * 32 - first, old & mask);
      }
      if (keep !== 0) Atomics.or(words, summaryAt + s, keep);
    }
    return taken;
  }

  /**
   * {@link readAndClear} for a log whose writers all run on the reader's thread: plain loads and stores, whole blocks at a
   * time, nothing counted.
   * @param into clean where these bits go: there they are set, not added
   */
  readAndClearAlone(first: number, count: number, into: Uint32Array, intoBit: number): void {
    const words = this.arena.u32;
    const summaryAt = this.summary >>> 2;
    // Blocks of 32 words that are wanted whole and fall on whole words go at the speed of memory; the rest does not.
    const firstBlock = Math.floor((first + 1023) / 1024);
    const endBlock = Math.floor((first + count) / 1024);
    if (((intoBit - first) & 31) !== 0 || firstBlock >= endBlock) {
      this.#moveWords(first, first + count, into, intoBit - first);
      return;
    }
    this.#moveWords(first, firstBlock * 1024, into, intoBit - first);
    const by = (intoBit - first) / 32;
    for (let block = firstBlock; block < endBlock; ) {
      if (words[summaryAt + block] === 0) {
        block++;
        continue;
      }
      const from = block;
      while (block < endBlock && words[summaryAt + block] !== 0) block++;
      if (block - from < BULK_BLOCKS) {
        this.#moveWords(from * 1024, block * 1024, into, intoBit - first);
        continue;
      }
      into.set(words.subarray(from * 32, block * 32), from * 32 + by);
      words.fill(0, from * 32, block * 32);
      words.fill(0, summaryAt + from, summaryAt + block);
    }
    this.#moveWords(endBlock * 1024, first + count, into, intoBit - first);
  }

  /** Moves bits [first, end) word by word, `by` bits on. */
  #moveWords(first: number, end: number, into: Uint32Array, by: number): void {
    if (first >= end) return;
    const words = this.arena.u32;
    const summaryAt = this.summary >>> 2;
    const shift = by & 31;
    const byWords = Math.floor(by / 32);
    const firstWord = Math.floor(first / 32);
    const lastWord = Math.floor((end - 1) / 32);
    for (let block = firstWord >>> 5; block <= lastWord >>> 5; block++) {
      if (words[summaryAt + block] === 0) continue;
      const to = Math.min(lastWord, block * 32 + 31);
      for (let word = Math.max(firstWord, block * 32); word <= to; word++) {
        let bits = words[word];
        if (bits === 0) continue;
        if (word === firstWord) bits &= -1 << (first & 31);
        if (word === lastWord) bits &= -1 >>> (31 - ((end - 1) & 31));
        words[word] &= ~bits;
        const target = word + byWords;
        // Below the first word there are only bits that were masked.
        if (target >= 0) into[target] |= bits << shift;
        if (shift !== 0 && target + 1 < into.length) into[target + 1] |= bits >>> (32 - shift);
      }
      // A block that was not taken whole keeps its mark: the summary may say too much, never too little.
      if (block * 1024 >= first && (block + 1) * 1024 <= end) words[summaryAt + block] = 0;
    }
  }
}

/** Adds the 32 bits of `word` at bit `at` (which may be negative where the low bits are clear). */
function addBits(into: Uint32Array, at: number, word: number): number {
  let taken = 0;
  while (word !== 0) {
    const low = 31 - Math.clz32(word & -word);
    let run = 1;
    while (low + run < 32 && ((word >>> (low + run)) & 1) === 1) run++;
    setBits(into, at + low, run);
    taken += run;
    if (run === 32) break;
    word &= ~(((1 << run) - 1) << low);
  }
  return taken;
}
