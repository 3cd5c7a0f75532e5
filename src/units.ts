import { UsageError } from "./errors.js";

/*
 * Quantities as people write them on the command line and in scenarios. A unit's letter is a power of 1024, as in QEMU
 * and virsh; bits per second are decimal, as network links are sold. What is written here can be typed again.
 */

const BINARY: Readonly<Record<string, number>> = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };
const DECIMAL: Readonly<Record<string, number>> = { "": 1, K: 1e3, M: 1e6, G: 1e9, T: 1e12 };
const DURATION_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

function refuse(text: string, what: string, remedy: string): never {
  throw new UsageError(`'${text}' is not ${what}`, { code: "BAD_UNIT", remedy });
}

/**
 * A size in bytes: `4096`, `4K`, `2M`, `1.5G`, `1T`, with or without `iB` or `B`. A whole number of bytes.
 * @throws UsageError `BAD_UNIT`
 */
export function parseSize(text: string): number {
  const match = /^(\d{1,15}(?:\.\d{1,6})?)\s?([KMGT]?)(?:i?B)?$/i.exec(text.trim());
  const bytes = match === null ? Number.NaN : Number(match[1]) * BINARY[match[2].toUpperCase()];
  if (!Number.isSafeInteger(bytes)) refuse(text, "a size", "write bytes, or 4K, 2M, 1G (powers of 1024)");
  return bytes;
}

/**
 * A duration in milliseconds: `50ms`, `2s`, `1.5m`, `1h`. A bare number has no unit and is refused.
 * @throws UsageError `BAD_UNIT`
 */
export function parseDuration(text: string): number {
  const match = /^(\d{1,9}(?:\.\d{1,6})?)\s?(ms|s|m|h)$/.exec(text.trim());
  if (match === null) refuse(text, "a duration", "write 50ms, 2s, 1m or 1h");
  return Number(match[1]) * DURATION_MS[match[2]];
}

/**
 * A bandwidth in bytes per second, above 0: `500M` (bytes, powers of 1024), `10Gbit` (bits, powers of 1000), or
 * `unlimited` for Infinity. A trailing `/s` is allowed.
 * @throws UsageError `BAD_UNIT`
 */
export function parseBandwidth(text: string): number {
  const trimmed = text.trim().replace(/\/s$/, "");
  if (trimmed === "unlimited") return Number.POSITIVE_INFINITY;
  const bits = /^(\d{1,12}(?:\.\d{1,6})?)\s?([KMGT]?)bit$/i.exec(trimmed);
  const bytes = /^(\d{1,15}(?:\.\d{1,6})?)\s?([KMGT]?)(?:i?B)?$/i.exec(trimmed);
  let rate = Number.NaN;
  if (bits !== null) rate = (Number(bits[1]) * DECIMAL[bits[2].toUpperCase()]) / 8;
  else if (bytes !== null) rate = Number(bytes[1]) * BINARY[bytes[2].toUpperCase()];
  if (!(rate > 0)) {
    refuse(text, "a bandwidth", "write bytes per second as 500M or 1G, bits per second as 10Gbit, or unlimited");
  }
  return rate;
}

/** A duration as {@link parseDuration} reads it, or `unlimited` for Infinity. @throws UsageError `BAD_UNIT` */
export function parseLimit(text: string): number {
  return text.trim() === "unlimited" ? Number.POSITIVE_INFINITY : parseDuration(text);
}

/** A size as {@link parseSize} reads it: `4K`, `256M`. @param bytes whole */
export function writeSize(bytes: number): string {
  return scaled(bytes, BINARY);
}

/** A duration as {@link parseLimit} reads it: `50ms`, `2s`, `unlimited`. */
export function writeDuration(ms: number): string {
  if (ms === Number.POSITIVE_INFINITY) return "unlimited";
  return scaled(ms, DURATION_MS);
}

/** A bandwidth as {@link parseBandwidth} reads it: `500M`, `10Gbit`, `unlimited`. @param rate whole, or Infinity */
export function writeBandwidth(rate: number): string {
  if (rate === Number.POSITIVE_INFINITY) return "unlimited";
  const bytes = scaled(rate, BINARY);
  const bits = `${scaled(rate * 8, DECIMAL)}bit`;
  return bits.length < bytes.length ? bits : bytes;
}

/** With the largest unit of which it is a whole number. */
function scaled(value: number, units: Readonly<Record<string, number>>): string {
  const [unit, factor] =
    Object.entries(units).findLast(([, size]) => value >= size && value % size === 0) ?? Object.entries(units)[0];
  return `${value / factor}${unit}`;
}
