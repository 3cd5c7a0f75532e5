/*
 * Quantities as people read them; ../units.ts reads what they write.
 */

/** A size for people: `4K`, `1.5M`, `2G`; at most three significant digits, a whole number of bytes below 1 KiB. */
export function formatSize(bytes: number): string {
  return scaled(bytes, 1024, ["B", "K", "M", "G", "T"]);
}

/** A rate for people: `120M/s`; `unlimited` for Infinity. */
export function formatRate(bytesPerSecond: number): string {
  return Number.isFinite(bytesPerSecond) ? `${formatSize(bytesPerSecond)}/s` : "unlimited";
}

/** A duration for people: `0.2 ms`, `37 ms`, `1.24 s`, `2 min 5 s`. */
export function formatMs(ms: number): string {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${ms.toFixed(0)} ms`;
  if (ms < 59_995) return `${(ms / 1000).toFixed(2)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** A count for people, its thousands apart: `1 234 567`. */
export function formatCount(count: number): string {
  return Math.round(count)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, " ");
}

function scaled(value: number, step: number, units: readonly string[]): string {
  let rest = value;
  let unit = 0;
  while (rest >= step && unit < units.length - 1) {
    rest /= step;
    unit++;
  }
  if (unit === 0) return `${Math.round(rest)}${units[0]}`;
  const digits = rest >= 99.95 ? 0 : rest >= 9.995 ? 1 : 2;
  return `${Number(rest.toFixed(digits))}${units[unit]}`;
}

/** A share for people, of 0 to 1: `7 %`, `100 %`. */
export function formatShare(share: number): string {
  return `${Math.round(share * 100)} %`;
}
