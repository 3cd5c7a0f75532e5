/**
 * A 32-bit checksum of `count` words from the array's start (FNV-1a per word, in four lanes that hide the latency of
 * the multiplication). It finds torn and missing data; it is no protection against an attacker.
 */
export function checksumWords(words: Int32Array, count: number): number {
  let a = 0x811c9dc5 | 0;
  let b = 0x9dc5811c | 0;
  let c = 0x1c9dc581 | 0;
  let d = 0xc5811c9d | 0;
  const fours = count & ~3;
  for (let i = 0; i < fours; i += 4) {
    a = Math.imul(a ^ words[i], 0x01000193);
    b = Math.imul(b ^ words[i + 1], 0x01000193);
    c = Math.imul(c ^ words[i + 2], 0x01000193);
    d = Math.imul(d ^ words[i + 3], 0x01000193);
  }
  for (let i = fours; i < count; i++) a = Math.imul(a ^ words[i], 0x01000193);
  // Rotated by different amounts, so that exchanged lanes give another sum.
  return a ^ ((b << 7) | (b >>> 25)) ^ ((c << 14) | (c >>> 18)) ^ ((d << 21) | (d >>> 11));
}
