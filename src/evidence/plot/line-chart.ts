import { element, type XmlNode } from "../../xml.js";
import {
  type AxisText,
  bottomAxis,
  type FigureText,
  figure,
  label,
  leftAxis,
  legend,
  line,
  marker,
  pixel,
} from "./figure.js";

/** A measured point, with the minimum and maximum of its repetitions if there were several. */
export interface PlotPoint {
  readonly x: number;
  readonly y: number;
  readonly low?: number;
  readonly high?: number;
}

/** A line of one colour. */
export interface LineSeries {
  readonly name: string;
  /** The points, ascending in x. */
  readonly points: readonly PlotPoint[];
}

/** A marked point with a text, such as a crossing of two lines. */
export interface PlotMark {
  readonly x: number;
  readonly y: number;
  readonly text: string;
}

/**
 * Draws lines through measured points as SVG, with whiskers from the minimum to the maximum.
 * @throws RangeError for more than 7 series, and for values that an axis can't show
 */
export function lineChart({
  x,
  y,
  series,
  marks = [],
  ...text
}: FigureText & {
  readonly x: AxisText;
  readonly y: AxisText;
  readonly series: readonly LineSeries[];
  readonly marks?: readonly PlotMark[];
}): string {
  const points = [...series.flatMap((each) => each.points), ...marks];
  const bottom = bottomAxis(
    x,
    points.map((point) => point.x),
  );
  const left = leftAxis(
    y,
    points.flatMap((point) => [point.y, ...("text" in point ? [] : [point.low ?? point.y, point.high ?? point.y])]),
  );
  const curve = (each: LineSeries, index: number): XmlNode[] => {
    const path = each.points.map((point) => `${pixel(bottom.at(point.x))},${pixel(left.at(point.y))}`).join(" ");
    return [
      ...each.points
        .filter(({ low, high }) => low !== high)
        .map((point) => {
          const at = bottom.at(point.x);
          const [y1, y2] = [left.at(point.low ?? point.y), left.at(point.high ?? point.y)];
          return line({ x1: at, y1, x2: at, y2, class: `dp-whisker dp-s${index}` });
        }),
      ...(each.points.length > 1 ? [element("polyline", { class: `dp-line dp-s${index}`, points: path })] : []),
      ...each.points.map((point) => marker(index, bottom.at(point.x), left.at(point.y))),
    ];
  };
  return figure(text, [
    ...legend(
      series.map(({ name }) => name),
      (index, atX, atY) => [
        line({ x1: atX, y1: atY, x2: atX + 26, y2: atY, class: `dp-line dp-s${index}` }),
        marker(index, atX + 13, atY),
      ],
    ),
    ...left.drawn,
    ...bottom.drawn,
    ...series.flatMap(curve),
    ...marks.flatMap((mark) => [
      element("circle", { class: "dp-mark", cx: pixel(bottom.at(mark.x)), cy: pixel(left.at(mark.y)), r: "8" }),
      label(mark.text, {
        x: bottom.at(mark.x),
        y: left.at(mark.y) - 13,
        anchor: "middle",
        class: "dp-ink dp-small dp-halo",
      }),
    ]),
  ]);
}
