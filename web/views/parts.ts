import { type Column, dataTable, h, setText } from "../dom.js";
import { type Line, LineChart, type LineData } from "../plots/line-chart.js";
import { SERIES_COLORS } from "../plots/theme.js";
import { type OwnerState, type RoundReport, type RunModel, rateOf } from "../run-model.js";
import { PAGE_SIZE } from "../src/memory/address.js";
import { formatCount, formatMs, formatRate, formatShare, formatSize } from "../src/observe/format.js";
import { ownerLabel } from "../src/tracking/owner.js";

/*
 * The parts that views of a run share: rounds, devices, dirty rates.
 */

/** The table of devices, and the chart of rates, are brought up to date so often: faster is no easier to read. */
const TABLE_MS = 500;
const CHART_MS = 250;

/** Dirty rates over time, the owners with most pages each with a line, the rest as one. */
export class RateChart {
  readonly element = h("div");
  readonly #model: RunModel;
  readonly #signal: AbortSignal;
  #chart: LineChart | null = null;
  #owners = "";
  #top: OwnerState[] = [];
  #rest: OwnerState[] = [];
  /** Draws, now and then; at once if that is asked for. */
  readonly draw = paced(CHART_MS, () => this.#draw());

  constructor(model: RunModel, signal: AbortSignal) {
    this.#model = model;
    this.#signal = signal;
  }

  #draw(): void {
    const { columns, ownersRead } = this.#model;
    this.#choose(ownersRead);
    const x = columns.map(({ atMs }) => atMs / 1000);
    const lines = this.#top.map(({ name }) => columns.map((column) => rateOf(column, name)));
    const rest = columns.map((column) => this.#rest.reduce((sum, { name }) => sum + rateOf(column, name), 0));
    const data: LineData = [x, ...lines, ...(this.#rest.length === 0 ? [] : [rest])];
    this.#chart?.draw(data);
  }

  /** Decides once who gets a line, and again when there are more owners. */
  #choose(owners: OwnerState[]): void {
    const names = owners.map(({ name }) => name).join("\n");
    if (names === this.#owners) return;
    this.#owners = names;
    const fits = owners.length <= SERIES_COLORS ? owners.length : SERIES_COLORS - 1;
    const ranked = [...owners].sort((a, b) => b.total.reported - a.total.reported);
    this.#top = ranked.slice(0, fits);
    this.#rest = ranked.slice(fits);
    const lines: Line[] = this.#top.map(({ owner }, index) => ({
      label: ownerLabel(owner),
      color: `series-${index}`,
      ...(index < 4 ? {} : { dash: [6, 4] }),
    }));
    if (this.#rest.length > 0) lines.push({ label: `${this.#rest.length} others`, color: "muted", dash: [2, 3] });
    const chart = new LineChart(
      {
        label: "Dirty bytes per second of each tracker's owner over time; the table of devices has the figures",
        lines,
        formatX: (value) => formatMs(value * 1000),
        formatY: formatRate,
      },
      this.#signal,
    );
    this.#chart = chart;
    this.element.replaceChildren(chart.element);
  }
}

/** What each round sent, and what it left. */
export class RoundsChart {
  readonly element: HTMLElement;
  readonly #model: RunModel;
  readonly #chart: LineChart;
  readonly #table = h("details", {}, h("summary", {}, "As a table"), h("div"));
  #rounds = -1;

  constructor(model: RunModel, signal: AbortSignal) {
    this.#model = model;
    this.#chart = new LineChart(
      {
        label: "Bytes sent in each round, and bytes left after it; the figures are in the table below",
        lines: [
          { label: "sent", color: "series-0", bars: true },
          { label: "left", color: "series-1" },
        ],
        formatX: (value) => (Number.isInteger(value) ? String(value) : ""),
        formatY: formatSize,
      },
      signal,
    );
    this.element = h("div", {}, this.#chart.element, this.#table);
  }

  draw(): void {
    const { rounds } = this.#model;
    if (rounds.length === this.#rounds) return;
    this.#rounds = rounds.length;
    this.#chart.draw([
      rounds.map(({ round }) => round),
      rounds.map(({ bytes }) => bytes),
      rounds.map(({ remaining }) => remaining),
    ]);
    this.#table.lastElementChild?.replaceChildren(roundsTable(rounds));
  }
}

function roundsTable(rounds: readonly RoundReport[]): HTMLElement {
  const columns: Column<RoundReport>[] = [
    { title: "Round", cell: ({ round }) => String(round) },
    { title: "Phase", cell: ({ phase }) => phase },
    { title: "Pages", numeric: true, cell: ({ pages }) => formatCount(pages) },
    { title: "Zero pages", numeric: true, cell: ({ zeroPages }) => formatCount(zeroPages) },
    { title: "Sent", numeric: true, cell: ({ bytes }) => formatSize(bytes) },
    { title: "Time", numeric: true, cell: ({ ms }) => formatMs(ms) },
    { title: "Left", numeric: true, cell: ({ remaining }) => formatSize(remaining) },
  ];
  return dataTable("Rounds", columns, rounds);
}

