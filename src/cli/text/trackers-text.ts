import type { TableBlock } from "../../evidence/report/document.js";
import type { Comparison } from "../../evidence/statistics.js";
import { estimateMigration, type Link } from "../../evidence/trackers/estimate.js";
import type { BenchedDevice, ReadFigures, TrackerBenchmark, TrackerFigures } from "../../evidence/trackers/result.js";
import { benchmarkWarnings } from "../../evidence/trackers/warnings.js";
import { formatCount, formatMs, formatRate, formatShare, formatSize } from "../../observe/format.js";
import { type Cells, tableLines } from "./table-text.js";

/*
 * What `dirtmap bench trackers` prints.
 */

const NOTHING = "-";

/** The whole benchmark. Ends without a newline. */
export function trackersText(benchmark: TrackerBenchmark, link: Link): string {
  const warnings = benchmarkWarnings(benchmark);
  const [title, ...facts] = headLines(benchmark);
  return [
    [title, ...facts.map((fact) => `  ${fact}`)],
    ...trackersTables(benchmark, link).map(({ caption, ...cells }) => [caption, ...tableLines(cells)]),
    ...(warnings.length === 0 ? [] : [warnings.map((warning) => `warning: ${warning}`)]),
  ]
    .map((lines) => lines.join("\n"))
    .join("\n\n");
}

/** What was measured, and on what: a title, and lines under it. */
export function headLines({ machine, measures, quick, scenario, host }: TrackerBenchmark): [string, ...string[]] {
  const subject = scenario === null ? `host ${host}` : `scenario ${scenario}`;
  const steal = machine.stealShare === null ? "" : `, stolen ${formatShare(machine.stealShare)}`;
  return [
    `trackers of ${subject}${quick ? ", few repetitions (--quick)" : ""}`,
    `measured: ${measures}`,
    `on: ${machine.cpu}, ${machine.cores} cores, ${machine.kernel}, Node ${machine.node}, load ${machine.load.toFixed(1)}${steal}`,
  ];
}

/** The figures as tables. */
export function trackersTables(benchmark: TrackerBenchmark, link: Link): Omit<TableBlock, "kind">[] {
  const { memoryBytes, devices, sharing } = benchmark;
  const rate = formatRate(link.bandwidth);
  const limit = formatMs(link.downtimeLimitMs);
  return [
    { caption: "cost to the reader, cost to the device, exactness", left: NAMES, ...costTable(devices, memoryBytes) },
    { caption: "a read & clear, by address space and by share of dirty pages", left: NAMES, ...readTable(devices) },
    {
      caption: `a migration of ${formatSize(memoryBytes)} in which the device is all that writes, over ${rate}, downtime limit ${limit} (an estimate)`,
      left: NAMES,
      ...estimateTable(benchmark, link),
    },
    ...(sharing.length === 0 ? [] : [{ caption: "one HWPT for several devices", ...sharingTable(benchmark) }]),
  ];
}

/** Columns of text: device and tracker. */
const NAMES = [0, 1];

function costTable(devices: readonly BenchedDevice[], memoryBytes: number): Cells {
  const rows = rowsOf(devices, (figures) => {
    const clean = largest(figures).find(({ dirtyShare }) => dirtyShare === null || dirtyShare === 0);
    return [
      sizeOr(figures.foundGranule),
      timeOf(figures.attach),
      timeOf(figures.start),
      timeOf(clean?.ms ?? null),
      timeOf(figures.stop),
      lossText(figures.dma),
      exactness(figures, memoryBytes),
    ];
  });
  return {
    head: ["device", "tracker", "granule", "found", "attach", "start", "read", "stop", "DMA lost", "named/written"],
    rows,
  };
}

function readTable(devices: readonly BenchedDevice[]): Cells {
  const columns = new Map<string, { memoryBytes: number; dirtyShare: number | null }>();
  for (const { trackers } of devices) {
    for (const { reads } of trackers) for (const read of reads) columns.set(columnName(read), read);
  }
  const names = [...columns.keys()];
  const rows = rowsOf(devices, ({ reads }) =>
    names.map((name) => timeOf(reads.find((read) => columnName(read) === name)?.ms ?? null)),
  );
  return { head: ["device", "tracker", "granule", ...names], rows };
}

