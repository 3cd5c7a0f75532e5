import { barChart } from "../../evidence/plot/bar-chart.js";
import { MAX_SERIES } from "../../evidence/plot/figure.js";
import { heatMap } from "../../evidence/plot/heat-map.js";
import type { Block, FigureBlock, ReportDocument } from "../../evidence/report/document.js";
import type { ReadEvent } from "../../migration/events.js";
import type { MigrationReport } from "../../migration/report.js";
import { conditionRows, type RunConditions } from "../../observe/conditions.js";
import { formatMs, formatSize } from "../../observe/format.js";
import {
  destinationLines,
  devicesTable,
  headline,
  memoryLines,
  predictedLines,
  roundsTable,
  watchedLines,
} from "./report-text.js";
import { tableBlock } from "./table-text.js";

/** What a report tells besides what the migration itself reports. */
export interface MigrationContext {
  readonly scenario: string;
  readonly memoryBytes: number;
  /** Reads of the trackers, in order. */
  readonly reads: readonly ReadEvent[];
  readonly conditions: RunConditions;
}

/** A migration's report, with plots: who dirtied how much in which round, and where. */
export function migrationDocument(report: MigrationReport, context: MigrationContext): ReportDocument {
  const { rounds, devices, destination, error, warnings, phases } = report;
  const found = [
    ...predictedLines(report),
    ...memoryLines(report),
    ...(destination === null ? [] : destinationLines(destination)),
    ...watchedLines(report),
  ];
  const blocks: Block[] = [
    { kind: "text", text: headline(report) },
    ...(error === undefined ? [] : [{ kind: "warning", text: problem(error) } as const]),
    ...warnings.map((text): Block => ({ kind: "warning", text })),
    {
      kind: "text",
      text: `Scenario ${context.scenario}, guest memory ${formatSize(context.memoryBytes)}, design ${report.design}, policy ${report.policy}.`,
    },
    {
      kind: "list",
      items: [...found.map((line) => line.trim()), ...phases.map(({ phase, ms }) => `${phase}: ${formatMs(ms)}`)],
    },
  ];
  if (rounds.length > 0) {
    blocks.push({ kind: "heading", text: "Rounds" }, roundsFigure(report));
    blocks.push(...heatFigure(context));
    blocks.push(tableBlock("Rounds", roundsTable(report)));
  }
  if (devices.length > 0) {
    blocks.push({ kind: "heading", text: "Devices" });
    blocks.push(tableBlock("Devices", devicesTable(report)));
    blocks.push({ kind: "list", items: devices.map(({ id, reason }) => `${id}: ${reason}`) });
  }
  blocks.push({ kind: "heading", text: "Conditions" });
  const rows = conditionRows(context.conditions).map(({ name, value }) => [name, value]);
  blocks.push(tableBlock("What the figures depend on", { head: ["condition", "value"], rows, left: [0, 1] }));
  return { title: `Migration ${report.migration}`, blocks };
}

function problem({ message, remedy }: NonNullable<MigrationReport["error"]>): string {
  return remedy === undefined ? message : `${message}; what would work: ${remedy}`;
}

/** Pages per round and owner; of more owners than can be told apart, those that reported the most. */
function roundsFigure({ rounds }: MigrationReport): FigureBlock {
  const totals = new Map<string, number>();
  for (const { byDevice } of rounds) {
    for (const [owner, { reported }] of Object.entries(byDevice))
      totals.set(owner, (totals.get(owner) ?? 0) + reported);
  }
  const owners = [...totals].sort(([, a], [, b]) => b - a).map(([owner]) => owner);
  const shown = owners.slice(0, MAX_SERIES);
  const rest = owners.length - shown.length;
  const title = "Pages that each tracker reported, by round";
  return {
    kind: "figure",
    name: "rounds",
    caption: rest === 0 ? `${title}.` : `${title}: the ${shown.length} that reported the most, of ${owners.length}.`,
    svg: barChart({
      title,
      description: `${rounds.length} rounds. In all: ${shown.map((owner) => `${owner} ${totals.get(owner) ?? 0}`).join(", ")}.`,
      x: "round",
      y: { label: "pages reported" },
      categories: rounds.map(({ round }) => String(round)),
      series: shown.map((owner) => ({
        name: owner,
        bars: rounds.map(({ byDevice }) =>
          byDevice[owner] === undefined ? null : { value: byDevice[owner].reported },
        ),
      })),
    }),
  };
}

/** Where in RAM the pages lie that reads named; none where nothing was read. */
function heatFigure({ reads, memoryBytes }: MigrationContext): FigureBlock[] {
  const rows = reads.flatMap(({ round, owners }, index) => {
    const heats = Object.values(owners).map(({ heat }) => heat);
    const buckets = Math.max(0, ...heats.map(({ length }) => length));
    if (buckets === 0) return [];
    const values = Array.from({ length: buckets }, (_, bucket) =>
      heats.reduce((sum, heat) => sum + (heat[bucket] ?? 0), 0),
    );
    return [{ name: round === null ? `read ${index}` : `round ${round}`, values }];
  });
  if (rows.length === 0) return [];
  const title = "Where in guest memory pages were dirtied";
  return [
    {
      kind: "figure",
      name: "heat",
      caption: `${title}: pages that trackers reported, a row a read.`,
      svg: heatMap({
        title,
        description: `${rows.length} reads of the trackers, over ${formatSize(memoryBytes)} of RAM in ${rows[0].values.length} stretches.`,
        x: "RAM, by guest-physical address",
        unit: "pages in a stretch",
        columns: { first: "0", last: formatSize(memoryBytes) },
        rows,
      }),
    },
  ];
}
