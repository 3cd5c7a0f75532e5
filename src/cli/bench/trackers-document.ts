import { MAX_SERIES } from "../../evidence/plot/figure.js";
import { lineChart } from "../../evidence/plot/line-chart.js";
import type { Block, FigureBlock, ReportDocument } from "../../evidence/report/document.js";
import type { Link } from "../../evidence/trackers/estimate.js";
import type { BenchedDevice, TrackerBenchmark, TrackerFigures } from "../../evidence/trackers/result.js";
import { formatSize } from "../../observe/format.js";
import { trackersText } from "./trackers-text.js";

/** A benchmark of trackers as a report: what a read costs, plotted for each device, and all the figures. */
export function trackersDocument(benchmark: TrackerBenchmark, link: Link): ReportDocument {
  const figures = benchmark.devices.flatMap(readFigure);
  const blocks: Block[] = [
    { kind: "text", text: `This measures ${benchmark.measures}. Taken ${benchmark.takenAt}.` },
    ...figures,
    { kind: "heading", text: "All figures" },
    { kind: "code", text: trackersText(benchmark, link) },
  ];
  return { title: `Trackers of ${benchmark.scenario ?? benchmark.host}`, blocks };
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

function trackerName({ tracker, granule, foundGranule }: TrackerFigures): string {
  const bits = foundGranule ?? granule;
  return bits === null ? tracker : `${tracker} ${formatSize(bits)}`;
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
