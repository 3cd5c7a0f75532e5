import { get } from "../api.js";
import { type Column, dataTable, emptyState, h, section } from "../dom.js";
import type { DesignsResult } from "../src/evidence/designs/result.js";
import type { Recommendation, RecommendedDevice } from "../src/evidence/recommend/result.js";
import type { TrackerBenchmark, TrackerFigures } from "../src/evidence/trackers/result.js";
import type { MachineReport } from "../src/machine-report.js";
import { formatMs, formatSize } from "../src/observe/format.js";
import type { BenchmarkSummary } from "../src/observe/server/api-schema.js";
import { type Shown, timeOf, type ViewContext } from "./view.js";

/*
 * Saved benchmarks, and what they speak for. Benchmarks of trackers are shown as tables, and all of any as JSON.
 */

interface Benchmark extends BenchmarkSummary {
  readonly machine: MachineReport | null;
  readonly result: TrackerBenchmark | DesignsResult | null;
}

/** All benchmarks, and the recommendation of the newest. */
export async function benchmarksView({ signal }: ViewContext): Promise<Shown> {
  const [{ benchmarks }, recommendation] = await Promise.all([
    get<{ benchmarks: BenchmarkSummary[] }>("/api/benchmarks", signal),
    get<{ recommendation: Recommendation | null }>("/api/recommendation", signal).catch(() => null),
  ]);
  const content = h("div", {}, h("h1", {}, "Benchmarks"));
  if (benchmarks.length === 0) {
    content.append(
      emptyState(
        "No benchmarks yet",
        "They measure what each tracker costs and how exact it is, and are kept here. Take one: ",
        h("code", {}, "npx dirtmap bench trackers"),
        ".",
      ),
    );
    return { title: "Benchmarks", content };
  }
  const recommended = recommendation?.recommendation?.devices ?? [];
  if (recommended.length > 0) content.append(recommendationSection(recommended));
  const columns: Column<BenchmarkSummary>[] = [
    { title: "Benchmark", cell: ({ id, kind }) => h("a", { href: `#/benchmarks/${id}` }, `${id} ${kind}`) },
    { title: "Scenario", cell: ({ scenario }) => scenario },
    { title: "Host", cell: ({ host }) => host },
    { title: "When", cell: ({ takenAt }) => timeOf(takenAt) },
  ];
  content.append(section("Saved benchmarks", null, dataTable("Saved benchmarks", columns, benchmarks)));
  return { title: "Benchmarks", content };
}

function recommendationSection(devices: readonly RecommendedDevice[]): HTMLElement {
  const columns: Column<RecommendedDevice>[] = [
    { title: "Device", cell: ({ id }) => id },
    { title: "Model", cell: ({ model }) => model },
    { title: "Tracker", cell: ({ tracker }) => h("b", {}, tracker) },
    { title: "Granule", numeric: true, cell: ({ granule }) => (granule === null ? "–" : formatSize(granule)) },
    { title: "Domain", cell: ({ domain }) => domain ?? "–" },
    { title: "Downtime", hint: "estimated", numeric: true, cell: ({ figures }) => milliseconds(figures.downtimeMs) },
    { title: "A read takes", numeric: true, cell: ({ figures }) => milliseconds(figures.readMs) },
    { title: "Why", cell: ({ reason }) => h("span", { class: "prose" }, reason) },
    { title: "Second best", cell: ({ margin }) => h("span", { class: "prose" }, secondBest(margin)) },
  ];
  const how = h("p", { class: "about" }, "To migrate by it: ", h("code", {}, "npx dirtmap recommend"), " says how.");
  return section(
    "Recommended",
    "What the newest benchmark of trackers speaks for.",
    dataTable("Recommended trackers", columns, devices),
    how,
  );
}

function milliseconds(value: number | null): string {
  return value === null ? "–" : formatMs(value);
}

function secondBest(margin: RecommendedDevice["margin"]): string {
  if (margin === null) return "there is no other";
  const { tracker, granule } = margin.over;
  return `${tracker}${granule === null ? "" : ` at ${formatSize(granule)}`}: ${margin.text}`;
}

/** One benchmark. */
export async function benchmarkView({ signal, parameters }: ViewContext): Promise<Shown> {
  const { benchmark } = await get<{ benchmark: Benchmark }>(`/api/benchmarks/${parameters[0]}`, signal);
  const { id, kind, host, scenario, takenAt, machine, result } = benchmark;
  const devices = result?.kind === "trackers" ? result.devices : [];
  const content = h(
    "div",
    {},
    h("h1", {}, `Benchmark ${id}: ${kind}`),
    h(
      "p",
      { class: "about" },
      `${scenario} on the ${host} host · `,
      timeOf(takenAt),
      result === null ? " · another version kept it, in a form that this one does not know" : ` · ${result.measures}`,
    ),
    ...devices.map(({ id: device, model, trackers }) =>
      section(`${device} (${model})`, null, trackersTable(device, trackers)),
    ),
    section("Where it was taken", null, h("pre", { tabindex: 0 }, JSON.stringify(machine, null, 2))),
    h(
      "details",
      { class: "card" },
      h("summary", {}, "All figures, as JSON"),
      h("pre", { tabindex: 0 }, JSON.stringify(result, null, 2)),
    ),
  );
  return { title: `Benchmark ${id}`, content };
}

function trackersTable(device: string, trackers: readonly TrackerFigures[]): HTMLElement {
  const columns: Column<TrackerFigures>[] = [
    { title: "Tracker", cell: ({ tracker }) => tracker },
    {
      title: "Granule",
      hint: "bytes per dirty bit that were asked for, as --granule takes them",
      numeric: true,
      cell: ({ granule }) => (granule === null ? "–" : formatSize(granule)),
    },
    {
      title: "Found",
      hint: "bytes per dirty bit that the tracker turned out to have: an IOMMU's by its largest leaf",
      numeric: true,
      cell: ({ foundGranule }) => (foundGranule === null ? "–" : formatSize(foundGranule)),
    },
    { title: "Start", numeric: true, cell: ({ start }) => milliseconds(start?.median ?? null) },
    {
      title: "A read takes",
      hint: "of the largest address space, the median over all dirty shares",
      numeric: true,
      cell: ({ reads }) => readTime(reads),
    },
    {
      title: "Reported per written",
      hint: "pages; 1 is exact",
      numeric: true,
      cell: ({ precision }) => exactness(precision),
    },
    { title: "Not measured", cell: ({ problem }) => h("span", { class: "prose" }, problem ?? "") },
  ];
  return dataTable(`Trackers of ${device}`, columns, trackers);
}

function readTime(reads: TrackerFigures["reads"]): string {
  const largest = Math.max(0, ...reads.map(({ memoryBytes }) => memoryBytes));
  const times = reads
    .filter(({ memoryBytes }) => memoryBytes === largest)
    .map(({ ms }) => ms.median)
    .sort((a, b) => a - b);
  const middle = times[Math.floor(times.length / 2)];
  return middle === undefined ? "–" : `${formatMs(middle)} at ${formatSize(largest)}`;
}

function exactness(points: TrackerFigures["precision"]): string {
  const last = points.at(-1);
  return last === undefined || last.writtenPages === 0 ? "–" : (last.reportedPages / last.writtenPages).toFixed(2);
}
