import { get } from "../api.js";
import { type Column, dataTable, h, section, tile } from "../dom.js";
import { HeatMap } from "../plots/heat-map.js";
import { conditionsOf, modelOf, type PastRun, type RunModel } from "../run-model.js";
import { movingMs } from "../src/migration/report.js";
import { type ConditionRow, conditionRows } from "../src/observe/conditions.js";
import { formatCount, formatMs, formatSize } from "../src/observe/format.js";
import { costTable, OwnersTable, RateChart, RoundsChart } from "./parts.js";
import { badge, type Shown, signed, timeOf, type ViewContext } from "./view.js";

/** One run that is over. */
export async function pastRunView({ signal, parameters }: ViewContext): Promise<Shown> {
  const { run } = await get<{ run: PastRun }>(`/api/runs/${parameters[0]}`, signal);
  const model = modelOf(run);
  const report = run.report ?? {};
  const charts = [new RoundsChart(model, signal), new RateChart(model, signal)] as const;
  const heat = new HeatMap(model, signal);
  const owners = new OwnersTable(model);
  const content = h(
    "div",
    {},
    h("h1", {}, run.scenario, " ", badge(run.result)),
    h("p", { class: "about" }, `${run.kind} ${run.name} on the ${run.host} host · `, timeOf(run.startedAt)),
    report.error && h("p", { class: "alert" }, [report.error.message, report.error.remedy].filter(Boolean).join("; ")),
    h("div", { class: "card" }, figures(run)),
    report.predicted &&
      section(
        "Predicted and actual",
        "What was foreseen before the migration began, beside what happened.",
        predictedTable(run),
      ),
    section("Phases", null, phases(model, run)),
    section("Rounds", "What each round sent, and what it left dirty.", charts[0].element),
    section(
      "Dirty rate",
      "Bytes that each tracker reported as dirty, per second between two reads.",
      charts[1].element,
    ),
    section(
      "Heat of the address space",
      "Where in guest memory the dirty pages lie: a column per read, low addresses at the bottom.",
      heat.element,
    ),
    section("Devices", null, owners.element),
    section("Conditions", "What the figures depend on besides the scenario.", conditionsTable(run)),
    section("Tracker cost", "The time that reading took, for each tracker.", costTable(model)),
    reasons(run),
    warnings(report.warnings ?? []),
    run.id > 1 &&
      h("p", { class: "after" }, h("a", { href: `#/compare/${run.id - 1}/${run.id}` }, "Compare with the run before")),
  );
  // Once they are in the page and have a width.
  requestAnimationFrame(() => {
    charts[0].draw();
    charts[1].draw(true);
    heat.draw();
    owners.draw(true);
  });
  return { title: `Run ${run.id}`, content };
}

function figures({ report, totalMs, downtimeMs, header }: PastRun): HTMLElement {
  const limit = header?.downtimeLimitMs;
  const verified = report?.verified;
  return h(
    "dl",
    { class: "tiles" },
    tile(
      "Downtime",
      downtimeMs === null ? "–" : formatMs(downtimeMs),
      limit === undefined ? null : `limit ${formatMs(limit)}`,
    ),
    tile("Total", totalMs === null ? "–" : formatMs(totalMs)),
    tile(
      "Sent",
      report?.bytes === undefined ? "–" : formatSize(report.bytes),
      report?.rounds && `${report.rounds.length} rounds`,
    ),
    tile(
      "Verified",
      verified === true ? "yes" : verified === false ? "differs" : "no",
      verified === true ? "no write was lost" : null,
    ),
    tile("Memory", header === null ? "–" : formatSize(header.memoryBytes)),
  );
}

function predictedTable({ report, downtimeMs }: PastRun): HTMLElement {
  const { predicted, rounds = [], phases = [] } = report ?? {};
  const actualMs = movingMs({ phases });
  const ms = (value: number | null | undefined) => (value == null ? "–" : formatMs(value));
  const rows: [string, string, string, string][] = [
    ["Converges", predicted?.converges === true ? "yes" : "no", downtimeMs === null ? "no" : "yes", ""],
    [
      "Rounds",
      String(predicted?.rounds ?? "–"),
      String(rounds.length),
      signed(rounds.length - (predicted?.rounds ?? 0), ""),
    ],
    ["Downtime", ms(predicted?.downtimeMs), ms(downtimeMs), off(predicted?.downtimeMs, downtimeMs)],
    ["First page to running", ms(predicted?.movingMs), ms(actualMs), off(predicted?.movingMs, actualMs)],
  ];
  const columns: Column<[string, string, string, string]>[] = [
    { title: "Figure", cell: ([name]) => name },
    { title: "Predicted", numeric: true, cell: ([, value]) => value },
    { title: "Actual", numeric: true, cell: ([, , value]) => value },
    { title: "Off by", numeric: true, cell: ([, , , value]) => value },
  ];
  return dataTable("Predicted and actual", columns, rows);
}

function off(predicted: number | null | undefined, actual: number | null): string {
  if (predicted == null || actual === null || actual === 0) return "";
  return signed(Math.round(((predicted - actual) / actual) * 100), " %");
}

/** The phases as a strip, and as a list. */
function phases(model: RunModel, { report }: PastRun): HTMLElement {
  const took = report?.phases ?? [];
  const strip = h("div", { class: "phases", "aria-hidden": "true" });
  took.forEach(({ phase, ms }, index) => {
    const part = h("span", { title: `${phase}: ${formatMs(ms)}`, class: isDowntime(phase) ? "downtime" : null });
    part.style.flexGrow = String(Math.max(ms, 0.001));
    part.style.setProperty("--tint", String(index % 2));
    strip.append(part);
  });
  const items = took.map(({ phase, ms }) =>
    h("li", { class: isDowntime(phase) ? "downtime" : null }, `${phase} `, h("b", {}, formatMs(ms))),
  );
  const note = model.rounds.length > 0 && h("p", { class: "about" }, "Marked: the machine stands still.");
  return h("div", {}, strip, h("ul", { class: "phase-list" }, ...items), note);
}

function isDowntime(phase: string): boolean {
  return ["pausing", "stop-copy", "handover"].includes(phase);
}

function reasons({ report }: PastRun): HTMLElement | false {
  const devices = report?.devices ?? [];
  if (devices.length === 0) return false;
  const columns: Column<(typeof devices)[number]>[] = [
    { title: "Device", cell: ({ id }) => id },
    { title: "Tracker", cell: ({ tracker }) => tracker },
    {
      title: "Granule",
      hint: "bytes per dirty bit, as found",
      numeric: true,
      cell: ({ granule }) => (granule === null ? "–" : formatSize(granule)),
    },
    { title: "Suspended", numeric: true, cell: ({ suspendedMs }) => (suspendedMs > 0 ? formatMs(suspendedMs) : "–") },
    { title: "Why", cell: ({ reason }) => h("span", { class: "prose" }, reason) },
  ];
  return section("Why these trackers", null, dataTable("Why these trackers", columns, devices));
}

function conditionsTable(run: PastRun): HTMLElement {
  const columns: Column<ConditionRow>[] = [
    { title: "Condition", cell: ({ name }) => name },
    { title: "Value", cell: ({ value }) => h("span", { class: "prose" }, value) },
  ];
  return dataTable("Conditions of the run", columns, conditionRows(conditionsOf(run)));
}

function warnings(texts: readonly string[]): HTMLElement | false {
  return (
    texts.length > 0 &&
    section(`${formatCount(texts.length)} warnings`, null, h("ul", {}, ...texts.map((text) => h("li", {}, text))))
  );
}
