import { UsageError } from "../errors.js";
import { type Arena, createArena, openArena } from "../memory/arena.js";
import { setBits } from "./bits.js";

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
    return new SharedLog(createArena(summary + Math.ceil(summary / 4 / 32) * 4), bits);
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
   * {@link readAndClear} for a log whose writers all run on the reader's thread: plain loads and stores, whole words at a
   * time, nothing counted.
   */
  readAndClearAlone(first: number, count: number, into: Uint32Array, intoBit: number): void {
    const words = this.#words;
    const summaryAt = this.summary >>> 2;
    const last = first + count - 1;
    const firstWord = Math.floor(first / 32);
    const lastWord = Math.floor(last / 32);
    const head = -1 << (first & 31);
    const tail = -1 >>> (31 - (last & 31));
    // Bit 0 of word w goes to bit `shift` of word w + `by`; what that shifts out goes to the next.
    const by = Math.floor((intoBit - first) / 32);
    const shift = (intoBit - first) & 31;
    for (let s = firstWord >>> 5; s <= lastWord >>> 5; s++) {
      if (words[summaryAt + s] === 0) continue;
      const from = Math.max(firstWord, s * 32);
      const to = Math.min(lastWord, s * 32 + 31);
      let kept = to - from < 31;
      for (let word = from; word <= to; word++) {
        const old = words[word];
        if (old === 0) continue;
        let bits = old;
        if (word === firstWord) bits &= head;
        if (word === lastWord) bits &= tail;
        words[word] = old & ~bits;
        kept ||= bits !== old;
        const target = word + by;
        // Below the first word there are only bits that were masked.
        if (target >= 0) into[target] |= bits << shift;
        if (shift !== 0 && target + 1 < into.length) into[target + 1] |= bits >>> (32 - shift);
      }
      // Where something is left, or was not looked at, the summary still says so: it may say too much, never too little.
      if (!kept) words[summaryAt + s] = 0;
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
