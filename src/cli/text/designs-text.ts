import { bitmapBytesOf } from "../../evidence/designs/crossings.js";
import { designFigures, workloadTitle } from "../../evidence/designs/figures.js";
import type { CrossingRow, DesignsResult, MigrationRow, ReadRow } from "../../evidence/designs/result.js";
import { WORKLOAD_TEXT, type WorkloadName } from "../../evidence/designs/workload-names.js";
import type { Block, ReportDocument } from "../../evidence/report/document.js";
import type { Summary } from "../../evidence/statistics.js";
import { formatCount, formatMs, formatRate, formatShare, formatSize } from "../../observe/format.js";
import { TRACKING_DESIGNS } from "../../tracking/choice.js";
import { type Cells, tableBlock, tableLines } from "./table-text.js";

/** What is compared, as a sentence says it. */
const MEASURE_TEXT: Readonly<Record<CrossingRow["measure"], string>> = {
  cpu: "processor time of a read",
  memory: "memory for dirty bits",
  calls: "calls per read",
  copied: "bytes of bitmaps filled per read",
  moved: "bytes to move after the last read",
  downtime: "the least downtime",
};

/** A result for people. Ends without a newline. */
export function designsText(result: DesignsResult): string {
  const lines = [headline(result)];
  for (const workload of workloadsOf(result.reads)) {
    const rows = result.reads.filter((row) => row.workload === workload);
    lines.push("", `${workloadTitle(workload)}: ${WORKLOAD_TEXT[workload]}`);
    lines.push(...tableLines(readTable(rows)));
  }
  if (result.migrations.length > 0) {
    lines.push("", "migrations", ...tableLines(migrationTable(result.migrations)));
  }
  lines.push("", "where the curves cross", ...crossingTexts(result.crossings, result).map((text) => `  ${text}`));
  lines.push("", `This measures ${result.measures}.`, `Taken on ${machineText(result)}.`);
  lines.push(...result.warnings.map((warning) => `warning: ${warning}`));
  return lines.join("\n");
}

/** The same as a report, with plots. */
export function designsDocument(result: DesignsResult): ReportDocument {
  const figures = designFigures(result);
  const blocks: Block[] = [
    { kind: "text", text: headline(result) },
    { kind: "text", text: `This measures ${result.measures}. Taken on ${machineText(result)}, ${result.takenAt}.` },
    ...result.warnings.map((text): Block => ({ kind: "warning", text })),
  ];
  for (const workload of workloadsOf(result.reads)) {
    const rows = result.reads.filter((row) => row.workload === workload);
    blocks.push({ kind: "heading", text: `Workload ${workload}` });
    blocks.push({ kind: "text", text: `This is ${WORKLOAD_TEXT[workload]}.` });
    blocks.push({
      kind: "list",
      items: crossingTexts(
        result.crossings.filter((row) => row.workload === workload),
        result,
      ),
    });
    blocks.push(
      ...figures.filter(({ name }) => name.endsWith(`-${workloadTitle(workload).replace(" ", "-").toLowerCase()}`)),
    );
    blocks.push(tableBlock(`Reads, ${workloadTitle(workload)}`, readTable(rows)));
  }
  if (result.reads.length > 0) blocks.push({ kind: "heading", text: "Precision" }, precisionTable(result));
  if (result.migrations.length > 0) {
    blocks.push({ kind: "heading", text: "Migrations" });
    blocks.push(...figures.filter(({ name }) => name.startsWith("migration-")));
    blocks.push(tableBlock("Migrations", migrationTable(result.migrations)));
  }
  return { title: "Four designs for dirty page tracking", blocks };
}

/** What the designs name that nobody wrote. */
function precisionTable({ reads, settings }: DesignsResult): Block {
  const most = Math.max(...settings.devices);
  const rows = reads.filter(({ devices }) => devices === most);
  return {
    kind: "table",
    caption: `Pages that a read names, over pages written, ${most} devices: 1 is exact`,
    head: ["workload", ...TRACKING_DESIGNS],
    rows: workloadsOf(rows).map((workload) => [
      workloadTitle(workload),
      ...TRACKING_DESIGNS.map((design) => {
        const row = rows.find((each) => each.workload === workload && each.design === design);
        return row === undefined ? "" : String(Number((row.pagesReported / row.pagesWritten).toPrecision(3)));
      }),
    ]),
  };
}

function headline({ settings }: DesignsResult): string {
  const { devices, memoryBytes, footprintPages, repetitions, reads, migrations } = settings;
  const read =
    `reads of ${devices.join(", ")} devices, guest memory ${formatSize(memoryBytes)}, each device writes ` +
    `${formatSize(footprintPages * 4096)} before a read; ${repetitions} repetitions of ${reads} reads, interleaved`;
  if (migrations === null) return read;
  const { bandwidth, repetitions: times, memoryBytes: guest, rate } = migrations;
  return `${read}; migrations of ${formatSize(guest)} at ${formatRate(bandwidth)}, ${rate} MB/s a device, ${times} times`;
}