/** A row per tracker's owner, and per device that no tracker told of, kept up to date in place. */
export class OwnersTable {
  readonly element: HTMLElement;
  readonly #model: RunModel;
  #rows = new Map<
    string,
    { owner: OwnerState; cells: Record<"rate" | "share" | "reported" | "exclusive" | "reading", HTMLElement> }
  >();
  /** Brings it up to date, now and then; at once if that is asked for. */
  readonly draw = paced(TABLE_MS, () => this.#draw());

  constructor(model: RunModel) {
    this.#model = model;
    this.element = h("div");
  }

  #draw(): void {
    const { owners } = this.#model.state;
    if (owners.length !== this.#rows.size || !owners.every(({ name }) => this.#rows.has(name))) this.#make();
    const all = owners.reduce((sum, { total }) => sum + total.reported, 0);
    for (const { name, last, total } of owners) {
      const cells = this.#rows.get(name)?.cells;
      if (cells === undefined || total.reads === 0) continue;
      const share = all > 0 ? total.reported / all : 0;
      setText(cells.rate, last === null ? "–" : formatRate(last.bytesPerSecond));
      setText(cells.share.lastElementChild ?? cells.share, formatShare(share));
      (cells.share.firstElementChild as HTMLElement).style.setProperty("--share", String(share));
      setText(cells.reported, formatCount(total.reported));
      setText(cells.exclusive, formatCount(total.exclusive));
      setText(cells.reading, formatMs(total.readMs / total.reads));
    }
  }

  #make(): void {
    this.#rows = new Map(
      this.#model.state.owners.map((owner) => {
        const share = h("span", { class: "share" }, h("span", { class: "bar" }), h("span"));
        const none = () => h("span", {}, "–");
        const cells = { rate: none(), share, reported: none(), exclusive: none(), reading: none() };
        return [owner.name, { owner, cells }];
      }),
    );
    const rows = [...this.#rows.values()];
    const columns: Column<(typeof rows)[number]>[] = [
      { title: "Device", cell: ({ owner }) => ownerLabel(owner.owner) },
      { title: "Model", cell: ({ owner }) => owner.model || "–" },
      { title: "Tracker", cell: ({ owner }) => owner.tracker },
      {
        title: "Granule",
        hint: "bytes per dirty bit that were asked for",
        numeric: true,
        cell: ({ owner }) => (owner.granule === null ? "–" : formatSize(owner.granule)),
      },
      { title: "Dirty rate", numeric: true, cell: ({ cells }) => cells.rate },
      { title: "Share", hint: "of all pages reported", cell: ({ cells }) => cells.share },
      { title: "Pages", hint: "reported, over all reads", numeric: true, cell: ({ cells }) => cells.reported },
      {
        title: "Only by it",
        hint: "pages that no other tracker reported in the same read",
        numeric: true,
        cell: ({ cells }) => cells.exclusive,
      },
      { title: "A read takes", hint: "on average", numeric: true, cell: ({ cells }) => cells.reading },
    ];
    this.element.replaceChildren(dataTable("Devices, vCPUs and their trackers", columns, rows));
  }
}

/** What the trackers cost: time of reading, of the time of the run, and per page. */
export function costTable(model: RunModel): HTMLElement {
  const seconds = model.columns.reduce((sum, column) => sum + column.seconds, 0);
  const columns: Column<OwnerState>[] = [
    { title: "Device", cell: ({ owner }) => ownerLabel(owner) },
    { title: "Tracker", cell: ({ tracker }) => tracker },
    { title: "Reads", numeric: true, cell: ({ total }) => formatCount(total.reads) },
    { title: "Reading", hint: "all reads together", numeric: true, cell: ({ total }) => formatMs(total.readMs) },
    {
      title: "Of the time",
      hint: "while trackers were on",
      numeric: true,
      cell: ({ total }) => (seconds > 0 ? `${((total.readMs / 1000 / seconds) * 100).toFixed(1)} %` : "–"),
    },
    {
      title: "Per dirty MB",
      hint: "reading, per 10⁶ bytes that were reported",
      numeric: true,
      cell: ({ total: { readMs, reported } }) =>
        reported > 0 ? formatMs(readMs / ((reported * PAGE_SIZE) / 1e6)) : "–",
    },
  ];
  return dataTable("What the trackers cost", columns, model.ownersRead);
}

/** Lets something through at most so often. What was held back comes at the end of the pause. */
function paced(ms: number, draw: () => void): (now?: boolean) => void {
  let drawnAt = Number.NEGATIVE_INFINITY;
  let isHeld = false;
  return (now = false) => {
    const wait = drawnAt + ms - performance.now();
    if (!now && wait > 0) {
      if (isHeld) return;
      isHeld = true;
      setTimeout(() => {
        isHeld = false;
        drawnAt = performance.now();
        draw();
      }, wait);
      return;
    }
    drawnAt = performance.now();
    draw();
  };
}
