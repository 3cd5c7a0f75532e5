import { element, type XmlNode } from "../../xml.js";
import {
  AREA,
  type AxisText,
  axisName,
  baseline,
  type FigureText,
  figure,
  label,
  leftAxis,
  legend,
  line,
  pixel,
} from "./figure.js";

/** A bar's height, with the minimum and maximum of its repetitions if there were several. */
export interface Bar {
  readonly value: number;
  readonly low?: number;
  readonly high?: number;
}

/** Bars of one colour. */
export interface BarSeries {
  readonly name: string;
  /** One per category; null: not measured. */
  readonly bars: readonly (Bar | null)[];
}

/** Share of a category's width that its bars take. */
const FILLED = 0.8;

/**
 * Draws grouped bars as SVG: one group per category, with one bar per series, from 0 on a linear axis.
 * @throws RangeError for more than 7 series, and for values that an axis can't show
 */
export function barChart({
  categories,
  series,
  x,
  y,
  ...text
}: FigureText & {
  readonly x: string;
  readonly y: Omit<AxisText, "scale">;
  readonly categories: readonly string[];
  readonly series: readonly BarSeries[];
}): string {
  const values = series.flatMap(({ bars }) => bars.flatMap((bar) => (bar === null ? [] : [bar.value, bar.high ?? 0])));
  const left = leftAxis({ label: y.label, ...(y.format === undefined ? {} : { format: y.format }) }, values);
  const group = (AREA.right - AREA.left) / Math.max(1, categories.length);
  const width = (group * FILLED) / Math.max(1, series.length);
  const draw = (bar: Bar, category: number, index: number): XmlNode[] => {
    const from = AREA.left + category * group + (group * (1 - FILLED)) / 2 + index * width;
    const top = left.at(bar.value);
    const attributes = { x: pixel(from), y: pixel(top), width: pixel(width - 1), height: pixel(left.at(0) - top) };
    const middle = from + (width - 1) / 2;
    return [
      element("rect", { class: `dp-f${index}`, ...attributes }),
      ...(bar.low === undefined || bar.high === undefined || bar.low === bar.high
        ? []
        : [line({ x1: middle, y1: left.at(bar.low), x2: middle, y2: left.at(bar.high), class: "dp-whisker dp-axis" })]),
    ];
  };
  return figure(text, [
    ...legend(
      series.map(({ name }) => name),
      (index, atX, atY) => [
        element("rect", { class: `dp-f${index}`, x: pixel(atX + 8), y: pixel(atY - 6), width: "12", height: "12" }),
      ],
    ),
    ...left.drawn,
    ...series.flatMap(({ bars }, index) =>
      bars.flatMap((bar, category) => (bar === null ? [] : draw(bar, category, index))),
    ),
    baseline(),
    ...categories.map((name, category) =>
      label(name, { x: AREA.left + (category + 0.5) * group, y: AREA.bottom + 19, anchor: "middle" }),
    ),
    axisName(x),
  ]);
}
