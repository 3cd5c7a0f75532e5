import { explain } from "../errors.js";
import { parseBandwidth, parseDuration, parseSize } from "../units.js";

type Quantity = "size" | "duration" | "bandwidth";

/** Fields whose value is a quantity, by their name: how it is read. */
export const QUANTITIES: Readonly<Record<string, Quantity>> = {
  memory: "size",
  footprint: "size",
  vram: "size",
  pageSizes: "size",
  granules: "size",
  downtimeLimit: "duration",
  runAfter: "duration",
  bandwidth: "bandwidth",
};

/**
 * The same value with each quantity as a number: bytes, milliseconds, bytes per second. What can't be read as one is
 * added to `issues`; a bandwidth without limit is left out.
 */
export function withQuantities(
  value: unknown,
  path: readonly PropertyKey[],
  issues: { path: readonly PropertyKey[]; text: string }[],
  kind?: Quantity,
): unknown {
  if (Array.isArray(value)) return value.map((entry, index) => withQuantities(entry, [...path, index], issues, kind));
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value).map(([key, entry]) => {
      return [key, withQuantities(entry, [...path, key], issues, kind ?? QUANTITIES[key])] as const;
    });
    return Object.fromEntries(entries.filter(([, entry]) => entry !== undefined));
  }
  if (kind === undefined || (typeof value === "number" && kind !== "duration")) return value;
  try {
    if (kind === "size") return parseSize(String(value));
    if (kind === "duration") return parseDuration(String(value));
    const rate = parseBandwidth(String(value));
    return Number.isFinite(rate) ? rate : undefined;
  } catch (error) {
    issues.push({ path, text: explain(error) });
    return value;
  }
}
