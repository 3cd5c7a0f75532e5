import { h, setText } from "../dom.js";
import type { ReadColumn, RunModel } from "../run-model.js";
import { PAGE_SIZE } from "../src/memory/address.js";
import { formatCount, formatMs, formatShare, formatSize } from "../src/observe/format.js";
import { ownerLabel } from "../src/tracking/owner.js";
import { heatScale, onThemeChange } from "./theme.js";

/*
 * The heat of the address space: a column per read, a cell per stretch of RAM. A picture of one pixel per cell is kept and
 * painted larger, so that a new read costs one column. Arrow keys move a cursor over the cells, which is read out.
 */

const HEIGHT = 256;
/** Above all owners' names: what they have together. */
const ALL = "";

/** A heat map of a run that grows with it. */
export class HeatMap {
  readonly element: HTMLElement;
  readonly #model: RunModel;
  readonly #canvas: HTMLCanvasElement;
  readonly #context: CanvasRenderingContext2D;
  /** One pixel per cell. */
  readonly #cells = document.createElement("canvas");
  readonly #cellContext: CanvasRenderingContext2D;
  readonly #select: HTMLSelectElement;
  readonly #readout: HTMLElement;
  readonly #ends: HTMLElement;
  readonly #legend: HTMLElement;
  #scale = heatScale();
  /** The most pages of a cell, per column of the owner that is shown. */
  #most = { owner: ALL, of: new WeakMap<ReadColumn, number>() };
  /** What is painted: the last column of it, and how. */
  #painted: { last: ReadColumn | undefined; first: ReadColumn | undefined; max: number; owner: string } | null = null;
  #cursor: { column: number; bucket: number } | null = null;

