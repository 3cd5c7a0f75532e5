import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { UsageError } from "./errors.js";
import { formatSize } from "./observe/format.js";
import {
  parseBandwidth,
  parseDuration,
  parseLimit,
  parseSize,
  writeBandwidth,
  writeDuration,
  writeSize,
} from "./units.js";

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
});

describe("what is written can be typed again", () => {
  it.each([
    [writeSize(4096), "4K"],
    [writeSize(0), "0"],
    [writeSize(1000), "1000"],
    [writeDuration(0), "0ms"],
    [writeDuration(1500), "1500ms"],
    [writeDuration(10_000), "10s"],
    [writeDuration(parseLimit("unlimited")), "unlimited"],
    [writeBandwidth(1.25e9), "10Gbit"],
    [writeBandwidth(500 * 2 ** 20), "500M"],
    [writeBandwidth(Number.POSITIVE_INFINITY), "unlimited"],
  ])("%s", (text, expected) => {
    expect(text).toBe(expected);
  });

  it("as the same size, duration, bandwidth", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2 ** 44 }), (value) => {
        expect(parseSize(writeSize(value))).toBe(value);
        expect(parseBandwidth(writeBandwidth(value))).toBe(value);
      }),
    );
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 999_999_999 }), (ms) => {
        expect(parseDuration(writeDuration(ms))).toBe(ms);
      }),
    );
  });
});
