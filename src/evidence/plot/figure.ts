import { element, type XmlElement, type XmlNode, xmlText } from "../../xml.js";
import { makeScale, type Scale, type ScaleKind } from "./scale.js";

/*
 * What all plots have in common: the sheet, its colours, its axes and its legend. A plot is SVG as text, which stands in a
 * page as it is, or in a file of its own.
 */

/** The texts of a plot. */
export interface FigureText {
  /** The subject, as a heading. Screen readers announce it. */
  readonly title: string;
  /** The content in a sentence or two, for readers who can't see the plot. */
  readonly description: string;
}

/** One axis of a plot. */
export interface AxisText {
  /** The measured quantity with its unit. */
  readonly label: string;
  /** Default: linear. */
  readonly scale?: ScaleKind;
  /** Writes a value as text. Default: up to three significant digits. */
  readonly format?: (value: number) => string;
}

/** Pixels at its natural size; it scales with its page. */
export const SHEET = { width: 720, height: 400 } as const;

/** Where the curves are drawn: what is left of the sheet for titles, legend and axes' labels. */
export const AREA = { left: 84, right: 704, top: 88, bottom: 346 } as const;

/** The series that a plot can tell apart. */
export const MAX_SERIES = 7;

/** Steps of a heat map, from nothing to the most. */
export const HEAT_STEPS = 9;

/*
 * Okabe and Ito's colours, which people with any of the common colour blindnesses can tell apart; lighter ones on a dark
 * page. Every series has a marker and a dash pattern of its own as well.
 */
const LIGHT = ["#0072b2", "#d55e00", "#007a5a", "#a8558a", "#8a6500", "#2b7fb8", "#222222"];
const DARK = ["#56b4e9", "#ff9040", "#2fc79a", "#e59cc6", "#f0c040", "#8fd0ff", "#eeeeee"];
const DASHES = ["none", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 4"];

/*
 * One hue from the page's colour to the strongest, evenly in lightness (as cividis does): darker is more on a light page,
 * lighter is more on a dark one.
 */
const LIGHT_HEAT = ["#f4f5f7", "#d6e2ef", "#b7cfe4", "#94bad8", "#6fa3ca", "#4b8bb9", "#2d72a4", "#17588a", "#08396b"];
const DARK_HEAT = ["#1b1f27", "#20324b", "#274668", "#305b84", "#3d72a0", "#4f8abb", "#6ba4d2", "#92c0e5", "#cfe6fa"];

/** Class names begin with `dp-`, since a style sheet in a page's SVG is the page's. */
function styleSheet(): string {
  const colours = (names: readonly string[], heat: readonly string[]) =>
    [
      ...names.map((colour, index) => `.dp-s${index}{stroke:${colour}}.dp-f${index}{fill:${colour}}`),
      ...heat.map((colour, index) => `.dp-h${index}{fill:${colour}}`),
    ].join("");
  const page = (ink: string, faint: string, paper: string) =>
    `.dp-ink{fill:${ink}}.dp-grid{stroke:${faint}}.dp-axis{stroke:${ink}}.dp-paper{fill:${paper}}.dp-halo{stroke:${paper}}.dp-mark{stroke:${ink}}`;
  return [
    ".dp{font:13px system-ui,sans-serif}.dp-title{font-size:15px;font-weight:600}.dp-small{font-size:11.5px}",
    ".dp-line{fill:none;stroke-width:2}.dp-whisker{stroke-width:1.2}.dp-grid{stroke-width:1}",
    ".dp-mark{fill:none;stroke-width:1.4}.dp-halo{paint-order:stroke;stroke-width:4px;stroke-linejoin:round}",
    ...DASHES.map((dash, index) => `.dp-line.dp-s${index}{stroke-dasharray:${dash}}`),
    page("#1a1a1a", "#dcdfe4", "#ffffff"),
    colours(LIGHT, LIGHT_HEAT),
    `@media(prefers-color-scheme:dark){${page("#e8e8e8", "#3a3f48", "#14171c")}${colours(DARK, DARK_HEAT)}}`,
  ].join("");
}

/** The sheet with its title and what is drawn on it. */
export function figure(
  { title, description }: FigureText,
  drawn: readonly XmlNode[],
  height: number = SHEET.height,
): string {
  const attributes = {
    xmlns: "http://www.w3.org/2000/svg",
    viewBox: `0 0 ${SHEET.width} ${height}`,
    width: String(SHEET.width),
    height: String(height),
    class: "dp",
    role: "img",
  };
  return xmlText(
    element("svg", attributes, [
      element("title", {}, [{ text: title }]),
      element("desc", {}, [{ text: description }]),
      element("style", {}, [{ text: styleSheet() }]),
      element("rect", { class: "dp-paper", width: String(SHEET.width), height: String(height) }),
      label(title, { x: 16, y: 24, class: "dp-ink dp-title" }),
      ...drawn,
    ]),
  );
}

/** A piece of text on the sheet. */
export function label(
  text: string,
  { x, y, anchor = "start", ...rest }: { x: number; y: number; anchor?: "start" | "middle" | "end"; class?: string },
): XmlElement {
  const style = { class: "dp-ink dp-small", ...rest };
  return element("text", { x: pixel(x), y: pixel(y), "text-anchor": anchor, ...style }, [{ text }]);
}

/** A coordinate as it is written: a tenth of a pixel is enough. */
export function pixel(value: number): string {
  return String(Number(value.toFixed(1)));
}

/** A number with up to three digits that count. */
export function shortNumber(value: number): string {
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(3));
  return Math.abs(rounded) >= 1e6 || Math.abs(rounded) < 1e-3 ? rounded.toExponential() : String(rounded);
}

