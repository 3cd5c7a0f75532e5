// XXH3-64 of a page with the default secret and seed 0: the long-input path for exactly 4096 bytes.
// https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md ("XXH3 Algorithm Overview")
//
// A page is four blocks of 16 stripes of 64 bytes. The specification goes stripe by stripe through 8 accumulators of 64
// bits; they do not depend on each other inside a block, so here each pair of them goes through the whole block at once.
// The secret stands in the code, since a kernel has no data of its own: KEY_k are its 16 bytes from 8 * k on.

const PRIME32_1: u64 = 0x9e3779b1;
const PRIME32_2: u64 = 0x85ebca77;
const PRIME32_3: u64 = 0xc2b2ae3d;
const PRIME64_1: u64 = 0x9e3779b185ebca87;
const PRIME64_2: u64 = 0xc2b2ae3d27d4eb4f;
const PRIME64_3: u64 = 0x165667b19e3779f9;
const PRIME64_4: u64 = 0x85ebca77c2b2ae63;
const PRIME64_5: u64 = 0x27d4eb2f165667c5;
const PRIME_MX1: u64 = 0x165667919e3779f9;

const PAGE_SIZE: u64 = 4096;
const BLOCKS: u32 = 4;
const BLOCK_BYTES: usize = 1024;

const KEY_0: v128 = i64x2(0xbe4ba423396cfeb8, 0x1cad21f72c81017c);
const KEY_1: v128 = i64x2(0x1cad21f72c81017c, 0xdb979083e96dd4de);
const KEY_2: v128 = i64x2(0xdb979083e96dd4de, 0x1f67b3b7a4a44072);
const KEY_3: v128 = i64x2(0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb);
const KEY_4: v128 = i64x2(0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82);
const KEY_5: v128 = i64x2(0x2172ffcc7dd05a82, 0x8e2443f7744608b8);
const KEY_6: v128 = i64x2(0x8e2443f7744608b8, 0x4c263a81e69035e0);
const KEY_7: v128 = i64x2(0x4c263a81e69035e0, 0xcb00c391bb52283c);
const KEY_8: v128 = i64x2(0xcb00c391bb52283c, 0xa32e531b8b65d088);
const KEY_9: v128 = i64x2(0xa32e531b8b65d088, 0x4ef90da297486471);
const KEY_10: v128 = i64x2(0x4ef90da297486471, 0xd8acdea946ef1938);
const KEY_11: v128 = i64x2(0xd8acdea946ef1938, 0x3f349ce33f76faa8);
const KEY_12: v128 = i64x2(0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9);
const KEY_13: v128 = i64x2(0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a);
const KEY_14: v128 = i64x2(0x3159b4cd4be0518a, 0x647378d9c97e9fc8);
const KEY_15: v128 = i64x2(0x647378d9c97e9fc8, 0xc3ebd33483acc5ea);
const KEY_16: v128 = i64x2(0xc3ebd33483acc5ea, 0xeb6313faffa081c5);
const KEY_17: v128 = i64x2(0xeb6313faffa081c5, 0x49daf0b751dd0d17);
const KEY_18: v128 = i64x2(0x49daf0b751dd0d17, 0x9e68d429265516d3);
const KEY_19: v128 = i64x2(0x9e68d429265516d3, 0xfca1477d58be162b);
const KEY_20: v128 = i64x2(0xfca1477d58be162b, 0xce31d07ad1b8f88f);
const KEY_21: v128 = i64x2(0xce31d07ad1b8f88f, 0x280416958f3acb45);
const KEY_22: v128 = i64x2(0x280416958f3acb45, 0x7e404bbbcafbd7af);
// The last stripe of the input has keys of its own: the 64 bytes from 121 on.
const LAST_0: v128 = i64x2(0xea647378d9c97e9f, 0xc5c3ebd33483acc5);
const LAST_1: v128 = i64x2(0x17eb6313faffa081, 0xd349daf0b751dd0d);
const LAST_2: v128 = i64x2(0x2b9e68d429265516, 0x8ffca1477d58be16);
const LAST_3: v128 = i64x2(0x45ce31d07ad1b8f8, 0xaf280416958f3acb);

