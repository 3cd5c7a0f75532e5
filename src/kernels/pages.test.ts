import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createArena } from "../memory/arena.js";
import { loadKernels } from "./kernels.js";
import { GATHER, GATHER_WORDS, ZERO_PAGE_DIGEST } from "./pages.js";
import { pageTwins } from "./twins/pages.js";
import { xxh3 } from "./twins/xxh3.js";

const PAGE = 4096;
const RAM_PAGES = 96;
/** Scratch behind the RAM. */
const AT = {
  bitmap: RAM_PAGES * PAGE,
  state: RAM_PAGES * PAGE + 4096,
  runs: RAM_PAGES * PAGE + 2 * 4096,
  digests: RAM_PAGES * PAGE + 4 * 4096,
  table: RAM_PAGES * PAGE + 5 * 4096,
  staging: RAM_PAGES * PAGE + 6 * 4096,
};
const BYTES = (RAM_PAGES + 6 + RAM_PAGES) * PAGE;

function sides() {
  return [createArena(BYTES), createArena(BYTES)].map((arena, index) => ({
    u8: arena.u8,
    u32: arena.u32,
    kernels: index === 0 ? loadKernels(arena.memory) : pageTwins(arena.u8),
  }));
}

/** Per page: 0 all zero, else filled from that seed; the last kind differs from zero in its last byte only. */
const content = fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 1000 }), fc.constant(-1)), {
  minLength: RAM_PAGES,
  maxLength: RAM_PAGES,
});

function fill(u8: Uint8Array, pages: readonly number[]): void {
  pages.forEach((seed, page) => {
    const at = page * PAGE;
    if (seed === -1) u8[at + PAGE - 1] = 1;
    else for (let i = 0; seed > 0 && i < PAGE; i++) u8[at + i] = Math.imul(seed + i, 0x9e3779b1) >>> 24;
  });
}

describe("the digest of a page", () => {
  it("is XXH3-64, as xxHash's own library has it", () => {
    const [{ u8, kernels }] = sides();
    const known: [byteAt: (i: number) => number, hash: bigint][] = [
      [() => 0, ZERO_PAGE_DIGEST],
      [(i) => i & 255, 0xeb4b7c3707879151n],
      [(i) => Math.imul(i + 1, 0x9e3779b1) >>> 24, 0x1ad884a03e1d5930n],
      [(i) => (i === PAGE - 1 ? 1 : 0), 0xae1b0b159552488en],
    ];
    const table = new BigUint64Array(u8.buffer, AT.table, known.length);
    for (const [page, [byteAt, hash]] of known.entries()) {
      const bytes = u8.subarray(page * PAGE, (page + 1) * PAGE);
      for (let i = 0; i < PAGE; i++) bytes[i] = byteAt(i);
      kernels.digestPages(page, page + 1, AT.table);
      expect(table[page]).toBe(hash);
      expect(xxh3(bytes)).toBe(hash);
    }
  });

  it("is the twin's for any page", () => {
    const [{ u8, kernels }] = sides();
    const table = new BigUint64Array(u8.buffer, AT.table, 1);
    const bytes = fc.uint8Array({ minLength: PAGE, maxLength: PAGE, size: "max" });
    fc.assert(
      fc.property(bytes, (page) => {
        u8.set(page);
        kernels.digestPages(0, 1, AT.table);
        expect(table[0]).toBe(xxh3(page));
      }),
      { numRuns: 50 },
    );
  });
});

