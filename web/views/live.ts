import { emptyState, h, section, setText, tile } from "../dom.js";
import type { LiveRun } from "../live.js";
import { HeatMap } from "../plots/heat-map.js";
import type { RunModel } from "../run-model.js";
import { formatMs, formatRate, formatShare, formatSize } from "../src/observe/format.js";
import { OwnersTable, RateChart, RoundsChart } from "./parts.js";
import { badge, type Shown, timeOf, type ViewContext } from "./view.js";

/** Runs in progress, each with what matters most. */
export function nowView({ live, signal }: ViewContext): Shown {
  const list = h("div", { class: "cards" });
  const content = h("div", {}, h("h1", {}, "Runs in progress"), list);
  const cards = new Map<RunModel, RunCard>();
  const draw = () => {
    const runs = [...live.runs.values()].filter(({ model, stored }) => stored === undefined || cards.has(model));
    for (const model of cards.keys()) if (!runs.some((run) => run.model === model)) cards.delete(model);
    for (const { model } of runs) if (!cards.has(model)) cards.set(model, new RunCard(model));
    if (runs.length === 0) return list.replaceChildren(nothingRuns(live.connected));
    for (const run of runs) cards.get(run.model)?.draw(run);
    const wanted = runs.map(({ model }) => cards.get(model)?.element).filter((element) => element !== undefined);
    if (wanted.length !== list.children.length || wanted.some((element, i) => list.children[i] !== element)) {
      list.replaceChildren(...wanted);
    }
  };
  live.watch(draw, signal);
  draw();
  return { title: "Now", content };
}

function nothingRuns(connected: boolean): HTMLElement {
  if (!connected) return emptyState("Connecting", "This page asks the server for runs in progress.");
  return emptyState(
    "Nothing is running",
    "A migration shows up here by itself. Start one: ",
    h("code", {}, "npx dirtmap migrate"),
    ". Those that are over are under ",
    h("a", { href: "#/runs" }, "Runs"),
    ".",
  );
}

class RunCard {
  readonly element: HTMLElement;
  readonly #figures: RunFigures;
  readonly #after = h("p", { class: "after" });

