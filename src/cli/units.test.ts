import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { UsageError } from "../errors.js";
import { formatCount, formatMs, formatRate, formatSize, parseBandwidth, parseDuration, parseSize } from "./units.js";

describe("sizes", () => {
  it.each([
    ["4096", 4096],
    ["4K", 4096],
    ["4k", 4096],
    ["2M", 2 ** 21],
    ["1G", 2 ** 30],
    ["1.5G", 1.5 * 2 ** 30],
    ["1GiB", 2 ** 30],
    ["512 MB", 2 ** 29],
    ["1T", 2 ** 40],
  ])("%s is %d bytes", (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  it.each(["", "G", "1X", "-4K", "1e3", "0.3", "4 K M", "0x10", "99999999999T"])("refuses '%s' in one line", (text) => {
    expect(() => parseSize(text)).toThrow(UsageError);
    expect(() => parseSize(text)).toThrow(/^[^\n]+$/);
  });

  it("reads back every power of two that it writes", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 49 }), (power) => {
        expect(parseSize(formatSize(2 ** power))).toBe(2 ** power);
      }),
    );
  });

  it("never writes more than four characters of number", () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1e14, noNaN: true }), (bytes) => {
        expect(formatSize(bytes)).toMatch(/^(\d{1,4}|\d{1,2}\.\d{1,2})[BKMGT]$/);
      }),
    );
  });
});

describe("durations", () => {
  it.each([
    ["50ms", 50],
    ["0.5ms", 0.5],
    ["2s", 2000],
    ["1.5m", 90_000],
    ["1h", 3_600_000],
  ])("%s is %d ms", (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });

  it.each(["50", "s", "-1s", "1 minute", ""])("refuses '%s'", (text) => {
    expect(() => parseDuration(text)).toThrow(/is not a duration/);
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
});

describe("bandwidths", () => {
  it.each([
    ["500M", 500 * 2 ** 20],
    ["1G/s", 2 ** 30],
    ["10Gbit", 1.25e9],
    ["100Mbit/s", 12.5e6],
    ["unlimited", Number.POSITIVE_INFINITY],
  ])("%s is %d bytes per second", (text, rate) => {
    expect(parseBandwidth(text)).toBe(rate);
  });

  it.each(["0", "fast", "10Gbits", "-1M"])("refuses '%s'", (text) => {
    expect(() => parseBandwidth(text)).toThrow(/is not a bandwidth/);
  });

  it("has a word for no limit", () => {
    expect(formatRate(Number.POSITIVE_INFINITY)).toBe("unlimited");
    expect(formatRate(2 ** 20)).toBe("1M/s");
  });
});

describe("counts", () => {
  it("sets thousands apart", () => {
    expect(formatCount(1234567)).toBe("1 234 567");
    expect(formatCount(999)).toBe("999");
  });
});
