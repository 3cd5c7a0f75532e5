import { expect, it } from "vitest";
import { createArena } from "../memory/arena.js";
import { holdsOf } from "../memory/holds.js";
import { Mappings } from "./mappings.js";

function held(count = 2) {
  return Array.from({ length: count }, () => holdsOf(createArena(65536)));
}

it("a new mapping proves that an older one at its address is gone, whatever was heard of it", () => {
  const [a, b] = held();
  const mappings = new Mappings();
  for (const [iova, holds] of [
    [0n, a],
    [4096n, a],
    [8192n, a],
    [2048n, b],
  ] as const) {
    holds.take();
    mappings.add(iova, 4096n, holds);
  }
  expect([a.count, b.count]).toEqual([1, 1]);
  mappings.clear();
  expect([a.count, b.count, mappings.empty]).toEqual([0, 0, true]);
});

it("a copy holds what it maps, cut to what was copied, also onto the same table", () => {
  const [a, b] = held();
  const mappings = new Mappings();
  a.take();
  mappings.add(0n, 8192n, a);
  b.take();
  mappings.add(8192n, 8192n, b);
  mappings.copyTo(mappings, { iova: 4096n, length: 8192n, to: 65536n });
  expect(mappings.in(65536n, 131071n).map(({ start, last, value }) => [start, last, value])).toEqual([
    [65536n, 69631n, a],
    [69632n, 73727n, b],
  ]);
  mappings.remove(0n, 16383n);
  expect([a.count, b.count]).toEqual([1, 1]);
});