function readTable(rows: readonly ReadRow[]): Cells {
  const cpu = ["CPU of a read", "middle half", "in calls", "last read"];
  const memory = ["bitmaps filled", "memory held", "during a read"];
  const head = ["devices", "design", ...cpu, "calls", "inner", ...memory, "pages named", "written"];
  return { head, rows: rows.map(readCells), left: [1] };
}

function readCells(row: ReadRow): string[] {
  return [
    String(row.devices),
    row.design,
    milliseconds(row.cpuMs.median),
    middleHalf(row.cpuMs),
    formatShare(row.inCallsMs.median / row.countedReadMs.median),
    milliseconds(row.lastReadMs.median),
    formatCount(row.perRead.calls),
    formatCount(row.perRead.innerCalls),
    formatSize(row.perRead.bitmapBytes),
    formatSize(bitmapBytesOf(row.held)),
    formatSize(bitmapBytesOf(row.duringRead)),
    formatCount(row.pagesReported),
    formatCount(row.pagesWritten),
  ];
}

function migrationTable(rows: readonly MigrationRow[]): Cells {
  const head = ["workload", "devices", "design", "downtime", "middle half", "moved", "rounds", "last round"];
  return { head, rows: rows.map(migrationCells), left: [0, 2] };
}

function migrationCells(row: MigrationRow): string[] {
  return [
    workloadTitle(row.workload),
    String(row.devices),
    row.design,
    formatMs(row.downtimeMs.median),
    middleHalf(row.downtimeMs),
    formatSize(row.bytes.median),
    String(row.rounds.median),
    `${formatCount(row.lastRoundPages.median)} pages`,
  ];
}

/** How a design stands to its rivals, a sentence for all of whom the same is true. */
function crossingTexts(rows: readonly CrossingRow[], result: DesignsResult): string[] {
  const rivals = new Map<string, { subject: string; outcome: string; rivals: string[] }>();
  for (const row of rows) {
    const subject = `${workloadTitle(row.workload)}, ${MEASURE_TEXT[row.measure]}: ${row.design} against`;
    const outcome = outcomeText(row, result);
    const group = rivals.get(subject + outcome);
    if (group === undefined) rivals.set(subject + outcome, { subject, outcome, rivals: [row.rival] });
    else group.rivals.push(row.rival);
  }
  return [...rivals.values()].map((group) => `${group.subject} ${group.rivals.join(", ")}: ${group.outcome}`);
}

function outcomeText(row: CrossingRow, { settings }: DesignsResult): string {
  const { crossings, settledFrom, ratioFirst, ratioLast, decidedFirst, decidedLast } = row;
  const [first, last] = [Math.min(...settings.devices), Math.max(...settings.devices)];
  const where = crossings.map(
    ({ at, between }) => `${Number(at.toPrecision(2))} devices (between ${between.join(" and ")})`,
  );
  return [
    crossings.length === 0 ? "never cross" : `cross at ${where.join(" and ")}`,
    `${times(ratioFirst, decidedFirst)} at ${first}`,
    ...(last > first ? [`${times(ratioLast, decidedLast)} at ${last}`] : []),
    ...(settledFrom === null || settledFrom === first ? [] : [`apart from ${settledFrom} on`]),
  ].join("; ");
}

function times(ratio: number | null, decided: boolean): string {
  if (ratio === null) return "beyond compare";
  if (ratio === 1) return "equal";
  return `×${Number(ratio.toPrecision(2))}${decided ? "" : " (undecided)"}`;
}

function machineText({ machine }: DesignsResult): string {
  const { cpu, cores, memoryBytes, node, kernel, load, stealShare } = machine;
  const stolen = stealShare === null ? "" : `, stolen ${formatShare(stealShare)}`;
  return `${cpu}, ${cores} processors, ${formatSize(memoryBytes)}, ${kernel}, Node ${node}, load ${load.toFixed(1)}${stolen}`;
}

function workloadsOf(rows: readonly ReadRow[]): WorkloadName[] {
  return [...new Set(rows.map(({ workload }) => workload))];
}

/** Three digits that count: a read may take microseconds. */
function milliseconds(ms: number): string {
  return `${Number(ms.toPrecision(3))} ms`;
}

function middleHalf({ q1, q3 }: Summary): string {
  return `${Number(q1.toPrecision(3))} to ${Number(q3.toPrecision(3))}`;
}
