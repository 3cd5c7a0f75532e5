import { element, type XmlNode } from "../../xml.js";
import { AREA, axisName, type FigureText, figure, HEAT_STEPS, label, line, pixel, shortNumber } from "./figure.js";

/** A row of a heat map, with its name on the left. */
export interface HeatRow {
  readonly name: string;
  /** One value per column, 0 or more. */
  readonly values: readonly number[];
}

const ROW = { most: 26, least: 4 } as const;

/**
 * Draws rows of cells as SVG; a larger value has a stronger colour. The steps of colour are even in the square root of the value,
 * so that a small value beside a large one differs visibly from 0.
 * @param columns the texts below the first and the last column
 * @throws RangeError for rows of different lengths, and for values that are negative or not finite
 */
export function heatMap({
  rows,
  columns,
  x,
  unit,
  ...text
}: FigureText & {
  readonly x: string;
  /** The unit of a value: "pages per bucket". */
  readonly unit: string;
  readonly columns: { readonly first: string; readonly last: string };
  readonly rows: readonly HeatRow[];
}): string {
  const count = rows[0]?.values.length ?? 0;
  if (rows.some(({ values }) => values.length !== count)) throw new RangeError("a heat map's rows are equally long");
  const all = rows.flatMap(({ values }) => values);
  const wrong = all.find((value) => !Number.isFinite(value) || value < 0);
  if (wrong !== undefined) throw new RangeError(`${wrong} has no place in a heat map`);
  const most = all.reduce((a, b) => Math.max(a, b), 0);
  const step = (value: number) =>
    value === 0 ? 0 : Math.max(1, Math.ceil(Math.sqrt(value / most) * (HEAT_STEPS - 1)));
  const height = Math.min(ROW.most, Math.max(ROW.least, (AREA.bottom - AREA.top) / Math.max(1, rows.length)));
  const bottom = AREA.top + height * rows.length;
  const cell = (AREA.right - AREA.left) / Math.max(1, count);
  // A name needs 13 pixels of height: where rows are lower, some go without.
  const named = Math.ceil(13 / height);
  return figure(
    text,
    [
      ...scaleOf(most, unit),
      ...rows.flatMap(({ name, values }, index) => [
        ...(index % named === 0
          ? [label(name, { x: AREA.left - 8, y: AREA.top + index * height + height / 2 + 4, anchor: "end" })]
          : []),
        ...runs(values.map(step)).map(({ from, cells, value }) =>
          element("rect", {
            class: `dp-h${value}`,
            x: pixel(AREA.left + from * cell),
            y: pixel(AREA.top + index * height),
            width: pixel(cells * cell),
            height: pixel(height),
          }),
        ),
      ]),
      line({ x1: AREA.left, y1: bottom, x2: AREA.right, y2: bottom, class: "dp-axis" }),
      label(columns.first, { x: AREA.left, y: bottom + 19 }),
      label(columns.last, { x: AREA.right, y: bottom + 19, anchor: "end" }),
      axisName(x, bottom + 19),
    ],
    Math.ceil(bottom + 34),
  );
}

/** What the colours mean. */
function scaleOf(most: number, unit: string): XmlNode[] {
  const at = 16;
  const size = 16;
  const end = at + HEAT_STEPS * size + 34;
  return [
    label("0", { x: at, y: 50 }),
    ...Array.from({ length: HEAT_STEPS }, (_, step) =>
      element("rect", {
        class: `dp-h${step}`,
        x: pixel(at + 14 + step * size),
        y: "39",
        width: pixel(size),
        height: "14",
      }),
    ),
    label(`${shortNumber(most)} ${unit}`, { x: end - 12, y: 50 }),
  ];
}

/** Neighbours of equal value, as one. */
function runs(values: readonly number[]): { from: number; cells: number; value: number }[] {
  const found: { from: number; cells: number; value: number }[] = [];
  values.forEach((value, index) => {
    const last = found.at(-1);
    if (last !== undefined && last.value === value) last.cells++;
    else found.push({ from: index, cells: 1, value });
  });
  return found;
}
