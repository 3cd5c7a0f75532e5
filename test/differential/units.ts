import { U64_MAX } from "../../src/memory/address.js";

/**
 * The units of one host: addresses and lengths of a sequence are the kernel's, and are multiplied on the way in and
 * divided on the way out. The ends of the 64-bit space stay what they are, and addresses near its top keep their distance
 * from it, so that what overflows in one unit overflows in the other.
 */
export class Units {
  readonly factor: bigint;

  constructor(factor: number) {
    this.factor = BigInt(factor);
  }

  /** An address, or a length: below 2^61, or near 2^64. */
  in(value: bigint): bigint {
    if (this.factor === 1n || value < 1n << 61n) return value * this.factor;
    return U64_MAX + 1n - (U64_MAX + 1n - value) * this.factor - (value === U64_MAX ? 1n - this.factor : 0n);
  }

  /** The last address of a range. */
  lastIn(value: bigint): bigint {
    return value === U64_MAX ? U64_MAX : this.in(value + 1n) - 1n;
  }

  bytesIn(value: number): number {
    return Number(this.in(BigInt(value)));
  }

  /** @throws RangeError for what is no multiple of the factor */
  out(value: bigint): bigint {
    if (value > 1n << 62n && this.factor !== 1n) return U64_MAX + 1n - this.#divide(U64_MAX + 1n - value);
    return this.#divide(value);
  }

  lastOut(value: bigint): bigint {
    return value === U64_MAX ? U64_MAX : this.out(value + 1n) - 1n;
  }

  /** An alignment: 1 is no alignment, in any unit. */
  alignmentOut(value: number): number {
    return value === 1 ? 1 : Number(this.#divide(BigInt(value)));
  }

  #divide(value: bigint): bigint {
    if (value % this.factor !== 0n) throw new RangeError(`${value} is no multiple of ${this.factor}`);
    return value / this.factor;
  }
}

/** Math.max and Math.min, which take no bigint. */
export function larger(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}

export function smaller(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}
