import { GATHER, type PageKernels } from "../pages.js";

/*
 * The kernels over pages in plain TypeScript, as clear as can be: what the tests compare assembly/pages.ts with.
 */

const PAGE = 4096;
const MASK = (1n << 64n) - 1n;
const PRIME_1 = 0x9e3779b185ebca87n;
const PRIME_2 = 0xc2b2ae3d27d4eb4fn;
const PRIME_3 = 0x165667b19e3779f9n;
const PRIME_4 = 0x85ebca77c2b2ae63n;
const PRIME_5 = 0x27d4eb2f165667c5n;

const rotateLeft = (value: bigint, bits: bigint) => ((value << bits) | (value >> (64n - bits))) & MASK;
const round = (lane: bigint, input: bigint) => (rotateLeft((lane + input * PRIME_2) & MASK, 31n) * PRIME_1) & MASK;

/** XXH64 with seed 0, step by step as its specification has it. */
export function xxh64(bytes: Uint8Array): bigint {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  let hash = PRIME_5;
  if (bytes.length >= 32) {
    const lanes = [(PRIME_1 + PRIME_2) & MASK, PRIME_2, 0n, -PRIME_1 & MASK];
    for (; at + 32 <= bytes.length; at += 32) {
      for (let lane = 0; lane < 4; lane++) lanes[lane] = round(lanes[lane], view.getBigUint64(at + lane * 8, true));
    }
    const rotations = [1n, 7n, 12n, 18n];
    hash = lanes.reduce((sum, lane, i) => (sum + rotateLeft(lane, rotations[i])) & MASK, 0n);
    for (const lane of lanes) hash = ((hash ^ round(0n, lane)) * PRIME_1 + PRIME_4) & MASK;
  }
  hash = (hash + BigInt(bytes.length)) & MASK;
  for (; at + 8 <= bytes.length; at += 8) {
    hash = (rotateLeft(hash ^ round(0n, view.getBigUint64(at, true)), 27n) * PRIME_1 + PRIME_4) & MASK;
  }
  for (; at + 4 <= bytes.length; at += 4) {
    const word = (BigInt(view.getUint32(at, true)) * PRIME_1) & MASK;
    hash = (rotateLeft(hash ^ word, 23n) * PRIME_2 + PRIME_3) & MASK;
  }
  for (; at < bytes.length; at++) {
    const byte = (BigInt(bytes[at]) * PRIME_5) & MASK;
    hash = (rotateLeft(hash ^ byte, 11n) * PRIME_1) & MASK;
  }
  hash = ((hash ^ (hash >> 33n)) * PRIME_2) & MASK;
  hash = ((hash ^ (hash >> 29n)) * PRIME_3) & MASK;
  return hash ^ (hash >> 32n);
}

/** The twins over an arena's bytes. */
export function pageTwins(memory: Uint8Array): PageKernels {
  const view = new DataView(memory.buffer, memory.byteOffset, memory.byteLength);
  const pageAt = (at: number) => memory.subarray(at, at + PAGE);
  const isZero = (at: number) => pageAt(at).every((byte) => byte === 0);
  const getWord = (at: number) => view.getUint32(at, true);
  const setWord = (at: number, value: number) => view.setUint32(at, value, true);
  const runsOf = (runs: number, count: number) =>
    Array.from({ length: count }, (_, i) => {
      const word = getWord(runs + i * 8 + 4);
      return { first: getWord(runs + i * 8), pages: word >>> 1, zero: (word & 1) === 1 };
    });

  return {
    xxh64: (at, bytes) => BigInt.asIntN(64, xxh64(memory.subarray(at, at + bytes))),

    gather(state, bitmap, page, end) {
      const word = (name: keyof typeof GATHER) => getWord(state + GATHER[name] * 4);
      const add = (name: keyof typeof GATHER) => setWord(state + GATHER[name] * 4, word(name) + 1);
      for (; page < end; page++) {
        if (((getWord(bitmap + (page >>> 5) * 4) >>> (page & 31)) & 1) === 0) continue;
        const zero = isZero(page * PAGE);
        if (!zero && word("dataPages") === word("maxDataPages")) return page;
        const last = runsOf(word("runsAt"), word("runs")).at(-1);
        const runAt = word("runsAt") + word("runs") * 8;
        if (last !== undefined && last.zero === zero && last.first + last.pages === page) {
          setWord(runAt - 4, (last.pages + 1) * 2 + Number(zero));
        } else {
          if (word("runs") === word("maxRuns")) return page;
          setWord(runAt, page);
          setWord(runAt + 4, 2 + Number(zero));
          add("runs");
        }
        if (zero) {
          add("zeroPages");
          continue;
        }
        const staged = word("dataAt") + word("dataPages") * PAGE;
        memory.copyWithin(staged, page * PAGE, (page + 1) * PAGE);
        view.setBigUint64(word("digestsAt") + word("dataPages") * 8, xxh64(pageAt(staged)), true);
        add("dataPages");
      }
      return end;
    },

    checkRuns(runs, count, ramPages) {
      const table = runsOf(runs, count);
      const all = table.reduce((sum, { pages }) => sum + pages, 0);
      if (all > ramPages || table.some(({ first, pages }) => pages === 0 || first + pages > ramPages)) return -1;
      return table.reduce((sum, { pages, zero }) => sum + (zero ? 0 : pages), 0);
    },

    pagesInRuns: (runs, count) => runsOf(runs, count).reduce((sum, { pages }) => sum + pages, 0),

    storeFrame(runs, count, digests, staging, table) {
      let data = 0;
      for (const { first, pages, zero } of runsOf(runs, count)) {
        if (zero) memory.fill(0, first * PAGE, (first + pages) * PAGE);
        else if (staging !== 0) memory.copyWithin(first * PAGE, staging + data * PAGE, staging + (data + pages) * PAGE);
        for (let page = first; page < first + pages; page++) {
          const digest = xxh64(pageAt(page * PAGE));
          view.setBigUint64(table + page * 8, digest, true);
          if (!zero && digest !== view.getBigUint64(digests + data * 8, true)) return page;
          if (!zero) data++;
        }
      }
      return -1;
    },

    digestPages(page, end, table) {
      for (; page < end; page++) view.setBigUint64(table + page * 8, xxh64(pageAt(page * PAGE)), true);
    },
  };
}
