import { get } from "../api.js";
import { type Column, dataTable, emptyState, h, section } from "../dom.js";
import { HeatMap } from "../plots/heat-map.js";
import { LineChart } from "../plots/line-chart.js";
import { conditionsOf, modelOf, type OwnerState, type PastRun, type RunModel } from "../run-model.js";
import { type ComparedCondition, compareConditions, NOT_RECORDED } from "../src/observe/conditions.js";
import { formatCount, formatMs, formatSize } from "../src/observe/format.js";
import type { PastRunSummary } from "../src/observe/server/api-schema.js";
import { ownerLabel, parseOwner } from "../src/tracking/owner.js";
import { badge, type Shown, signed, timeOf, type ViewContext } from "./view.js";

/** Two runs side by side. */
export async function compareView({ signal, parameters }: ViewContext): Promise<Shown> {
  const [a, b] = parameters;
  const { runs } = await get<{ runs: PastRunSummary[] }>("/api/runs?limit=1000", signal);
  const content = h("div", {}, h("h1", {}, "Compare two runs"));
  if (runs.length < 2) {
    content.append(
      emptyState(
        "There are not two runs yet",
        "Each migration is kept. Start another: ",
        h("code", {}, "npx dirtmap migrate --policy device-first"),
        ".",
      ),
    );
    return { title: "Compare", content };
  }
  const first = Number(a ?? runs[1]?.id);
  const second = Number(b ?? runs[0]?.id);
  content.append(choice(runs, first, second));
  const [left, right] = await Promise.all(
    [first, second].map(async (id) => (await get<{ run: PastRun }>(`/api/runs/${id}`, signal)).run),
  );
  if (left === undefined || right === undefined) throw new Error("two runs were asked for");
  const models = [modelOf(left), modelOf(right)] as const;
  const chart = leftOverChart(models, [left, right], signal);
  const heats = models.map((model) => new HeatMap(model, signal));
  content.append(
    section("What differs", differenceText(left, right), conditionsTable(left, right)),
    section("Figures", null, figuresTable(left, right)),
    section("What each round left", "Bytes that were dirty at the end of each round.", chart.element),
    section("Devices", "Pages that each tracker reported, over all reads.", devicesTable(models, [left, right])),
    h(
      "div",
      { class: "side-by-side" },
      ...heats.map((heat, index) => section(`Heat of run ${[first, second][index]}`, null, heat.element)),
    ),
  );
  requestAnimationFrame(() => {
    const rounds = Math.max(...models.map((model) => model.rounds.length));
    const remaining = (model: RunModel) => Array.from({ length: rounds }, (_, i) => model.rounds[i]?.remaining ?? null);
    chart.draw([Array.from({ length: rounds }, (_, i) => i), ...models.map(remaining)]);
    for (const heat of heats) heat.draw();
  });
  return { title: `Runs ${first} and ${second}`, content };
}

function choice(runs: readonly PastRunSummary[], first: number, second: number): HTMLElement {
  const select = (name: string, chosen: number) =>
    h(
      "label",
      {},
      `${name} `,
      h(
        "select",
        { onchange: go },
        ...runs.map(({ id, scenario, result }) =>
          h("option", { value: id, selected: id === chosen }, `${id} ${scenario}, ${result}`),
        ),
      ),
    );
  function go(event: Event): void {
    const form = (event.target as HTMLElement).closest("form");
    const [a, b] = [...(form?.querySelectorAll("select") ?? [])].map(({ value }) => value);
    location.assign(`#/compare/${a}/${b}`);
  }
  return h("form", { class: "controls" }, select("Run", first), select("with run", second));
}

/** The scenarios and conditions of two runs. */
function compared(left: PastRun, right: PastRun): ComparedCondition[] {
  const values = [left.scenario, right.scenario] as const;
  const scenario = { name: "Scenario", values, differs: left.scenario !== right.scenario };
  return [scenario, ...compareConditions(conditionsOf(left), conditionsOf(right))];
}

/** A sentence on whether the figures may be compared. */
function differenceText(left: PastRun, right: PastRun): string {
  const different = compared(left, right)
    .filter(({ differs }) => differs === true)
    .map(({ name }) => name.toLowerCase());
  const unknown = [left, right].filter(({ conditions }) => conditions === null).map(({ id }) => `run ${id}`);
  const differ = `The runs differ in: ${different.join(", ")}. So may their figures.`;
  if (unknown.length === 0) return different.length > 0 ? differ : "Both ran under the same conditions.";
  const unrecorded = `Of ${unknown.join(" and ")}, most conditions were ${NOT_RECORDED}.`;
  return different.length > 0 ? `${differ} ${unrecorded}` : unrecorded;
}