function columnName({ memoryBytes, dirtyShare }: Pick<ReadFigures, "memoryBytes" | "dirtyShare">): string {
  const size = formatSize(memoryBytes);
  return dirtyShare === null ? size : `${size}, ${formatShare(dirtyShare)}`;
}

function estimateTable(benchmark: TrackerBenchmark, link: Link): Cells {
  const rows = benchmark.devices.flatMap((device) =>
    rowsOf([device], (figures) => {
      const estimate = estimateMigration(benchmark, device, figures, link);
      if (estimate === null) return [NOTHING, NOTHING, NOTHING, "not known"];
      const { rounds, totalMs, downtimeMs, converges } = estimate;
      return [String(rounds), formatMs(totalMs), formatMs(downtimeMs), converges ? "yes" : "no"];
    }),
  );
  return { head: ["device", "tracker", "granule", "rounds", "total", "downtime", "converges"], rows };
}

function sharingTable({ sharing }: TrackerBenchmark): Cells {
  const rows = sharing.map(({ devices, domains, separateReads, sharedRead, read, dma }) => [
    devices.join(" "),
    `${domains.separate} to ${domains.shared}`,
    timeOf({ median: separateReads.reduce((sum, { median }) => sum + median, 0) }),
    timeOf(sharedRead),
    ratioText(read),
    lossText(dma),
  ]);
  const head = ["devices", "HWPTs", "reads, one each", "read, shared", "shared/each", "DMA lost"];
  return { head, rows };
}

/** A row for each tracker and granule, which is called as `--granule` and `dirtmap recommend` call it. */
function rowsOf(devices: readonly BenchedDevice[], cells: (figures: TrackerFigures) => string[]): string[][] {
  return devices.flatMap(({ id, trackers }) =>
    trackers.map((figures) => {
      const { tracker, granule, problem } = figures;
      const head = [id, tracker, sizeOr(granule)];
      return problem === null ? [...head, ...cells(figures)] : [...head, "refused"];
    }),
  );
}

function sizeOr(bytes: number | null): string {
  return bytes === null ? NOTHING : formatSize(bytes);
}

function largest({ reads }: TrackerFigures): ReadFigures[] {
  const most = Math.max(0, ...reads.map(({ memoryBytes }) => memoryBytes));
  return reads.filter(({ memoryBytes }) => memoryBytes === most);
}

function exactness({ tracker, precision }: TrackerFigures, memoryBytes: number): string {
  if (tracker === "everything") return `all ${formatCount(memoryBytes / 4096)}`;
  const written = precision.reduce((sum, { writtenPages }) => sum + writtenPages, 0);
  const reported = precision.reduce((sum, { reportedPages }) => sum + reportedPages, 0);
  if (written === 0) return NOTHING;
  return `${formatCount(reported)}/${formatCount(written)} = ${(reported / written).toFixed(2)}`;
}

/** "4 % (2 to 6)"; a range too wide to decide is only a range. */
function lossText(dma: Comparison | null): string {
  if (dma === null) return NOTHING;
  const percent = (ratio: number) => Math.round((1 - ratio) * 100);
  const range = `${percent(dma.high)} to ${percent(dma.low)} %`;
  return dma.decides ? `${percent(dma.ratio)} % (${range})` : `open (${range})`;
}

function ratioText({ ratio, low, high, decides }: Comparison): string {
  const range = `${low.toFixed(2)} to ${high.toFixed(2)}`;
  return decides ? `${ratio.toFixed(2)} (${range})` : `open (${range})`;
}

/** Reads take microseconds, too. */
function timeOf(summary: { readonly median: number } | null): string {
  if (summary === null) return NOTHING;
  const { median } = summary;
  return median < 1 ? `${Math.round(median * 1000)} us` : formatMs(median);
}
