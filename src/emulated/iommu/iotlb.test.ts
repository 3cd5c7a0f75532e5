import { describe, expect, it } from "vitest";
import { READ, WRITE } from "./format.js";
import { Iotlb, LOGGED, RECORDED } from "./iotlb.js";

/** Fills a page's slot with what can be told apart. */
function fill(iotlb: Iotlb, page: number, flags = READ | WRITE): number {
  const slot = iotlb.slotOf(page);
  iotlb.fill(slot, page, page + 1, page * 4096, flags);
  return slot;
}

function hits(iotlb: Iotlb, page: number, flags = READ): boolean {
  return iotlb.hits(iotlb.slotOf(page), page, flags);
}

describe("an IOTLB", () => {
  it("hits a page that was filled, and no other of its slot", () => {
    const iotlb = new Iotlb(8);
    for (let page = 0; page < 16; page++) expect(hits(iotlb, page)).toBe(false);
    const slot = fill(iotlb, 3);
    expect([hits(iotlb, 3), hits(iotlb, 11), hits(iotlb, 4)]).toEqual([true, false, false]);
    expect([iotlb.arenas[slot], iotlb.offsets[slot]]).toEqual([4, 3 * 4096]);
    fill(iotlb, 11);
    expect([hits(iotlb, 3), hits(iotlb, 11)]).toEqual([false, true]);
  });

  it.each([
    [1, 1],
    [8, 8],
    [15, 8],
    [0, 1],
  ])("of capacity %i holds %i pages", (capacity, pages) => {
    const iotlb = new Iotlb(capacity);
    for (let page = 0; page < pages; page++) fill(iotlb, page);
    for (let page = 0; page < pages; page++) expect(hits(iotlb, page)).toBe(true);
    fill(iotlb, pages);
    expect([hits(iotlb, 0), hits(iotlb, pages)]).toEqual([false, true]);
  });

  it("hits only with all flags that are asked for", () => {
    const iotlb = new Iotlb(8);
    fill(iotlb, 3, WRITE);
    expect([hits(iotlb, 3, WRITE), hits(iotlb, 3, READ), hits(iotlb, 3, WRITE | RECORDED)]).toEqual([
      true,
      false,
      false,
    ]);
    fill(iotlb, 3, WRITE | RECORDED);
    expect(hits(iotlb, 3, WRITE | RECORDED)).toBe(true);
  });

  it("hits nothing that was filled under another flush generation", () => {
    const iotlb = new Iotlb(8);
    fill(iotlb, 3);
    iotlb.generation = 7;
    expect(hits(iotlb, 3)).toBe(false);
    fill(iotlb, 4);
    expect([hits(iotlb, 3), hits(iotlb, 4)]).toEqual([false, true]);
  });

  it("forgets a flag in all entries, and keeps the others", () => {
    const iotlb = new Iotlb(8);
    const slots = [0, 3, 7].map((page) => fill(iotlb, page, READ | WRITE | LOGGED));
    iotlb.clearFlag(LOGGED);
    expect(slots.map((slot) => iotlb.flags[slot])).toEqual(slots.map(() => READ | WRITE));
  });
});