  constructor(model: RunModel) {
    const { run, scenario, startedAt, devices, memoryBytes } = model.header;
    this.#figures = new RunFigures(model);
    this.element = h(
      "article",
      { class: "card" },
      h("h2", {}, h("a", { href: `#/live/${run}` }, scenario), " ", this.#figures.phase),
      h(
        "p",
        { class: "about" },
        `${run} · ${devices.length} devices · ${formatSize(memoryBytes)} · since `,
        timeOf(startedAt),
      ),
      this.#figures.element,
      this.#after,
    );
  }

  draw({ stored }: LiveRun): void {
    this.#figures.draw();
    showEnd(this.#after, stored);
  }
}

/** The figures of a run in progress. */
class RunFigures {
  readonly element: HTMLElement;
  readonly phase = h("span", { class: "badge plain" });
  readonly #model: RunModel;
  readonly #round = h("span");
  readonly #remaining = h("span");
  readonly #throughput = h("span");
  readonly #downtime = h("span");
  readonly #limit = h("span", { class: "note" });
  readonly #bar = h("progress", { max: 1, value: 0, "aria-label": "of this round" });
  readonly #share = h("span", { class: "note" });

  constructor(model: RunModel) {
    this.#model = model;
    this.element = h(
      "dl",
      { class: "tiles" },
      tile("Round", this.#round),
      h("div", { class: "tile" }, h("dt", {}, "Left in it"), h("dd", {}, this.#remaining, this.#bar, this.#share)),
      tile("Throughput", this.#throughput),
      h("div", { class: "tile" }, h("dt", {}, "Expected downtime"), h("dd", {}, this.#downtime, this.#limit)),
    );
  }

  draw(): void {
    const { phase, state, header } = this.#model;
    const { round, sentBytes, remainingBytes, bytesPerSecond, expectedDowntimeMs } = state;
    setText(this.phase, phase);
    setText(this.#round, round === null ? "–" : String(round));
    setText(this.#remaining, remainingBytes === null ? "–" : formatSize(remainingBytes));
    setText(this.#throughput, bytesPerSecond === null ? "–" : formatRate(bytesPerSecond));
    setText(this.#downtime, expectedDowntimeMs === null ? "–" : formatMs(expectedDowntimeMs));
    setText(this.#limit, header.downtimeLimitMs === undefined ? "" : `limit ${formatMs(header.downtimeLimitMs)}`);
    const all = sentBytes + (remainingBytes ?? 0);
    const share = all === 0 ? 0 : sentBytes / all;
    this.#bar.value = share;
    setText(this.#share, `${formatShare(share)} sent`);
  }
}

/** One run in progress. */
export async function liveRunView(context: ViewContext): Promise<Shown> {
  const { live, signal, parameters } = context;
  const id = parameters[0] ?? "";
  const content = h("div");
  let shown: RunModel | null = null;
  let draw = () => {};
  const follow = () => {
    const run = live.runs.get(id);
    if (run === undefined) {
      if (shown === null) content.replaceChildren(h("h1", {}, `Run ${id}`), notInProgress(id, live.connected));
      return;
    }
    if (run.model !== shown) {
      shown = run.model;
      draw = makeLive(content, run, signal);
    }
    draw();
  };
  live.watch(follow, signal);
  follow();
  return { title: `Run ${id}`, content };
}

function notInProgress(id: string, connected: boolean): HTMLElement {
  if (!connected) return emptyState("Connecting", "This page asks the server for runs in progress.");
  return emptyState(
    "This run is not in progress",
    `Nothing called ${id} is running. If it is over, it is under `,
    h("a", { href: "#/runs" }, "Runs"),
    ".",
  );
}

/** Fills the content for a run; returns what brings it up to date. */
function makeLive(content: HTMLElement, run: LiveRun, signal: AbortSignal): () => void {
  const { model } = run;
  const { header } = model;
  const figures = new RunFigures(model);
  const rounds = new RoundsChart(model, signal);
  const rates = new RateChart(model, signal);
  const heat = new HeatMap(model, signal);
  const owners = new OwnersTable(model);
  const after = h("p", { class: "after" });
  const lost = h("p", { class: "after" });
  content.replaceChildren(
    h("h1", {}, header.scenario, " ", figures.phase),
    h(
      "p",
      { class: "about" },
      `${header.kind} ${header.run} on the ${header.host} host · ${formatSize(header.memoryBytes)} · since `,
      timeOf(header.startedAt),
    ),
    after,
    lost,
    h("div", { class: "card" }, figures.element),
    section(
      "Rounds",
      "What each round sent, and what it left dirty. The machine is stopped once that can be moved within the downtime limit.",
      rounds.element,
    ),
    section("Dirty rate", "Bytes that each tracker reported as dirty, per second between two reads.", rates.element),
    section(
      "Heat of the address space",
      "Where in guest memory the dirty pages lie: a column per read, low addresses at the bottom.",
      heat.element,
    ),
    section("Devices", null, owners.element),
  );
  let version = -1;
  let isOver = false;
  return () => {
    showEnd(after, run.stored);
    const over = run.stored !== undefined;
    if (model.version === version && over === isOver) return;
    version = model.version;
    isOver = over;
    setText(
      lost,
      model.state.lost === 0
        ? ""
        : `${model.state.lost} events were left out: they came faster than they could be shown.`,
    );
    figures.draw();
    rounds.draw();
    rates.draw(over);
    heat.draw();
    owners.draw(over);
  };
}

function showEnd(element: HTMLElement, stored: number | null | undefined): void {
  if (stored === undefined || element.childElementCount > 0) return;
  element.append(badge("over"), " ");
  if (stored === null) element.append("This run is over, and was not kept.");
  else element.append("This run is over: ", h("a", { href: `#/runs/${stored}` }, `see run ${stored}`), ".");
}
