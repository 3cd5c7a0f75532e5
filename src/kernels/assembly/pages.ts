// Kernels over pages of guest memory; ../pages.ts says what each does. No kernel keeps state or data of its own.

import { digestOf, stageAndDigest } from "./xxh3";

const PAGE_SHIFT: u32 = 12;
const PAGE_SIZE: usize = 4096;

// Byte offsets of gather's state.
const RUNS: usize = 0;
const DATA_PAGES: usize = 4;
const ZERO_PAGES: usize = 8;
const MAX_RUNS: usize = 12;
const MAX_DATA_PAGES: usize = 16;
const RUNS_AT: usize = 20;
const DIGESTS_AT: usize = 24;
const DATA_AT: usize = 28;

const RUN_BYTES: usize = 8;
/** The digest of 4096 zero bytes. */
const ZERO_PAGE_DIGEST: u64 = 0x93d76fe148c689ba;
/** Bit 0 of a run's second word. */
const ZERO_RUN: u32 = 1;

/** Most pages that aren't zero say so in their first 64 bytes. */
function isZeroPage(at: usize): bool {
  const end = at + PAGE_SIZE;
  for (; at < end; at += 64) {
    const any = v128.or(v128.or(v128.load(at), v128.load(at, 16)), v128.or(v128.load(at, 32), v128.load(at, 48)));
    if (v128.any_true(any)) return false;
  }
  return true;
}

export function gather(state: usize, bitmap: usize, page: u32, end: u32): u32 {
  const runsAt: usize = load<u32>(state, RUNS_AT);
  const digestsAt: usize = load<u32>(state, DIGESTS_AT);
  const dataAt: usize = load<u32>(state, DATA_AT);
  const maxRuns = load<u32>(state, MAX_RUNS);
  const maxDataPages = load<u32>(state, MAX_DATA_PAGES);
  let runs = load<u32>(state, RUNS);
  let dataPages = load<u32>(state, DATA_PAGES);
  let zeroPages = load<u32>(state, ZERO_PAGES);

  while (page < end) {
    const marked = load<u32>(bitmap + ((page >> 5) << 2)) >> (page & 31);
    if (marked == 0) {
      page = (page | 31) + 1;
      continue;
    }
    page += ctz<u32>(marked);
    if (page >= end) break;

    const source = (<usize>page) << PAGE_SHIFT;
    // Looked at before it is staged, while devices may still write it: every byte was zero when it was read, which is
    // all that a copy would say, too; what is written later is dirty again.
    const zero: u32 = isZeroPage(source) ? ZERO_RUN : 0;
    if (zero == 0 && dataPages == maxDataPages) break;
    const last = runsAt + <usize>runs * RUN_BYTES - RUN_BYTES;
    const lastCount = runs == 0 ? 0 : load<u32>(last, 4);
    if (lastCount != 0 && (lastCount & ZERO_RUN) == zero && load<u32>(last) + (lastCount >> 1) == page) {
      store<u32>(last, lastCount + 2, 4);
    } else {
      if (runs == maxRuns) break;
      store<u32>(last + RUN_BYTES, page);
      store<u32>(last + RUN_BYTES, 2 | zero, 4);
      runs++;
    }
    if (zero != 0) {
      zeroPages++;
    } else {
      const staged = dataAt + ((<usize>dataPages) << PAGE_SHIFT);
      store<u64>(digestsAt + ((<usize>dataPages) << 3), stageAndDigest(source, staged));
      dataPages++;
    }
    page++;
  }
  store<u32>(state, runs, RUNS);
  store<u32>(state, dataPages, DATA_PAGES);
  store<u32>(state, zeroPages, ZERO_PAGES);
  return min(page, end);
}

export function checkRuns(runs: usize, count: u32, ramPages: u32): i32 {
  let allPages: u64 = 0;
  let dataPages: u32 = 0;
  for (let i: u32 = 0; i < count; i++, runs += RUN_BYTES) {
    const word = load<u32>(runs, 4);
    const pages = word >> 1;
    if (pages == 0 || <u64>load<u32>(runs) + <u64>pages > <u64>ramPages) return -1;
    allPages += pages;
    if ((word & ZERO_RUN) == 0) dataPages += pages;
  }
  // A page is in one run only; and a frame must not cost more than a look at all of RAM.
  return allPages > <u64>ramPages ? -1 : <i32>dataPages;
}

export function pagesInRuns(runs: usize, count: u32): u32 {
  let pages: u32 = 0;
  for (let i: u32 = 0; i < count; i++, runs += RUN_BYTES) pages += load<u32>(runs, 4) >> 1;
  return pages;
}

export function storeFrame(runs: usize, count: u32, digests: usize, staging: usize, table: usize): i32 {
  for (let i: u32 = 0; i < count; i++, runs += RUN_BYTES) {
    const word = load<u32>(runs, 4);
    let page = load<u32>(runs);
    const end = page + (word >> 1);
    if ((word & ZERO_RUN) != 0) {
      for (; page < end; page++) {
        const at = (<usize>page) << PAGE_SHIFT;
        // Reading first keeps memory that was never touched uncommitted.
        if (!isZeroPage(at)) memory.fill(at, 0, PAGE_SIZE);
        store<u64>(table + ((<usize>page) << 3), ZERO_PAGE_DIGEST);
      }
      continue;
    }
    if (staging != 0) {
      const bytes = (<usize>(end - page)) << PAGE_SHIFT;
      memory.copy((<usize>page) << PAGE_SHIFT, staging, bytes);
      staging += bytes;
    }
    for (; page < end; page++, digests += 8) {
      const digest = digestOf((<usize>page) << PAGE_SHIFT);
      store<u64>(table + ((<usize>page) << 3), digest);
      if (digest != load<u64>(digests)) return <i32>page;
    }
  }
  return -1;
}

export function digestPages(page: u32, end: u32, table: usize): void {
  for (; page < end; page++) {
    store<u64>(table + ((<usize>page) << 3), digestOf((<usize>page) << PAGE_SHIFT));
  }
}
