/**
 * What the kernels over I/O page-table entries do: assembly/ioptes.ts in WebAssembly, twins/ioptes.ts in plain
 * TypeScript. Offsets are bytes in the arena that they were loaded over; an entry is 8 bytes, and all masks apply to its
 * low half.
 */
export interface IopteKernels {
  /**
   * Looks at `count` (1 to 512) entries from `at` on. An entry is dirty if (low & dirtyMask) === dirtyValue. Each dirty
   * one is made clean by atomic read-modify-writes, AND with `cleanAnd` unless that is -1, OR with `cleanOr` unless that
   * is 0: so -1 and 0 only look. Where `presentMask` isn't 0, the scan ends before the first entry with none of its bits.
   *
   * Writes the result block at `result` ({@link RESULT_BYTES}, aligned to 8): 16 words with a bit per entry, bit 0 for
   * the first; then the index of the first hole, or `count`; then the OR of the low halves (of the whole block of 32
   * where a hole ended the scan).
   * @returns the number of dirty entries
   */
  scanIoptes(
    at: number,
    count: number,
    result: number,
    dirtyMask: number,
    dirtyValue: number,
    presentMask: number,
    cleanAnd: number,
    cleanOr: number,
  ): number;
  /**
   * Writes `count` entries from `at` on: the first is high:low, each next one greater by `step` (carried into the high
   * half). Plain stores: only for a table that no device can reach yet.
   */
  fillIoptes(at: number, count: number, low: number, high: number, step: number): void;
}

/** Size of {@link IopteKernels.scanIoptes}' result block. */
export const RESULT_BYTES = 72;
/** Indices of its words after the 16 of the bitmap. */
export const RESULT_FIRST_HOLE = 16;
export const RESULT_ANY = 17;
