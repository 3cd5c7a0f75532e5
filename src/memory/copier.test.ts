import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Copier } from "./copier.js";

describe("a copier", () => {
  it("copies what a slice would, call after call", () => {
    const source = new Uint8Array(new SharedArrayBuffer(4096)).map((_, index) => index * 7);
    const other = new Uint8Array(4096).map((_, index) => index * 13);
    const span = fc.record({
      other: fc.boolean(),
      from: fc.constantFrom(0, 1, 100),
      to: fc.nat({ max: 1000 }),
      bytes: fc.constantFrom(0, 1, 8, 63, 64, 65, 1500, 3000),
    });
    fc.assert(
      fc.property(fc.array(span), (copies) => {
        const copier = new Copier();
        const target = new Uint8Array(4096);
        const expected = new Uint8Array(4096);
        for (const copy of copies) {
          const from = copy.other ? other : source;
          copier.copy(target, copy.to, from, copy.from, copy.bytes);
          expected.set(from.slice(copy.from, copy.from + copy.bytes), copy.to);
        }
        expect(Buffer.compare(target, expected)).toBe(0);
      }),
    );
  });
});
