import { MAX_SERIES } from "../../evidence/plot/figure.js";
import { lineChart } from "../../evidence/plot/line-chart.js";
import type { Block, FigureBlock, ReportDocument } from "../../evidence/report/document.js";
import type { Link } from "../../evidence/trackers/estimate.js";
import type { BenchedDevice, TrackerBenchmark, TrackerFigures } from "../../evidence/trackers/result.js";
import { benchmarkWarnings } from "../../evidence/trackers/warnings.js";
import { formatSize } from "../../observe/format.js";
import { tableBlock } from "./table-text.js";
import { headLines, trackersTables } from "./trackers-text.js";

/** A benchmark of trackers as a report: what must be known before it is trusted, what a read costs, plotted, and all figures. */
export function trackersDocument(benchmark: TrackerBenchmark, link: Link): ReportDocument {
  const [title, ...facts] = headLines(benchmark);
  const blocks: Block[] = [
    { kind: "list", items: [...facts, `taken: ${benchmark.takenAt}`] },
    ...benchmarkWarnings(benchmark).map((text): Block => ({ kind: "warning", text })),
    ...benchmark.devices.flatMap(readFigure),
    { kind: "heading", text: "All figures" },
    ...trackersTables(benchmark, link).map(({ caption, ...cells }) => tableBlock(caption, cells)),
  ];
  return { title: `Dirtmap: ${title}`, blocks };
}

/** The cost of a read in which little is dirty, over the address space; none where nothing was read. */
function readFigure({ id, model, trackers }: BenchedDevice): FigureBlock[] {
  const series = trackers
    .map((figures) => ({ name: trackerName(figures), points: pointsOf(figures) }))
    .filter(({ points }) => points.length > 0)
    .slice(0, MAX_SERIES);
  if (series.length === 0) return [];
  const title = `A read of each tracker of ${id} (${model})`;
  return [
    {
      kind: "figure",
      name: `read-${id.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`,
      caption: `${title}, with the fewest dirty pages that were measured. Medians; whiskers span the middle half.`,
      svg: lineChart({
        title,
        description: `One line per tracker and granule: ${series.map(({ name }) => name).join(", ")}.`,
        x: { label: "guest memory that is mapped", scale: "log2", format: formatSize },
        y: { label: "a read & clear, ms", scale: "log10" },
        series,
      }),
    },
  ];
}

function trackerName({ tracker, granule }: TrackerFigures): string {
  return granule === null ? tracker : `${tracker} ${formatSize(granule)}`;
}

function pointsOf({ reads }: TrackerFigures) {
  const sizes = [...new Set(reads.map(({ memoryBytes }) => memoryBytes))].sort((a, b) => a - b);
  return sizes.map((size) => {
    const [read] = reads
      .filter(({ memoryBytes }) => memoryBytes === size)
      .toSorted((a, b) => (a.dirtyShare ?? 0) - (b.dirtyShare ?? 0));
    const { median, q1, q3 } = read.ms;
    return { x: size, y: median, low: q1, high: q3 };
  });
}
