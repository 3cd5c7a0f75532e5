import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createArena } from "../memory/arena.js";
import { RESULT_ANY, RESULT_FIRST_HOLE } from "./ioptes.js";
import { loadKernels } from "./kernels.js";
import { ioptesTwin } from "./twins/ioptes.js";

const RESULT = 64;
const TABLE = 4096;

/** Low halves as tables have them: empty ones, clean ones, dirty ones, and others, in runs. */
const lows = fc
  .array(
    fc.tuple(
      fc.constantFrom(0, 1, 0x41, 3, 0x203, 0x200, 0x80, 0x81, 0xe41, -1),
      fc.integer({ min: 1, max: 60 }),
      fc.integer(),
    ),
    { minLength: 1, maxLength: 40 },
  )
  .map((runs) =>
    runs.flatMap(([low, count, address]) => Array<number>(count).fill(low | (address & ~0xfff))).slice(0, 512),
  );

const masks = fc.constantFrom(
  { dirtyMask: 0x41, dirtyValue: 0x41, presentMask: 1, cleanAnd: ~0x40, cleanOr: 0 },
  { dirtyMask: 0x200, dirtyValue: 0x200, presentMask: 3, cleanAnd: ~0x200, cleanOr: 0 },
  { dirtyMask: 0x81, dirtyValue: 1, presentMask: 1, cleanAnd: -1, cleanOr: 0x80 },
  { dirtyMask: 0x81, dirtyValue: 1, presentMask: 0, cleanAnd: -1, cleanOr: 0x80 },
  { dirtyMask: 0x41, dirtyValue: 0x41, presentMask: 1, cleanAnd: -1, cleanOr: 0 },
);

describe("the kernels over I/O page-table entries", () => {
  it("leave an arena as it is when they are loaded over it", () => {
    const arena = createArena(65536);
    arena.u8.fill(0xa5);
    loadKernels(arena.memory);
    expect(arena.u8.every((byte) => byte === 0xa5)).toBe(true);
  });

  it("scan as their plain twin does", () => {
    const arena = createArena(65536);
    const other = createArena(65536);
    const kernels = loadKernels(arena.memory);
    const twin = ioptesTwin(other);
    fc.assert(
      fc.property(lows, masks, fc.nat({ max: 8 }), (entries, m, skew) => {
        for (const { i32 } of [arena, other]) {
          i32.fill(-1);
          entries.forEach((low, index) => {
            i32[TABLE / 4 + (skew + index) * 2] = low;
          });
        }
        const scan = (kernel: typeof kernels): number =>
          kernel.scanIoptes(
            TABLE + skew * 8,
            entries.length,
            RESULT,
            m.dirtyMask,
            m.dirtyValue,
            m.presentMask,
            m.cleanAnd,
            m.cleanOr,
          );
        expect(scan(kernels)).toBe(scan(twin));
        const block = RESULT / 4;
        const any = arena.i32[block + RESULT_ANY];
        const twinAny = other.i32[block + RESULT_ANY];
        if (arena.i32[block + RESULT_FIRST_HOLE] === entries.length) expect(any).toBe(twinAny);
        else expect(any & twinAny).toBe(twinAny);
        arena.i32[block + RESULT_ANY] = twinAny;
        expect(Buffer.compare(Buffer.from(arena.u8.slice()), Buffer.from(other.u8.slice()))).toBe(0);
      }),
    );
  });

  it("fill as their plain twin does, with the carry into the high half", () => {
    const arena = createArena(65536);
    const other = createArena(65536);
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 512 }),
        fc.integer(),
        fc.nat({ max: 0x7ffffff }),
        fc.constantFrom(4096, 2 ** 21, 2 ** 30, 2 ** 31),
        (count, low, high, step) => {
          for (const [target, kernel] of [
            [arena, loadKernels(arena.memory)],
            [other, ioptesTwin(other)],
          ] as const) {
            target.u8.fill(0);
            kernel.fillIoptes(TABLE, count, low, high, step);
          }
          expect(Buffer.compare(Buffer.from(arena.u8.slice()), Buffer.from(other.u8.slice()))).toBe(0);
        },
      ),
    );
  });
});
