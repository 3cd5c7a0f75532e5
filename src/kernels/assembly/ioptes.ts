// Kernels over I/O page-table entries (8 bytes, little-endian). Their contract is in ../ioptes.ts; the plain TypeScript
// twin is ../twins/ioptes.ts. No static data and no heap: this module is instantiated over arenas full of page tables.

/** Byte offsets in the result block: see ../ioptes.ts. */
const FIRST_HOLE: u32 = 64;
const ANY: u32 = 68;

export function scanIoptes(
  at: u32,
  count: u32,
  result: u32,
  dirtyMask: i32,
  dirtyValue: i32,
  presentMask: i32,
  cleanAnd: i32,
  cleanOr: i32,
): u32 {
  const mask = i32x4.splat(dirtyMask);
  const value = i32x4.splat(dirtyValue);
  const present = i32x4.splat(presentMask);
  const zero = i32x4.splat(0);
  let any = zero;
  let dirty: u32 = 0;
  let i: u32 = 0;
  let hole = count;
  memory.fill(result, 0, 64);
  for (; i + 32 <= count; i += 32) {
    let p = at + (i << 3);
    let all = i32x4.splat(-1);
    let word: u32 = 0;
    for (let half: u32 = 0; half < 32; half += 16) {
      const a = v128.shuffle<i32>(v128.load(p), v128.load(p, 16), 0, 2, 4, 6);
      const b = v128.shuffle<i32>(v128.load(p, 32), v128.load(p, 48), 0, 2, 4, 6);
      const c = v128.shuffle<i32>(v128.load(p, 64), v128.load(p, 80), 0, 2, 4, 6);
      const d = v128.shuffle<i32>(v128.load(p, 96), v128.load(p, 112), 0, 2, 4, 6);
      all = v128.and(all, v128.and(v128.and(a, b), v128.and(c, d)));
      any = v128.or(any, v128.or(v128.or(a, b), v128.or(c, d)));
      const ab = i16x8.narrow_i32x4_s(i32x4.eq(v128.and(a, mask), value), i32x4.eq(v128.and(b, mask), value));
      const cd = i16x8.narrow_i32x4_s(i32x4.eq(v128.and(c, mask), value), i32x4.eq(v128.and(d, mask), value));
      word |= (<u32>i8x16.bitmask(i8x16.narrow_i16x8_s(ab, cd))) << half;
      p += 128;
    }
    // A lane that keeps one present bit in common over its 8 entries has no hole; where it keeps none, look closer.
    if (presentMask != 0 && v128.any_true(i32x4.eq(v128.and(all, present), zero))) {
      hole = firstHole(at, i, 32, presentMask);
      if (hole < i + 32) {
        word &= (1 << (hole & 31)) - 1;
      } else {
        hole = count;
      }
    }
    if (word != 0) {
      store<u32>(result + (i >> 3), word);
      dirty += popcnt(word);
      clean(at + (i << 3), word, cleanAnd, cleanOr);
    }
    if (hole != count) {
      i = count;
      break;
    }
  }
  let kinds =
    i32x4.extract_lane(any, 0) | i32x4.extract_lane(any, 1) | i32x4.extract_lane(any, 2) | i32x4.extract_lane(any, 3);
  if (i < count) {
    let word: u32 = 0;
    for (let j = i; j < count; j++) {
      const low = load<i32>(at + (j << 3));
      if (presentMask != 0 && (low & presentMask) == 0) {
        hole = j;
        break;
      }
      kinds |= low;
      word |= (<u32>((low & dirtyMask) == dirtyValue)) << (j & 31);
    }
    if (word != 0) {
      store<u32>(result + (i >> 3), word);
      dirty += popcnt(word);
      clean(at + (i << 3), word, cleanAnd, cleanOr);
    }
  }
  store<u32>(result, hole, FIRST_HOLE);
  store<i32>(result, kinds, ANY);
  return dirty;
}

function firstHole(at: u32, from: u32, count: u32, presentMask: i32): u32 {
  for (let j = from; j < from + count; j++) {
    if ((load<i32>(at + (j << 3)) & presentMask) == 0) return j;
  }
  return from + count;
}

function clean(at: u32, word: u32, cleanAnd: i32, cleanOr: i32): void {
  let left = word;
  while (left != 0) {
    const entry = at + (ctz(left) << 3);
    if (cleanAnd != -1) atomic.and<i32>(entry, cleanAnd);
    if (cleanOr != 0) atomic.or<i32>(entry, cleanOr);
    left &= left - 1;
  }
}

export function fillIoptes(at: u32, count: u32, low: u32, high: u32, step: u32): void {
  let entry = ((<u64>high) << 32) | <u64>low;
  const end = at + (count << 3);
  for (let p = at; p != end; p += 8) {
    store<u64>(p, entry);
    entry += <u64>step;
  }
}