  constructor(model: RunModel, signal: AbortSignal) {
    this.#model = model;
    this.#canvas = h("canvas", {
      class: "heat",
      tabindex: 0,
      role: "img",
      "aria-label": "Heat map: reads from left to right, addresses from the bottom up. Arrow keys move over its cells.",
      height: HEIGHT,
    });
    this.#context = contextOf(this.#canvas);
    this.#cellContext = contextOf(this.#cells);
    this.#select = h("select", { onchange: () => this.draw() }, h("option", { value: ALL }, "all trackers"));
    this.#readout = h(
      "p",
      { class: "readout", role: "status" },
      "Point at a cell, or move over the map with the arrow keys.",
    );
    this.#ends = h("div", { class: "ends" }, h("span"), h("span"));
    this.#legend = h("div", { class: "legend-scale" }, h("span", {}, "0"), h("span", { class: "bar" }), h("span"));
    const addresses = h(
      "div",
      { class: "addresses", "aria-hidden": "true" },
      h("span", {}, formatSize(model.header.memoryBytes)),
      h("span", {}, formatSize(model.header.memoryBytes / 2)),
      h("span", {}, "0"),
    );
    this.element = h(
      "div",
      { class: "heat-map" },
      h("div", { class: "controls" }, h("label", {}, "Reported by ", this.#select), this.#legend),
      h("div", { class: "plot" }, addresses, this.#canvas),
      this.#ends,
      this.#readout,
    );
    this.#canvas.addEventListener("keydown", (event) => this.#onKey(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#onPoint(event));
    this.#canvas.addEventListener("pointerleave", () => this.#moveTo(null));
    onThemeChange(() => {
      this.#scale = heatScale();
      this.#painted = null;
      this.draw();
    }, signal);
    const resized = new ResizeObserver(() => this.draw());
    resized.observe(this.#canvas);
    signal.addEventListener("abort", () => resized.disconnect());
  }

  /** Draws what has come since. */
  draw(): void {
    this.#listOwners();
    const { columns } = this.#model;
    const width = Math.max(1, Math.round(this.#canvas.clientWidth * devicePixelRatio));
    const height = Math.round(HEIGHT * devicePixelRatio);
    if (this.#canvas.width !== width) this.#canvas.width = width;
    if (this.#canvas.height !== height) this.#canvas.height = height;
    this.#context.clearRect(0, 0, width, height);
    const [from, to] = this.#ends.children;
    const [first, last] = [columns[0], columns.at(-1)];
    if (first === undefined || last === undefined || from === undefined || to === undefined) return;
    this.#paintCells(columns);
    this.#context.imageSmoothingEnabled = false;
    this.#context.drawImage(this.#cells, 0, 0, columns.length, this.#buckets(), 0, 0, width, height);
    setText(from, `${nameOf(first)}, ${formatMs(first.atMs)}`);
    setText(to, columns.length === 1 ? "" : `${nameOf(last)}, ${formatMs(last.atMs)}`);
    this.#drawCursor(width, height);
  }

  /** Brings the picture of cells up to date: the new column alone, if that is all that differs. */
  #paintCells(columns: readonly ReadColumn[]): void {
    const owner = this.#select.value;
    const max = roundedUp(Math.max(1, ...columns.map((column) => this.#maxOf(column, owner))));
    const [first, last] = [columns[0], columns.at(-1)];
    const painted = this.#painted;
    if (painted?.last === last && painted?.owner === owner && painted.max === max && painted.first === first) return;
    const isNext =
      painted !== null &&
      painted.owner === owner &&
      painted.max === max &&
      this.#cells.width >= columns.length &&
      painted.last === columns.at(-2);
    if (isNext) {
      // A full map moves left by a column.
      if (painted.first !== first) this.#cellContext.drawImage(this.#cells, -1, 0);
      this.#paintColumn(columns, columns.length - 1, owner, max);
    } else {
      this.#cells.width = Math.max(600, columns.length);
      this.#cells.height = this.#buckets();
      for (let index = 0; index < columns.length; index++) this.#paintColumn(columns, index, owner, max);
    }
    this.#painted = { first, last, max, owner };
    setText(this.#legend.lastElementChild as Element, `${formatCount(max)} pages or more`);
  }

  #maxOf(column: ReadColumn, owner: string): number {
    if (this.#most.owner !== owner) this.#most = { owner, of: new WeakMap() };
    const known = this.#most.of.get(column);
    if (known !== undefined) return known;
    const max = maxOf(heatOf(column, owner));
    this.#most.of.set(column, max);
    return max;
  }

  #paintColumn(columns: readonly ReadColumn[], index: number, owner: string, max: number): void {
    const buckets = this.#buckets();
    const image = this.#cellContext.createImageData(1, buckets);
    const words = new Uint32Array(image.data.buffer);
    const heat = heatOf(columns[index], owner);
    for (let bucket = 0; bucket < buckets; bucket++) {
      // The square root, so that few pages are seen beside many.
      const share = Math.sqrt(Math.min(1, (heat[bucket] ?? 0) / max));
      words[buckets - 1 - bucket] = this.#scale[Math.round(share * 255)] ?? 0;
    }
    this.#cellContext.putImageData(image, index, 0);
  }

  #listOwners(): void {
    const { ownersRead } = this.#model;
    if (this.#select.options.length === ownersRead.length + 1) return;
    const chosen = this.#select.value;
    const owners = ownersRead.map(({ name, owner, tracker }) => {
      const label = ownerLabel(owner);
      return h("option", { value: name }, label === tracker ? label : `${label} (${tracker})`);
    });
    this.#select.replaceChildren(h("option", { value: ALL }, "all trackers"), ...owners);
    this.#select.value = chosen;
  }

  #onKey(event: KeyboardEvent): void {
    const steps: Readonly<Record<string, readonly [number, number]>> = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, 1],
      ArrowDown: [0, -1],
      PageUp: [0, 16],
      PageDown: [0, -16],
    };
    const { columns } = this.#model;
    if (event.key === "Escape") this.#moveTo(null);
    const step = steps[event.key];
    if (step === undefined || columns.length === 0) return;
    event.preventDefault();
    const at = this.#cursor ?? { column: columns.length, bucket: -1 };
    this.#moveTo({ column: at.column + step[0], bucket: at.bucket + step[1] });
  }

  #onPoint(event: PointerEvent): void {
    const { columns } = this.#model;
    if (columns.length === 0) return;
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    this.#moveTo({
      column: Math.floor(((event.clientX - left) / width) * columns.length),
      bucket: Math.floor((1 - (event.clientY - top) / height) * this.#buckets()),
    });
  }

  #moveTo(to: { column: number; bucket: number } | null): void {
    const { columns } = this.#model;
    const buckets = this.#buckets();
    this.#cursor = to === null ? null : { column: clamp(to.column, columns.length), bucket: clamp(to.bucket, buckets) };
    const column = columns[this.#cursor?.column ?? -1];
    if (this.#cursor !== null && column !== undefined) {
      const { bucket } = this.#cursor;
      const stretch = this.#model.header.memoryBytes / buckets;
      const pages = heatOf(column, this.#select.value)[bucket] ?? 0;
      const of = formatShare(Math.min(1, (pages * PAGE_SIZE) / stretch));
      setText(
        this.#readout,
        `${nameOf(column)}, ${formatMs(column.atMs)} · RAM ${formatSize(bucket * stretch)} to ${formatSize((bucket + 1) * stretch)} · ${formatCount(pages)} pages, ${of}`,
      );
    }
    this.draw();
  }

  #drawCursor(width: number, height: number): void {
    if (this.#cursor === null) return;
    const { columns } = this.#model;
    const cell = { width: width / columns.length, height: height / this.#buckets() };
    const x = this.#cursor.column * cell.width;
    const y = height - (this.#cursor.bucket + 1) * cell.height;
    // Two colours, so that it is seen on any.
    for (const [style, grow] of [
      ["#000", 1.5],
      ["#fff", 0],
    ] as const) {
      this.#context.strokeStyle = style;
      this.#context.lineWidth = 1.5 * devicePixelRatio;
      this.#context.strokeRect(x - grow, y - 1 - grow, Math.max(cell.width, 4) + 2 * grow, cell.height + 2 + 2 * grow);
    }
  }

  #buckets(): number {
    return this.#model.columns.at(-1)?.sum.length ?? 1;
  }
}

function nameOf({ round }: ReadColumn): string {
  return round === null ? "read" : `round ${round}`;
}

function heatOf(column: ReadColumn | undefined, owner: string): readonly number[] {
  if (column === undefined) return [];
  return owner === ALL ? column.sum : (column.owners.get(owner)?.heat ?? []);
}

function maxOf(heat: readonly number[]): number {
  let max = 0;
  for (let i = 0; i < heat.length; i++) if ((heat[i] ?? 0) > max) max = heat[i] ?? 0;
  return max;
}

/** To a power of two, so that the scale seldom changes. */
function roundedUp(value: number): number {
  return 2 ** Math.ceil(Math.log2(value));
}

function clamp(value: number, count: number): number {
  return Math.max(0, Math.min(count - 1, value));
}

function contextOf(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const context = canvas.getContext("2d");
  if (context === null) throw new Error("this browser has no 2D canvas");
  return context;
}