/** Digests the page at `at`. */
export function digestOf(at: usize): u64 {
  return inline.always(digest(at, at, false));
}

/**
 * Copies the page at `at` to `to` and digests the copy: each byte is read once, so that what is digested is what was
 * stored, whatever is written to the page meanwhile.
 */
export function stageAndDigest(at: usize, to: usize): u64 {
  return inline.always(digest(at, to, true));
}

function digest(at: usize, to: usize, copy: bool): u64 {
  let a = i64x2(PRIME32_3, PRIME64_1);
  let b = i64x2(PRIME64_2, PRIME64_3);
  let c = i64x2(PRIME64_4, PRIME32_2);
  let d = i64x2(PRIME64_5, PRIME32_1);
  for (let block: u32 = 1; ; block++) {
    const more = block < BLOCKS;
    // biome-ignore format: the keys in a row
    a = inline.always(accumulate(a, at, to, copy, KEY_0, KEY_1, KEY_2, KEY_3, KEY_4, KEY_5, KEY_6, KEY_7, KEY_8, KEY_9, KEY_10, KEY_11, KEY_12, KEY_13, KEY_14, select<v128>(KEY_15, LAST_0, more)));
    // biome-ignore format: the keys in a row
    b = inline.always(accumulate(b, at + 16, to + 16, copy, KEY_2, KEY_3, KEY_4, KEY_5, KEY_6, KEY_7, KEY_8, KEY_9, KEY_10, KEY_11, KEY_12, KEY_13, KEY_14, KEY_15, KEY_16, select<v128>(KEY_17, LAST_1, more)));
    // biome-ignore format: the keys in a row
    c = inline.always(accumulate(c, at + 32, to + 32, copy, KEY_4, KEY_5, KEY_6, KEY_7, KEY_8, KEY_9, KEY_10, KEY_11, KEY_12, KEY_13, KEY_14, KEY_15, KEY_16, KEY_17, KEY_18, select<v128>(KEY_19, LAST_2, more)));
    // biome-ignore format: the keys in a row
    d = inline.always(accumulate(d, at + 48, to + 48, copy, KEY_6, KEY_7, KEY_8, KEY_9, KEY_10, KEY_11, KEY_12, KEY_13, KEY_14, KEY_15, KEY_16, KEY_17, KEY_18, KEY_19, KEY_20, select<v128>(KEY_21, LAST_3, more)));
    if (!more) break;
    a = inline.always(scramble(a, KEY_16));
    b = inline.always(scramble(b, KEY_18));
    c = inline.always(scramble(c, KEY_20));
    d = inline.always(scramble(d, KEY_22));
    at += BLOCK_BYTES;
    to += BLOCK_BYTES;
  }
  // The secret from byte 11 on.
  let hash = PAGE_SIZE * PRIME64_1;
  hash += merge(a, 0x6dd4de1cad21f72c, 0xa44072db979083e9);
  hash += merge(b, 0xe679cb1f67b3b7a4, 0xd05a8278e5c0cc4e);
  hash += merge(c, 0x4608b82172ffcc7d, 0x9035e08e2443f774);
  hash += merge(d, 0x52283c4c263a81e6, 0x65d088cb00c391bb);
  hash ^= hash >> 37;
  hash *= PRIME_MX1;
  return hash ^ (hash >> 32);
}

