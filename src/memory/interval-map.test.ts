import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { IntervalMap } from "./interval-map.js";

describe("IntervalMap", () => {
  it("answers like a map from each single key to its value, over any sequence of operations", () => {
    const key = fc.nat(63);
    const operation = fc.oneof(
      fc.record({ op: fc.constant("insert" as const), start: key, length: fc.integer({ min: 1, max: 12 }) }),
      fc.record({ op: fc.constant("delete" as const), start: key }),
    );
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 60 }), key, key, (operations, low, high) => {
        const map = new IntervalMap<number, number>();
        const model = new Map<number, number>();
        operations.forEach((operation, value) => {
          if (operation.op === "insert") {
            const { start, length } = operation;
            const keys = Array.from({ length }, (_, i) => start + i);
            if (keys.some((k) => model.has(k))) {
              expect(() => map.insert(start, start + length - 1, value)).toThrow(RangeError);
            } else {
              map.insert(start, start + length - 1, value);
              for (const k of keys) model.set(k, value);
            }
          } else {
            const deleted = map.delete(operation.start);
            const value = model.get(operation.start);
            const starts = value !== undefined && model.get(operation.start - 1) !== value;
            expect(deleted !== undefined).toBe(starts);
            if (deleted) for (let k = deleted.start; k <= deleted.last; k++) model.delete(k);
          }
        });
        for (let k = 0; k < 80; k++) expect(map.at(k)?.value).toBe(model.get(k));
        const [from, to] = low < high ? [low, high] : [high, low];
        const values = new Set<number>();
        for (let k = from; k <= to; k++) {
          const value = model.get(k);
          if (value !== undefined) values.add(value);
        }
        expect(map.in(from, to).map(({ value }) => value)).toEqual([...values]);
        expect(map.firstIn(from, to)?.value).toBe([...values][0]);
        const starts = [...map].map(({ start }) => start);
        expect(starts).toEqual([...starts].sort((a, b) => a - b));
        expect(map.size).toBe(new Set(model.values()).size);
      }),
    );
  });

  it("reaches to the last 64-bit address", () => {
    const map = new IntervalMap<bigint, string>();
    const top = (1n << 64n) - 1n;
    map.insert(top - 4095n, top, "last page");
    expect(map.at(top)?.value).toBe("last page");
    expect(map.firstIn(0n, top - 4096n)).toBeUndefined();
  });

  it("refuses an interval that ends before it starts", () => {
    expect(() => new IntervalMap<number, string>().insert(5, 4, "x")).toThrow(RangeError);
  });
});
