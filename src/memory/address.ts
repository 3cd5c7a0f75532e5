/**
 * Addresses. At interfaces a 64-bit address is a branded bigint; inside, hot code counts 4 KiB pages in numbers, which
 * are exact up to 2^52 pages, the whole 64-bit space.
 */

declare const iovaBrand: unique symbol;

/** An I/O virtual address: what a device puts on the bus. 0 to 2^64 - 1. */
export type Iova = bigint & { readonly [iovaBrand]?: never };

/** An address in units of 4 KiB. */
export type PageNumber = number;

export const PAGE_SHIFT = 12;
/** Bytes per page, of guest memory and wherever pages are counted. */
export const PAGE_SIZE = 1 << PAGE_SHIFT;
/** Bytes. */
export const KiB = 1024;
/** Bytes. */
export const MiB = 1024 * KiB;
/** Bytes. */
export const GiB = 1024 * MiB;
/** Bytes. */
export const TiB = 1024 * GiB;

/** The largest 64-bit address. */
export const U64_MAX = (1n << 64n) - 1n;

/** Returns the page that holds an address. */
export function pageOf(iova: Iova): PageNumber {
  return Number(iova >> 12n);
}

/** Returns the first address of a page. */
export function iovaOf(page: PageNumber): Iova {
  return BigInt(page) << 12n;
}

/** True for 1, 2, 4, 8 … (numbers up to 2^53 and bigints alike). */
export function isPowerOfTwo(value: number | bigint): boolean {
  const n = BigInt(value);
  return n > 0n && (n & (n - 1n)) === 0n;
}

/** `0x`-prefixed hexadecimal, for messages. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
