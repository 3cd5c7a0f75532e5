import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatCount, formatMs, formatRate, formatSize } from "./format.js";

describe("quantities for people", () => {
  it("never writes more than four characters of number", () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1e14, noNaN: true }), (bytes) => {
        expect(formatSize(bytes)).toMatch(/^(\d{1,4}|\d{1,2}\.\d{1,2})[BKMGT]$/);
      }),
    );
  });

  it.each([
    [0.234, "0.2 ms"],
    [37.4, "37 ms"],
    [999.7, "1.00 s"],
    [1240, "1.24 s"],
    [59_996, "1 min 0 s"],
    [125_000, "2 min 5 s"],
  ])("%d ms reads '%s'", (ms, text) => {
    expect(formatMs(ms)).toBe(text);
  });

  it("has a word for no limit", () => {
    expect(formatRate(Number.POSITIVE_INFINITY)).toBe("unlimited");
    expect(formatRate(2 ** 20)).toBe("1M/s");
  });
  it("sets thousands apart", () => {
    expect(formatCount(1234567)).toBe("1 234 567");
    expect(formatCount(999)).toBe("999");
  });
});
