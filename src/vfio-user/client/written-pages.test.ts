import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { WrittenPages } from "./written-pages.js";

/** Pages beside the ends of words and of the blocks in which notes are kept (32768 pages). */
const EDGES = [
  0, 1, 30, 31, 32, 33, 63, 64, 32735, 32736, 32766, 32767, 32768, 32769, 32799, 32800, 65535, 65536, 65537,
];
const TOP = 2 ** 52 - 1;

const iovaOf = (page: number) => BigInt(page) * BigInt(PAGE_SIZE);
/** The last address of a page. */
const lastOf = (page: number) => iovaOf(page + 1) - 1n;

function noted(pages: readonly number[]): WrittenPages {
  const written = new WrittenPages();
  for (const page of pages) written.add(iovaOf(page), PAGE_SIZE);
  return written;
}

/** The noted pages among [first, last]. */
function read(written: WrittenPages, first: number, last: number, clear: boolean): number[] {
  const length = iovaOf(last - first + 1);
  const into = new DirtyBitmap({ iova: iovaOf(first), length, granule: PAGE_SIZE });
  written.read(iovaOf(first), lastOf(last), { into, clear });
  const pages: number[] = [];
  into.forEachPageRun((page, count) => {
    for (let i = 0; i < count; i++) pages.push(page + i);
  });
  return pages;
}

const readAll = (written: WrittenPages, clear: boolean) => read(written, 0, 65600, clear);

/** All stretches that begin and end at an edge. */
const STRETCHES = EDGES.flatMap((first) => EDGES.filter((last) => last >= first).map((last) => [first, last] as const));

describe("the pages that a device wrote by messages", () => {
  it.each([
    [0n, 1, [0]],
    [4095n, 1, [0]],
    [4095n, 2, [0, 1]],
    [4096n, 4096, [1]],
    [4096n, 4097, [1, 2]],
    [4097n, 8192, [1, 2, 3]],
    [0n, 0, []],
    [0x5001n, 0, []],
    [lastOf(32767), 2, [32767, 32768]],
  ])("are all that %d and the %d bytes from it on touch", (iova, bytes, pages) => {
    const written = new WrittenPages();
    written.add(iova, bytes);
    expect(readAll(written, false)).toEqual(pages);
  });

  it("reach up to the last page of all", () => {
    const written = new WrittenPages();
    written.add(2n ** 64n - 1n, 1);
    expect(read(written, TOP - 1, TOP, false)).toEqual([TOP]);
  });

  it("are told of the stretch that is asked for, and the others stay noted", () => {
    for (const [first, last] of STRETCHES) {
      const inside = (page: number) => page >= first && page <= last;
      const written = noted(EDGES);
      expect(read(written, first, last, true)).toEqual(EDGES.filter(inside));
      expect(readAll(written, true)).toEqual(EDGES.filter((page) => !inside(page)));
      expect(readAll(written, true)).toEqual([]);
    }
  });

  it("stay noted where they are only looked at", () => {
    const written = noted(EDGES);
    expect(readAll(written, false)).toEqual(EDGES);
    expect(readAll(written, false)).toEqual(EDGES);
  });

  it("are forgotten in the stretch that is named, and nowhere else", () => {
    for (const [first, last] of STRETCHES) {
      const written = noted(EDGES);
      written.forget(iovaOf(first), lastOf(last));
      expect(readAll(written, false)).toEqual(EDGES.filter((page) => page < first || page > last));
    }
  });

  it("are all forgotten at once", () => {
    const written = noted(EDGES);
    written.clear();
    expect(readAll(written, false)).toEqual([]);
  });

  it("are added to what the reader's bitmap has, by its granule", () => {
    const into = new DirtyBitmap({ iova: 0n, length: 1n << 20n, granule: 65536 });
    into.set(3);
    noted([16, 47]).read(0n, (1n << 20n) - 1n, { into, clear: true });
    expect([0, 1, 2, 3, 4].filter((bit) => into.get(bit))).toEqual([1, 2, 3]);
  });
});