/** A scale with how its values are written and where they lie on the sheet. */
export interface Axis {
  readonly scale: Scale;
  at(value: number): number;
  readonly drawn: readonly XmlNode[];
}

/** The axis to the left, with its grid. */
export function leftAxis(
  { label: text, scale: kind = "linear", format = shortNumber }: AxisText,
  values: readonly number[],
): Axis {
  const scale = makeScale(kind, values);
  const at = (value: number) => AREA.bottom - scale.at(value) * (AREA.bottom - AREA.top);
  return {
    scale,
    at,
    drawn: [
      ...scale.ticks.flatMap((tick) => [
        line({ x1: AREA.left, y1: at(tick), x2: AREA.right, y2: at(tick), class: "dp-grid" }),
        label(format(tick), { x: AREA.left - 8, y: at(tick) + 4, anchor: "end" }),
      ]),
      label(text, { x: 16, y: AREA.top - 12 }),
    ],
  };
}

/** The axis below. */
export function bottomAxis(
  { label: text, scale: kind = "linear", format = shortNumber }: AxisText,
  values: readonly number[],
): Axis {
  const scale = makeScale(kind, values);
  const at = (value: number) => AREA.left + scale.at(value) * (AREA.right - AREA.left);
  return {
    scale,
    at,
    drawn: [
      baseline(),
      ...scale.ticks.flatMap((tick) => [
        line({ x1: at(tick), y1: AREA.bottom, x2: at(tick), y2: AREA.bottom + 5, class: "dp-axis" }),
        label(format(tick), { x: at(tick), y: AREA.bottom + 19, anchor: "middle" }),
      ]),
      axisName(text),
    ],
  };
}

/** The line on which everything stands. */
export function baseline(): XmlElement {
  return line({ x1: AREA.left, y1: AREA.bottom, x2: AREA.right, y2: AREA.bottom, class: "dp-axis" });
}

/** What the axis below shows. */
export function axisName(text: string, y: number = AREA.bottom + 40): XmlElement {
  return label(text, { x: (AREA.left + AREA.right) / 2, y, anchor: "middle" });
}

export function line(args: { x1: number; y1: number; x2: number; y2: number; class: string }): XmlElement {
  const { class: name, ...ends } = args;
  const attributes = Object.fromEntries(Object.entries(ends).map(([key, value]) => [key, pixel(value)]));
  return element("line", { ...attributes, class: name });
}

/** The names of the series in one row, each behind what stands for it. */
export function legend(
  names: readonly string[],
  sample: (series: number, x: number, y: number) => readonly XmlNode[],
): XmlNode[] {
  if (names.length > MAX_SERIES) throw new RangeError(`a plot tells ${MAX_SERIES} series apart, not ${names.length}`);
  const y = 44;
  let x = 16;
  return names.flatMap((name, series) => {
    const drawn = [...sample(series, x, y), label(name, { x: x + 32, y: y + 4 })];
    // No font is measured here: 6.6 pixels a letter is generous for this size.
    x += 32 + name.length * 6.6 + 18;
    return drawn;
  });
}

/** A series' marker: a shape of its own, so that it is known without its colour. */
export function marker(series: number, x: number, y: number): XmlElement {
  const name = `dp-f${series}`;
  const polygon = (points: readonly (readonly [number, number])[]) =>
    element("polygon", {
      class: name,
      points: points.map(([dx, dy]) => `${pixel(x + dx)},${pixel(y + dy)}`).join(" "),
    });
  const r = 4;
  switch (series) {
    case 0:
      return element("circle", { class: name, cx: pixel(x), cy: pixel(y), r: String(r) });
    case 1:
      return polygon([
        [-r, -r],
        [r, -r],
        [r, r],
        [-r, r],
      ]);
    case 2:
      return polygon([
        [0, -5],
        [5, 4],
        [-5, 4],
      ]);
    case 3:
      return polygon([
        [0, -5.5],
        [5.5, 0],
        [0, 5.5],
        [-5.5, 0],
      ]);
    case 4:
      return polygon([
        [0, 5],
        [5, -4],
        [-5, -4],
      ]);
    case 5:
      return polygon([
        [-1.5, -5],
        [1.5, -5],
        [1.5, 5],
        [-1.5, 5],
      ]);
    default:
      return polygon([
        [-5, -1.5],
        [5, -1.5],
        [5, 1.5],
        [-5, 1.5],
      ]);
  }
}
