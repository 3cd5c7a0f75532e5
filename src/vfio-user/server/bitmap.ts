import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";

/** The longest bitmap that a client is given at once: 2 TiB at 4 KiB. */
export const MAX_BITMAP_BYTES = 64 * 2 ** 20;

/** Bytes of a range's bitmap on the wire, where it is made of u64s. */
export function bitmapBytes(length: bigint, granule: number): number {
  const bits = (length + BigInt(granule) - 1n) / BigInt(granule);
  return Number((bits + 63n) / 64n) * 8;
}

/**
 * A bitmap, all clean, in a reply that is being put together: it is sent from there.
 * @param at a multiple of 4 from the reply's start, with `bytes` behind it
 */
export function bitmapOver(
  reply: Uint8Array<SharedArrayBuffer>,
  at: number,
  range: { iova: bigint; length: bigint; granule: number },
  bytes: number,
): DirtyBitmap {
  reply.fill(0, at, at + bytes);
  return new DirtyBitmap(range, new Uint32Array(reply.buffer, reply.byteOffset + at, Math.floor(bytes / 4)));
}
