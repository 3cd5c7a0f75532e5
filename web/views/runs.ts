import { get } from "../api.js";
import { type Column, dataTable, emptyState, h } from "../dom.js";
import { formatMs } from "../src/observe/format.js";
import type { PastRunSummary } from "../src/observe/server/api-schema.js";
import { badge, type Shown, timeOf, type ViewContext } from "./view.js";

/** Runs of a page of the list. */
const PAGE = 100;

/** Runs that are over, the newest first; two of them can be chosen to compare. */
export async function runsView({ signal }: ViewContext): Promise<Shown> {
  const { runs } = await get<{ runs: PastRunSummary[] }>(`/api/runs?limit=${PAGE}`, signal);
  const content = h("div", {}, h("h1", {}, "Runs"));
  if (runs.length === 0) {
    content.append(
      emptyState(
        "No runs yet",
        "Each migration is kept, however it ended. Start one: ",
        h("code", {}, "npx dirtmap migrate"),
        ". If yours are in another store, serve that with ",
        h("code", {}, "--store PATH"),
        ".",
      ),
    );
    return { title: "Runs", content };
  }
  const chosen = new Set<number>();
  const compare = h(
    "button",
    { type: "button", disabled: true, onclick: () => location.assign(comparison(chosen)) },
    "Compare two runs",
  );
  const choose = (id: number) => (event: Event) => {
    const box = event.target as HTMLInputElement;
    if (box.checked) chosen.add(id);
    else chosen.delete(id);
    compare.disabled = chosen.size !== 2;
    for (const other of content.querySelectorAll<HTMLInputElement>("input[type=checkbox]")) {
      other.disabled = chosen.size >= 2 && !other.checked;
    }
  };
  const more = h("button", { type: "button", hidden: runs.length < PAGE }, "Older runs");
  const table = dataTable("Runs that are over", columns(choose), runs);
  let oldest = runs.at(-1)?.id ?? 0;
  more.addEventListener("click", async () => {
    const { runs: older } = await get<{ runs: PastRunSummary[] }>(`/api/runs?limit=${PAGE}&before=${oldest}`, signal);
    oldest = older.at(-1)?.id ?? 0;
    more.hidden = older.length < PAGE;
    const rows = dataTable("", columns(choose), older).querySelectorAll("tbody tr");
    table.querySelector("tbody")?.append(...rows);
  });
  content.append(
    h("div", { class: "controls" }, compare, h("span", { class: "about" }, "Choose two to see them side by side.")),
    h("div", { class: "card" }, table),
    more,
  );
  return { title: "Runs", content };
}

function comparison(chosen: ReadonlySet<number>): string {
  const [a, b] = [...chosen].sort((x, y) => x - y);
  return `#/compare/${a}/${b}`;
}

function columns(choose: (id: number) => (event: Event) => void): Column<PastRunSummary>[] {
  return [
    { title: "Run", cell: ({ id, scenario }) => h("a", { href: `#/runs/${id}` }, `${id} ${scenario}`) },
    { title: "Result", cell: ({ result }) => badge(result) },
    { title: "Downtime", numeric: true, cell: ({ downtimeMs }) => (downtimeMs === null ? "–" : formatMs(downtimeMs)) },
    { title: "Total", numeric: true, cell: ({ totalMs }) => (totalMs === null ? "–" : formatMs(totalMs)) },
    { title: "When", cell: ({ startedAt }) => timeOf(startedAt) },
    { title: "Name", cell: ({ name }) => h("code", {}, name) },
    {
      title: "Compare",
      cell: ({ id }) => h("input", { type: "checkbox", "aria-label": `Compare run ${id}`, onchange: choose(id) }),
    },
  ];
}
