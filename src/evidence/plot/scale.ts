/** The scale of an axis: linear, or logarithmic to base 2 or 10. */
export type ScaleKind = "linear" | "log2" | "log10";

/** An axis without its drawing: where a value lies, and which values are written beside it. */
export interface Scale {
  readonly kind: ScaleKind;
  /** Ascending. */
  readonly ticks: readonly number[];
  /** 0 at the axis' start to 1 at its end. */
  at(value: number): number;
}

/** Where a logarithmic axis begins, above its place for 0. */
const ABOVE_ZERO = 0.08;

/** About as many ticks as can be read along an axis. */
const TICKS = 6;

/**
 * A scale on which all the values lie. A linear one starts at 0 unless a value is below it, so that lengths can be compared;
 * a logarithmic one starts and ends at a power, and has a place of its own for 0 where a value is 0.
 * @param values finite; none: the scale has one tick
 * @throws RangeError for a value that isn't finite, and for one below 0 on a logarithmic scale
 */
export function makeScale(kind: ScaleKind, values: readonly number[]): Scale {
  const wrong = values.find((value) => !Number.isFinite(value) || (kind !== "linear" && value < 0));
  if (wrong !== undefined) throw new RangeError(`${wrong} has no place on a ${kind} axis`);
  return kind === "linear" ? linear(values) : logarithmic(kind, values);
}

function linear(values: readonly number[]): Scale {
  const ticks = evenTicks(Math.min(0, ...values), Math.max(0, ...values));
  const first = ticks[0];
  const span = (ticks.at(-1) ?? first) - first;
  return { kind: "linear", ticks, at: (value) => (span === 0 ? 0 : (value - first) / span) };
}

function logarithmic(kind: "log2" | "log10", values: readonly number[]): Scale {
  const log = kind === "log2" ? Math.log2 : Math.log10;
  const base = kind === "log2" ? 2 : 10;
  const positive = values.filter((value) => value > 0).map(log);
  const hasZero = positive.length < values.length;
  const first = Math.floor(round(Math.min(...(positive.length === 0 ? [0] : positive))));
  const last = Math.max(first + 1, Math.ceil(round(Math.max(...(positive.length === 0 ? [0] : positive)))));
  const step = Math.ceil((last - first) / (kind === "log2" ? 10 : 8));
  const ticks = hasZero ? [0] : [];
  for (let power = first; power <= last; power += step) ticks.push(base ** power);
  const start = hasZero ? ABOVE_ZERO : 0;
  return {
    kind,
    ticks,
    at: (value) => (value <= 0 ? 0 : start + ((1 - start) * (log(value) - first)) / (last - first)),
  };
}

/** A logarithm that should be whole is. */
function round(logarithm: number): number {
  return Math.abs(logarithm - Math.round(logarithm)) < 1e-9 ? Math.round(logarithm) : logarithm;
}

/** Multiples of 1, 2 or 5 times a power of ten, the first at or below `min`, the last at or above `max`. */
function evenTicks(min: number, max: number): number[] {
  if (min === max) return [min];
  const rough = (max - min) / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10) * power;
  const first = Math.floor(min / step + 1e-9);
  const last = Math.ceil(max / step - 1e-9);
  // Multiplied, not added up: 0.1 added three times is not 0.3, nor is 3 * 0.1, hence the rounding.
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}