function conditionsTable(left: PastRun, right: PastRun): HTMLElement {
  const columns: Column<ComparedCondition>[] = [
    { title: "Condition", cell: ({ name }) => name },
    { title: `Run ${left.id}`, cell: ({ values }) => h("span", { class: "prose" }, values[0]) },
    { title: `Run ${right.id}`, cell: ({ values }) => h("span", { class: "prose" }, values[1]) },
    {
      title: "Same",
      cell: ({ differs }) => (differs === null ? "not known" : differs ? h("b", {}, "differs") : "yes"),
    },
  ];
  return dataTable("Conditions of both", columns, compared(left, right));
}

function figuresTable(left: PastRun, right: PastRun): HTMLElement {
  type Row = readonly [name: string, left: Node | string, right: Node | string, difference: string];
  const amount = (
    name: string,
    of: (run: PastRun) => number | null | undefined,
    format: (value: number) => string,
  ): Row => {
    const [a, b] = [of(left), of(right)];
    const both = a != null && b != null;
    const change = both && a !== 0 ? signed(Math.round(((b - a) / a) * 100), " %") : "";
    return [name, a == null ? "–" : format(a), b == null ? "–" : format(b), change];
  };
  const rows: Row[] = [
    ["Result", badge(left.result), badge(right.result), ""],
    ["When", timeOf(left.startedAt), timeOf(right.startedAt), ""],
    amount("Downtime", ({ downtimeMs }) => downtimeMs, formatMs),
    amount("Predicted downtime", ({ report }) => report?.predicted?.downtimeMs, formatMs),
    amount("Total", ({ totalMs }) => totalMs, formatMs),
    amount("Sent", ({ report }) => report?.bytes, formatSize),
    amount("Rounds", ({ report }) => report?.rounds?.length, formatCount),
    amount("Reading trackers", ({ report }) => report?.devices?.reduce((sum, { readMs }) => sum + readMs, 0), formatMs),
  ];
  const columns: Column<Row>[] = [
    { title: "Figure", cell: ([name]) => name },
    { title: `Run ${left.id}`, numeric: true, cell: ([, value]) => value },
    { title: `Run ${right.id}`, numeric: true, cell: ([, , value]) => value },
    { title: "Difference", numeric: true, cell: ([, , , value]) => value },
  ];
  return dataTable(`Runs ${left.id} and ${right.id}`, columns, rows);
}

function leftOverChart(
  models: readonly [RunModel, RunModel],
  [a, b]: readonly [PastRun, PastRun],
  signal: AbortSignal,
): LineChart {
  return new LineChart(
    {
      label: `Bytes left after each round of runs ${a.id} and ${b.id}: ${models.map(({ rounds }) => `${rounds.length} rounds`).join(" and ")}`,
      lines: [
        { label: `run ${a.id}`, color: "series-0" },
        { label: `run ${b.id}`, color: "series-1", dash: [6, 4] },
      ],
      formatX: (value) => (Number.isInteger(value) ? String(value) : ""),
      formatY: formatSize,
    },
    signal,
  );
}

function devicesTable(models: readonly [RunModel, RunModel], [a, b]: readonly [PastRun, PastRun]): HTMLElement {
  const [left, right] = models.map(({ state }) => new Map(state.owners.map((owner) => [owner.name, owner])));
  const names = new Set(models.flatMap(({ state }) => state.owners.map(({ name }) => name)));
  const rows = [...names].map((name) => ({ name, left: left?.get(name), right: right?.get(name) }));
  const of = (owner: OwnerState | undefined, what: (owner: OwnerState) => string) =>
    owner === undefined ? "–" : what(owner);
  const figure = (owner: OwnerState | undefined, what: (total: OwnerState["total"]) => string) =>
    owner === undefined || owner.total.reads === 0 ? "–" : what(owner.total);
  const columns: Column<(typeof rows)[number]>[] = [
    { title: "Device", cell: ({ name }) => ownerLabel(parseOwner(name)) },
    { title: `Tracker, ${a.id}`, cell: ({ left }) => of(left, ({ tracker }) => tracker) },
    { title: `Tracker, ${b.id}`, cell: ({ right }) => of(right, ({ tracker }) => tracker) },
    {
      title: `Pages, ${a.id}`,
      numeric: true,
      cell: ({ left }) => figure(left, ({ reported }) => formatCount(reported)),
    },
    {
      title: `Pages, ${b.id}`,
      numeric: true,
      cell: ({ right }) => figure(right, ({ reported }) => formatCount(reported)),
    },
    { title: `Reading, ${a.id}`, numeric: true, cell: ({ left }) => figure(left, ({ readMs }) => formatMs(readMs)) },
    { title: `Reading, ${b.id}`, numeric: true, cell: ({ right }) => figure(right, ({ readMs }) => formatMs(readMs)) },
  ];
  return dataTable("Devices of both runs", columns, rows);
}