/** Takes 16 bytes of each of a block's 16 stripes into a pair of accumulators. */
// biome-ignore format: the keys in rows
function accumulate(
  acc: v128, at: usize, to: usize, copy: bool,
  k0: v128, k1: v128, k2: v128, k3: v128, k4: v128, k5: v128, k6: v128, k7: v128,
  k8: v128, k9: v128, k10: v128, k11: v128, k12: v128, k13: v128, k14: v128, k15: v128,
): v128 {
  // What is added to the other accumulator of the pair, summed up first and swapped once.
  let swapped = i64x2.splat(0);
  let x: v128;
  let y: v128;
  x = inline.always(take(at, to, copy, 0));
  y = inline.always(take(at, to, copy, 64));
  swapped = i64x2.add(swapped, i64x2.add(x, y));
  acc = i64x2.add(acc, inline.always(products(v128.xor(x, k0), v128.xor(y, k1))));
  x = inline.always(take(at, to, copy, 128));
  y = inline.always(take(at, to, copy, 192));
  swapped = i64x2.add(swapped, i64x2.add(x, y));
  acc = i64x2.add(acc, inline.always(products(v128.xor(x, k2), v128.xor(y, k3))));
  x = inline.always(take(at, to, copy, 256));
  y = inline.always(take(at, to, copy, 320));
  swapped = i64x2.add(swapped, i64x2.add(x, y));
  acc = i64x2.add(acc, inline.always(products(v128.xor(x, k4), v128.xor(y, k5))));
  x = inline.always(take(at, to, copy, 384));
  y = inline.always(take(at, to, copy, 448));
  swapped = i64x2.add(swapped, i64x2.add(x, y));
  acc = i64x2.add(acc, inline.always(products(v128.xor(x, k6), v128.xor(y, k7))));
  x = inline.always(take(at, to, copy, 512));
  y = inline.always(take(at, to, copy, 576));
  swapped = i64x2.add(swapped, i64x2.add(x, y));
  acc = i64x2.add(acc, inline.always(products(v128.xor(x, k8), v128.xor(y, k9))));
  x = inline.always(take(at, to, copy, 640));
  y = inline.always(take(at, to, copy, 704));
  swapped = i64x2.add(swapped, i64x2.add(x, y));
  acc = i64x2.add(acc, inline.always(products(v128.xor(x, k10), v128.xor(y, k11))));
  x = inline.always(take(at, to, copy, 768));
  y = inline.always(take(at, to, copy, 832));
  swapped = i64x2.add(swapped, i64x2.add(x, y));
  acc = i64x2.add(acc, inline.always(products(v128.xor(x, k12), v128.xor(y, k13))));
  x = inline.always(take(at, to, copy, 896));
  y = inline.always(take(at, to, copy, 960));
  swapped = i64x2.add(swapped, i64x2.add(x, y));
  acc = i64x2.add(acc, inline.always(products(v128.xor(x, k14), v128.xor(y, k15))));
  return i64x2.add(acc, v128.shuffle<i64>(swapped, swapped, 1, 0));
}

function take(at: usize, to: usize, copy: bool, offset: usize): v128 {
  const value = v128.load(at + offset);
  if (copy) v128.store(to + offset, value);
  return value;
}

/** Low half times high half of each 64 bits, of x plus of y. */
function products(x: v128, y: v128): v128 {
  const low = v128.shuffle<i32>(x, y, 0, 2, 4, 6);
  const high = v128.shuffle<i32>(x, y, 1, 3, 5, 7);
  return i64x2.add(i64x2.extmul_low_i32x4_u(low, high), i64x2.extmul_high_i32x4_u(low, high));
}

function scramble(acc: v128, key: v128): v128 {
  return i64x2.mul(v128.xor(v128.xor(acc, i64x2.shr_u(acc, 47)), key), i64x2.splat(PRIME32_1));
}

/** The 128-bit product of the pair, each xored with its part of the secret, folded to 64 bits. */
function merge(acc: v128, secret0: u64, secret1: u64): u64 {
  const x = <u64>i64x2.extract_lane(acc, 0) ^ secret0;
  const y = <u64>i64x2.extract_lane(acc, 1) ^ secret1;
  const xLow = x & 0xffffffff;
  const xHigh = x >> 32;
  const yLow = y & 0xffffffff;
  const yHigh = y >> 32;
  const low = xLow * yLow;
  const cross = xHigh * yLow + (low >> 32);
  const crossLow = xLow * yHigh + (cross & 0xffffffff);
  const high = xHigh * yHigh + (cross >> 32) + (crossLow >> 32);
  return high ^ ((crossLow << 32) | (low & 0xffffffff));
}
