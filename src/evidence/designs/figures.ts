import { TRACKING_DESIGNS } from "../../tracking/choice.js";
import { barChart } from "../plot/bar-chart.js";
import { type LineSeries, lineChart, type PlotMark } from "../plot/line-chart.js";
import type { ScaleKind } from "../plot/scale.js";
import type { FigureBlock } from "../report/document.js";
import { curve, LINK } from "./crossings.js";
import { type CrossingRow, type DesignsResult, MEASURES } from "./result.js";
import type { WorkloadName } from "./workload-names.js";

type Measure = CrossingRow["measure"];

const AXES: Readonly<
  Record<Measure, { title: string; label: string; scale: ScaleKind; format: (value: number) => string }>
> = {
  cpu: {
    title: "Processor time of a read",
    label: "processor time of a read, ms",
    scale: "log10",
    format: plainNumber,
  },
  memory: { title: "Memory for dirty bits", label: "memory held for dirty bits", scale: "log2", format: bytes },
  calls: { title: "Calls per read", label: "calls of the reader, per read", scale: "log2", format: plainNumber },
  copied: {
    title: "Bitmaps filled per read",
    label: "bytes of bitmaps that calls fill, per read",
    scale: "log2",
    format: bytes,
  },
  moved: {
    title: "Bytes to move after the last read",
    label: "bytes of the pages that the last read names",
    scale: "log2",
    format: bytes,
  },
  downtime: {
    title: "The least downtime",
    label: `last read, and moving what it names at ${(LINK * 8) / 1e9} Gbit/s, ms`,
    scale: "log10",
    format: plainNumber,
  },
};

/** The plots of a result: the measures over the number of devices for each workload, and what migrations were like. */
export function designFigures(result: DesignsResult): FigureBlock[] {
  const workloads = [...new Set(result.reads.map(({ workload }) => workload))];
  return [
    ...workloads.flatMap((workload) => MEASURES.map((each) => scaling(result, workload, each))),
    ...(result.migrations.length === 0 ? [] : [downtime(result), sent(result)]),
  ];
}

/** The name of a workload's figure; file systems that ignore case must tell a from A. */
export function figureName(measure: string, workload: WorkloadName): string {
  const isPair = workload === "A" || workload === "B";
  return `${measure}-${isPair ? `pair-${workload.toLowerCase()}` : workload.length === 1 ? `case-${workload}` : workload}`;
}

/** How a workload is called in a figure's title. */
export function workloadTitle(workload: WorkloadName): string {
  if (workload === "A" || workload === "B") return `pair ${workload}`;
  return workload.length === 1 ? `case ${workload}` : workload;
}

function scaling(result: DesignsResult, workload: WorkloadName, measure: Measure): FigureBlock {
  const { title, label, scale, format } = AXES[measure];
  const series: LineSeries[] = TRACKING_DESIGNS.map((design) => ({
    name: design,
    points: curve(result.reads, workload, design, measure),
  })).filter(({ points }) => points.length > 0);
  const found = result.crossings.filter((row) => row.workload === workload && row.measure === measure);
  const marks: PlotMark[] = found.flatMap(({ design, rival, crossings }) =>
    crossings.map(({ at }) => ({ x: at, y: heightAt(series, design, at), text: `${rival}: ${at.toPrecision(2)}` })),
  );
  const named = `${title}, ${workloadTitle(workload)}`;
  const last = series.map(({ name, points }) => `${name} ${format(points[points.length - 1].y)}`).join(", ");
  const most = Math.max(...result.settings.devices);
  return {
    kind: "figure",
    name: figureName(measure, workload),
    caption: `${named}. Medians; whiskers span the middle half of the repetitions.`,
    svg: lineChart({
      title: named,
      description: `One line per design over the number of devices. At ${most} devices: ${last}.`,
      x: { label: "devices", scale: "log2" },
      y: { label, scale, format },
      series,
      marks,
    }),
  };
}

/** Where a curve that is straight on logarithmic axes between its points passes x. */
function heightAt(series: readonly LineSeries[], name: string, x: number): number {
  const points = series.find((each) => each.name === name)?.points ?? [];
  const after = points.findIndex((point) => point.x >= x);
  if (after <= 0) return points[0]?.y ?? 0;
  const [from, to] = [points[after - 1], points[after]];
  if (from.y <= 0 || to.y <= 0) return to.y;
  const share = Math.log(x / from.x) / Math.log(to.x / from.x);
  return Math.exp(Math.log(from.y) + share * Math.log(to.y / from.y));
}

function downtime(result: DesignsResult): FigureBlock {
  return migrationBars(result, {
    name: "migration-downtime",
    title: "Downtime of a migration",
    label: "downtime, ms",
    of: ({ downtimeMs: { median, q1, q3 } }) => ({ value: median, low: q1, high: q3 }),
  });
}

function sent(result: DesignsResult): FigureBlock {
  return migrationBars(result, {
    name: "migration-bytes",
    title: "Bytes that a migration moves",
    label: "MB (10^6 bytes) sent",
    of: ({ bytes: { median, q1, q3 } }) => ({ value: median / 1e6, low: q1 / 1e6, high: q3 / 1e6 }),
  });
}

function migrationBars(
  { migrations }: DesignsResult,
  args: {
    name: string;
    title: string;
    label: string;
    of: (row: DesignsResult["migrations"][number]) => { value: number; low: number; high: number };
  },
): FigureBlock {
  const groups = [...new Map(migrations.map((row) => [`${row.workload}/${row.devices}`, row])).values()];
  const severalCounts = new Set(migrations.map(({ devices }) => devices)).size > 1;
  const bars = TRACKING_DESIGNS.map((design) => ({
    name: design,
    bars: groups.map(({ workload, devices }) => {
      const row = migrations.find(
        (each) => each.workload === workload && each.devices === devices && each.design === design,
      );
      return row === undefined ? null : args.of(row);
    }),
  }));
  const most = bars.flatMap(({ name, bars: all }) =>
    all.map((bar, index) => ({ name, group: groups[index], value: bar?.value ?? 0 })),
  );
  const worst = most.toSorted((a, b) => b.value - a.value)[0];
  return {
    kind: "figure",
    name: args.name,
    caption: `${args.title}. Medians; whiskers span the middle half of the repetitions.`,
    svg: barChart({
      title: args.title,
      description: `A group of bars per workload, a bar per design. The highest: ${worst.name} in ${workloadTitle(worst.group.workload)}, ${plainNumber(worst.value)}.`,
      x: "workload",
      y: { label: args.label, format: plainNumber },
      categories: groups.map(({ workload, devices }) =>
        severalCounts ? `${workloadTitle(workload)}, ${devices}` : workloadTitle(workload),
      ),
      series: bars,
    }),
  };
}

function plainNumber(value: number): string {
  return String(Number(value.toPrecision(3)));
}

function bytes(value: number): string {
  const unit = value >= 2 ** 30 ? "G" : value >= 2 ** 20 ? "M" : value >= 2 ** 10 ? "K" : "B";
  const scaled = value / (unit === "G" ? 2 ** 30 : unit === "M" ? 2 ** 20 : unit === "K" ? 2 ** 10 : 1);
  return `${Number(scaled.toPrecision(3))}${unit}`;
}
