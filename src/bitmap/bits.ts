/*
 * Bit arrays: bit i is bit i % 32 of word i / 32, as in the kernel's bitmaps on a little-endian machine.
 */

/** Sets `count` bits of a little-endian bit array from `first` on. */
export function setBits(words: Uint32Array, first: number, count: number): void {
  if (count <= 0) return;
  const last = first + count - 1;
  const firstWord = Math.floor(first / 32);
  const lastWord = Math.floor(last / 32);
  const head = -1 << (first & 31);
  const tail = -1 >>> (31 - (last & 31));
  if (firstWord === lastWord) {
    words[firstWord] |= head & tail;
    return;
  }
  words[firstWord] |= head;
  words.fill(0xffffffff, firstWord + 1, lastWord);
  words[lastWord] |= tail;
}

/** Clears what lies at and above bit `bits` in the word that holds it. */
export function clearTail(words: Uint32Array, bits: number): void {
  if ((bits & 31) !== 0) words[Math.floor(bits / 32)] &= -1 >>> (32 - (bits & 31));
}

/** Number of set bits in a word (Hacker's Delight, figure 5-2). */
export function popcount32(value: number): number {
  let v = value - ((value >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** Number of set bits in a bit array. */
export function countBits(words: Uint32Array): number {
  let count = 0;
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    if (word !== 0) count += popcount32(word);
  }
  return count;
}

/** Number of set bits among `count` of a bit array, from `first` on. */
export function countBitsIn(words: Uint32Array, first: number, count: number): number {
  if (count <= 0) return 0;
  const last = first + count - 1;
  const firstWord = Math.floor(first / 32);
  const lastWord = Math.floor(last / 32);
  const head = -1 << (first & 31);
  const tail = -1 >>> (31 - (last & 31));
  if (firstWord === lastWord) return popcount32(words[firstWord] & head & tail);
  let found = popcount32(words[firstWord] & head) + popcount32(words[lastWord] & tail);
  for (let i = firstWord + 1; i < lastWord; i++) {
    const word = words[i];
    if (word !== 0) found += popcount32(word);
  }
  return found;
}

/**
 * Calls `run` with the first bit and the length of each maximal run of set bits below bit `bits`, in ascending order.
 * @param words bit i is bit i % 32 of word i / 32
 */
export function forEachRun(words: Uint32Array, bits: number, run: (first: number, count: number) => void): void {
  const end = Math.ceil(bits / 32);
  let start = -1;
  for (let i = 0; i < end; i++) {
    const word = words[i];
    if (start < 0 ? word === 0 : word === 0xffffffff) continue;
    for (let bit = 0; bit < 32; bit++) {
      const set = (word >>> bit) & 1;
      if (set && start < 0) start = i * 32 + bit;
      else if (!set && start >= 0) {
        run(start, i * 32 + bit - start);
        start = -1;
      }
    }
  }
  if (start >= 0) run(start, bits - start);
}

/** True if all of `count` bits from `first` on are set. */
export function areSet(words: Uint32Array, first: number, count: number): boolean {
  for (let bit = first; bit < first + count; ) {
    const bits = Math.min(32 - (bit & 31), first + count - bit);
    const mask = (-1 >>> (32 - bits)) << (bit & 31);
    if ((words[Math.floor(bit / 32)] & mask) !== mask) return false;
    bit += bits;
  }
  return true;
}