describe("the kernels over pages", () => {
  it("gather what the twin gathers, frame after frame, for any memory, bitmap and frame size", () => {
    fc.assert(
      fc.property(
        content,
        fc.array(fc.nat(0xffffffff), { minLength: 3, maxLength: 3 }),
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 20 }),
        (pages, bitmap, maxDataPages, maxRuns) => {
          const [kernel, twin] = sides();
          for (const { u8, u32 } of [kernel, twin]) {
            fill(u8, pages);
            u32.set(bitmap, AT.bitmap / 4);
          }
          for (let page = 0; page < RAM_PAGES; ) {
            const next = [kernel, twin].map(({ u32, kernels }) => {
              const words = u32.subarray(AT.state / 4, AT.state / 4 + GATHER_WORDS);
              words.fill(0);
              words[GATHER.maxRuns] = maxRuns;
              words[GATHER.maxDataPages] = maxDataPages;
              words[GATHER.runsAt] = AT.runs;
              words[GATHER.digestsAt] = AT.digests;
              words[GATHER.dataAt] = AT.staging;
              return kernels.gather(AT.state, AT.bitmap, page, RAM_PAGES);
            });
            expect(next[0]).toBe(next[1]);
            expect(Buffer.compare(kernel.u8, twin.u8)).toBe(0);
            page = next[0];
          }
        },
      ),
      { numRuns: 25 },
    );
  });

  it("store what the twin stores, and find the page that isn't what was sent", () => {
    const run = fc.record({ first: fc.nat(100), pages: fc.nat(8), zero: fc.boolean() });
    fc.assert(
      fc.property(
        content,
        fc.array(run, { minLength: 1, maxLength: 5 }),
        fc.boolean(),
        fc.nat(20),
        (pages, runs, direct, flipped) => {
          const both = sides();
          const results = both.map(({ u8, u32, kernels }) => {
            fill(u8, pages);
            runs.forEach(({ first, pages, zero }, i) => {
              u32.set([first, pages * 2 + Number(zero)], AT.runs / 4 + i * 2);
            });
            const dataPages = kernels.checkRuns(AT.runs, runs.length, RAM_PAGES);
            if (dataPages < 0) return dataPages;
            const digests = new DataView(u8.buffer, AT.digests);
            let data = 0;
            for (const { first, pages, zero } of runs) {
              for (let page = first; !zero && page < first + pages; page++, data++) {
                u8[AT.staging + data * PAGE] = data + 1;
                const from = direct ? page * PAGE : AT.staging + data * PAGE;
                digests.setBigUint64(data * 8, xxh3(u8.subarray(from, from + PAGE)), true);
              }
            }
            u8[AT.digests + flipped * 8] ^= 1;
            const bad = kernels.storeFrame(AT.runs, runs.length, AT.digests, direct ? 0 : AT.staging, AT.table);
            return [dataPages, kernels.pagesInRuns(AT.runs, runs.length), bad];
          });
          expect(results[0]).toEqual(results[1]);
          expect(Buffer.compare(both[0].u8, both[1].u8)).toBe(0);
        },
      ),
      { numRuns: 60 },
    );
  });

  it("refuse run tables that leave the RAM, are empty, or ask for more than a look at all of RAM", () => {
    for (const { u32, kernels } of sides()) {
      const check = (...table: number[]) => {
        u32.set(table, AT.runs / 4);
        return kernels.checkRuns(AT.runs, table.length / 2, RAM_PAGES);
      };
      expect(check(0, RAM_PAGES * 2)).toBe(RAM_PAGES);
      expect(check(0, RAM_PAGES * 2 + 1)).toBe(0);
      expect(check(1, RAM_PAGES * 2)).toBe(-1);
      expect(check(RAM_PAGES, 2)).toBe(-1);
      expect(check(0xffffffff, 0xffffffff)).toBe(-1);
      expect(check(0, 0)).toBe(-1);
      expect(check(0, RAM_PAGES * 2 + 1, 0, 3)).toBe(-1);
    }
  });

  it("digest a range of pages and nothing beside it", () => {
    const [kernel, twin] = sides();
    for (const { u8, kernels } of [kernel, twin]) {
      fill(
        u8,
        Array.from({ length: RAM_PAGES }, (_, page) => page % 7),
      );
      kernels.digestPages(3, 50, AT.table);
    }
    expect(Buffer.compare(kernel.u8, twin.u8)).toBe(0);
    const table = new BigUint64Array(kernel.u8.buffer, AT.table, RAM_PAGES);
    expect(table[2]).toBe(0n);
    expect(table[7]).toBe(ZERO_PAGE_DIGEST);
    expect(table[50]).toBe(0n);
  });
});
