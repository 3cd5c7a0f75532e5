/**
 * What the kernels over pages of guest memory do: assembly/pages.ts in WebAssembly, twins/pages.ts in plain TypeScript.
 * Addresses are byte offsets in the arena that they were loaded over; pages are the arena's, of 4096 bytes. Digests are
 * XXH3-64 with seed 0 and the default secret, 8 bytes each; a table of digests has one per page of RAM.
 *
 * A run is two words: first page, and number of pages * 2 + 1 where all are zero, + 0 where their data follows.
 */
export interface PageKernels {
  /**
   * Goes through the pages [page, end) that `bitmap` marks (bit i: page i) and adds each to the frame that `state`
   * ({@link GATHER_WORDS}) describes: an all-zero page to a zero run; any other is copied to the next free page of
   * staging, digested on the way, and added to a data run. Runs go on from the frame's last where they can.
   * @returns `end`, or the page to continue with in the next frame, where this one is full
   */
  gather(state: number, bitmap: number, page: number, end: number): number;
  /**
   * Checks a run table that came from outside.
   * @returns the pages of data that it names, or -1 where a run is empty or leaves the RAM, or all runs together exceed it
   */
  checkRuns(runs: number, count: number, ramPages: number): number;
  /** The pages that a checked run table names, of data and of zeroes. */
  pagesInRuns(runs: number, count: number): number;
  /**
   * Stores a frame whose run table was checked: makes zero runs' pages zero and, unless `staging` is 0, copies the data
   * runs' pages from there; then digests each page of data where it now lies, compares with the frame's `digests`,
   * and notes it in `table`.
   * @returns -1, or the first page whose digest differs
   */
  storeFrame(runs: number, count: number, digests: number, staging: number, table: number): number;
  /** Digests the pages [page, end) into `table`, which is indexed by page. */
  digestPages(page: number, end: number, table: number): void;
}

/** The words of the state of {@link PageKernels.gather}, in units of 4 bytes: the first three are the frame's so far. */
export const GATHER = {
  runs: 0,
  dataPages: 1,
  zeroPages: 2,
  maxRuns: 3,
  maxDataPages: 4,
  /** Byte offsets of the run table, the digests and the staging pages. */
  runsAt: 5,
  digestsAt: 6,
  dataAt: 7,
} as const;
export const GATHER_WORDS = 8;

/** The digest of 4096 zero bytes. */
export const ZERO_PAGE_DIGEST = 0x93d76fe148c689ban;
