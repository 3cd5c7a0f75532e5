import { h } from "../dom.js";
import uPlot from "../vendor/uplot.js";
import { color, onThemeChange } from "./theme.js";

/** A line of a chart. */
export interface Line {
  readonly label: string;
  /** A custom property of the style sheet. */
  readonly color: string;
  /** Dashes, for who doesn't tell colours apart. */
  readonly dash?: number[];
  /** Filled bars instead of a line. */
  readonly bars?: boolean;
}

export interface LineChartOptions {
  /** Said to who doesn't see it; the figures are in a table beside it. */
  readonly label: string;
  readonly lines: readonly Line[];
  formatX(value: number): string;
  /** Of bytes, or bytes per second. */
  formatY(value: number): string;
  readonly height?: number;
}

/** Steps of an axis of bytes: 1, 2, 5, 10 … of each unit. */
const BYTE_STEPS = [0, 1, 2, 3, 4].flatMap((unit) => [1, 2, 5, 10, 20, 50, 100, 200, 500].map((n) => n * 1024 ** unit));

/** Values over x, by line: `[x, line 0, line 1 …]`. */
export type LineData = [number[], ...(number | null)[][]];

const HEIGHT = 220;

/** A chart that fits its box, follows the theme, and is redrawn with new values. */
export class LineChart {
  readonly element: HTMLElement;
  readonly #options: LineChartOptions;
  readonly #box: HTMLElement;
  #data: LineData = [[]];
  #plot: uPlot | null = null;

  constructor(options: LineChartOptions, signal: AbortSignal) {
    this.#options = options;
    this.#box = h("div", { class: "chart", role: "img", "aria-label": options.label });
    const legend = options.lines.map(({ label }, index) => {
      const key = h("span", { class: "key" });
      key.style.background = `var(--${options.lines[index]?.color})`;
      return h("li", {}, key, label);
    });
    this.element = h("div", {}, this.#box, options.lines.length > 1 && h("ul", { class: "legend" }, ...legend));
    const resized = new ResizeObserver(() => this.#fit());
    resized.observe(this.#box);
    onThemeChange(() => this.#make(), signal);
    signal.addEventListener("abort", () => {
      resized.disconnect();
      this.#plot?.destroy();
      this.#plot = null;
    });
  }

  draw(data: LineData): void {
    this.#data = data;
    if (this.#plot === null) this.#make();
    else this.#plot.setData(data as uPlot.AlignedData);
  }

  #fit(): void {
    const width = this.#box.clientWidth;
    if (this.#plot === null) this.#make();
    else if (width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: this.#height });
  }

  get #height(): number {
    return this.#options.height ?? HEIGHT;
  }

  #make(): void {
    const width = this.#box.clientWidth;
    if (width === 0) return;
    this.#plot?.destroy();
    const { lines, formatX, formatY } = this.#options;
    const hasBars = lines.some(({ bars }) => bars === true);
    const axis = {
      stroke: color("muted"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: color("line"), width: 1 },
      ticks: { stroke: color("line"), width: 1 },
    };
    this.#plot = new uPlot(
      {
        width,
        height: this.#height,
        legend: { show: false },
        cursor: { show: false },
        // Bars stand half a step to both sides of their number.
        scales: {
          x: { time: false, ...(hasBars ? { range: (_, min, max) => [min - 0.5, max + 0.5] } : {}) },
          y: { range: (_, __, max) => [0, max > 0 ? max * 1.05 : 1] },
        },
        axes: [
          {
            ...axis,
            space: 70,
            ...(hasBars ? { incrs: [1, 2, 5, 10, 20, 50, 100] } : {}),
            values: (_, values) => values.map(formatX),
          },
          { ...axis, size: 66, incrs: BYTE_STEPS, values: (_, values) => values.map(formatY) },
        ],
        series: [
          {},
          ...lines.map(({ label, color: name, dash, bars }) => ({
            label,
            stroke: color(name),
            width: bars === true ? 0 : 2,
            ...(bars === true ? { fill: color(name), paths: barPaths(), points: { show: false } } : {}),
            ...(dash === undefined ? {} : { dash }),
          })),
        ],
      },
      this.#data as uPlot.AlignedData,
      this.#box,
    );
  }
}

function barPaths(): uPlot.Series.PathBuilder {
  const { bars } = uPlot.paths;
  if (bars === undefined) throw new Error("uPlot comes without bars");
  return bars({ size: [0.6, 48] });
}
