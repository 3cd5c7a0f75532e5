import type { Arena } from "../../memory/arena.js";
import { type IopteKernels, RESULT_ANY, RESULT_FIRST_HOLE } from "../ioptes.js";

/** The kernels over I/O page-table entries in plain TypeScript: what tests compare the WebAssembly with. */
export function ioptesTwin({ i32, u32 }: Arena): IopteKernels {
  return {
    scanIoptes(at, count, result, dirtyMask, dirtyValue, presentMask, cleanAnd, cleanOr) {
      const block = result >>> 2;
      i32.fill(0, block, block + RESULT_FIRST_HOLE);
      let dirty = 0;
      let any = 0;
      let index = 0;
      for (; index < count; index++) {
        const entry = (at >>> 2) + index * 2;
        const low = Atomics.load(i32, entry);
        if (presentMask !== 0 && (low & presentMask) === 0) break;
        any |= low;
        if ((low & dirtyMask) !== dirtyValue) continue;
        dirty++;
        i32[block + (index >>> 5)] |= 1 << (index & 31);
        if (cleanAnd !== -1) Atomics.and(i32, entry, cleanAnd);
        if (cleanOr !== 0) Atomics.or(i32, entry, cleanOr);
      }
      i32[block + RESULT_FIRST_HOLE] = index;
      i32[block + RESULT_ANY] = any;
      return dirty;
    },
    fillIoptes(at, count, low, high, step) {
      let entryLow = low >>> 0;
      let entryHigh = high >>> 0;
      for (let index = 0; index < count; index++) {
        const entry = (at >>> 2) + index * 2;
        u32[entry + 1] = entryHigh;
        u32[entry] = entryLow;
        entryLow += step;
        if (entryLow >= 2 ** 32) {
          entryLow -= 2 ** 32;
          entryHigh++;
        }
      }
    },
  };
}
