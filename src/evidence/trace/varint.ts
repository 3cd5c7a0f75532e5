/*
 * Numbers of 0 to 2^53 - 1 as LEB128: seven bits a byte, the lowest first, the high bit set in all bytes but the last.
 */

/** The most bytes that a number takes. */
export const MAX_VARINT_BYTES = 8;

/** Writes a number at an offset and returns the offset behind it. */
export function putVarint(bytes: Uint8Array, at: number, value: number): number {
  let rest = value;
  while (rest >= 0x80) {
    bytes[at++] = (rest % 0x80) | 0x80;
    rest = Math.floor(rest / 0x80);
  }
  bytes[at++] = rest;
  return at;
}

/** Takes numbers out of bytes that may be damaged. */
export class VarintReader {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** True where nothing is left. */
  get done(): boolean {
    return this.#at >= this.#bytes.length;
  }

  /** The next number; undefined where the bytes end in it, or it is none of 0 to 2^53 - 1. */
  next(): number | undefined {
    let value = 0;
    let scale = 1;
    for (let i = 0; i < MAX_VARINT_BYTES && this.#at < this.#bytes.length; i++) {
      const byte = this.#bytes[this.#at++];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value <= Number.MAX_SAFE_INTEGER ? value : undefined;
      scale *= 0x80;
    }
    return undefined;
  }
}
