import { barChart } from "../../evidence/plot/bar-chart.js";
import { MAX_SERIES } from "../../evidence/plot/figure.js";
import { lineChart } from "../../evidence/plot/line-chart.js";
import type { Block, ReportDocument } from "../../evidence/report/document.js";
import type { Link } from "../../evidence/trackers/estimate.js";
import type { BenchedDevice, TrackerBenchmark, TrackerFigures } from "../../evidence/trackers/result.js";
import { benchmarkWarnings } from "../../evidence/trackers/warnings.js";
import { formatSize } from "../../observe/format.js";
import { headLines, trackersTables } from "./trackers-text.js";

/** A benchmark of trackers as a report, with plots. */
export function trackersReport(benchmark: TrackerBenchmark, link: Link): ReportDocument {
  const [title, ...facts] = headLines(benchmark);
  const { devices, takenAt } = benchmark;
  return {
    title: `Dirtmap: ${title}`,
    blocks: [
      { kind: "list", items: [...facts, `taken: ${takenAt}`] },
      ...benchmarkWarnings(benchmark).map((text): Block => ({ kind: "warning", text })),
      ...trackersTables(benchmark, link).map((table): Block => ({ kind: "table", ...table })),
      readsFigure(devices),
      ...sizesFigure(devices),
    ],
  };
}

/** Bars: what a read of a clean address space costs, per device and tracker. */
function readsFigure(devices: readonly BenchedDevice[]): Block {
  const named = devices.map(
    ({ trackers }) => new Map(trackers.map((figures) => [nameOf(figures), cleanRead(figures)])),
  );
  const names = [...new Set(named.flatMap((trackers) => [...trackers.keys()]))].slice(0, MAX_SERIES);
  const svg = barChart({
    title: "A read & clear of a clean address space",
    description: "A bar per device and tracker: the median of a read, with the middle half of what was measured.",
    x: "device",
    y: { label: "milliseconds" },
    categories: devices.map(({ id }) => id),
    series: names.map((name) => ({
      name,
      bars: named.map((trackers) => {
        const ms = trackers.get(name)?.ms;
        return ms === undefined ? null : { value: ms.median, low: ms.q1, high: ms.q3 };
      }),
    })),
  });
  return { kind: "figure", name: "reads", svg, caption: "What a read costs where nothing is dirty." };
}

/** Lines: what a read costs by address space; nothing where only one was measured. */
function sizesFigure(devices: readonly BenchedDevice[]): Block[] {
  const series = devices.flatMap(({ id, trackers }) =>
    trackers
      .filter(({ tracker }) => tracker !== "everything")
      .map((figures) => ({
        name: `${id} ${nameOf(figures)}`,
        points: figures.reads
          .filter(({ dirtyShare }) => dirtyShare === null || dirtyShare === 0)
          .map(({ memoryBytes, ms }) => ({ x: memoryBytes, y: ms.median, low: ms.q1, high: ms.q3 })),
      })),
  );
  if (!series.some(({ points }) => points.length > 1)) return [];
  const svg = lineChart({
    title: "A read & clear, by address space",
    description: "A line per device and tracker: the median of a read of a clean address space, by its size.",
    x: { label: "guest memory", scale: "log2", format: formatSize },
    y: { label: "milliseconds" },
    series: series.slice(0, MAX_SERIES),
  });
  return [{ kind: "figure", name: "sizes", svg, caption: "What a read costs by the size of the address space." }];
}

function cleanRead({ reads }: TrackerFigures) {
  const largest = Math.max(0, ...reads.map(({ memoryBytes }) => memoryBytes));
  return reads.find(({ memoryBytes, dirtyShare }) => memoryBytes === largest && (dirtyShare ?? 0) === 0);
}

function nameOf({ tracker, granule, foundGranule }: TrackerFigures): string {
  const bits = foundGranule ?? granule;
  return bits === null ? tracker : `${tracker} ${formatSize(bits)}`;
}
