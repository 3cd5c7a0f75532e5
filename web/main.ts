import { Refused } from "./api.js";
import { emptyState, h, setText } from "./dom.js";
import { Live } from "./live.js";
import { benchmarksView, benchmarkView } from "./views/benchmarks.js";
import { compareView } from "./views/compare.js";
import { liveRunView, nowView } from "./views/live.js";
import { pastRunView } from "./views/run.js";
import { runsView } from "./views/runs.js";
import type { View, ViewContext } from "./views/view.js";

/*
 * The page: an address behind the # is a view. The view that was shown before is stopped by its signal.
 */

const ROUTES: readonly (readonly [pattern: RegExp, nav: string, view: View])[] = [
  [/^\/?$/, "#/", nowView],
  [/^\/live\/([0-9a-z-]+)$/, "#/", liveRunView],
  [/^\/runs$/, "#/runs", runsView],
  [/^\/runs\/(\d+)$/, "#/runs", pastRunView],
  [/^\/compare(?:\/(\d+)\/(\d+))?$/, "#/compare", compareView],
  [/^\/benchmarks$/, "#/benchmarks", benchmarksView],
  [/^\/benchmarks\/(\d+)$/, "#/benchmarks", benchmarkView],
];

const main = byId("main");
const link = byId("link");
const live = new Live();
let shown = new AbortController();

live.watch(() => {
  setText(link, live.connected ? `live · ${live.inProgress.length} in progress` : "not connected");
  link.classList.toggle("off", !live.connected);
}, new AbortController().signal);

async function show({ focus }: { focus: boolean }): Promise<void> {
  shown.abort();
  shown = new AbortController();
  const { signal } = shown;
  const path = location.hash.replace(/^#/, "");
  const [pattern, nav, view] = ROUTES.find(([pattern]) => pattern.test(path)) ?? [];
  for (const anchor of document.querySelectorAll("nav a")) {
    if (anchor.getAttribute("href") === nav) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  if (pattern === undefined || view === undefined) {
    return put(notFound(path), "Not found", focus);
  }
  const context: ViewContext = { live, signal, parameters: pattern.exec(path)?.slice(1) ?? [] };
  try {
    const { title, content } = await view(context);
    if (!signal.aborted) put(content, title, focus);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Refused)) console.error(error);
    put(headed("Not shown", emptyState("This can't be shown", (error as Error).message)), "Not shown", focus);
  }
}

function put(content: HTMLElement, title: string, focus: boolean): void {
  document.title = `${title} · Dirtmap`;
  main.replaceChildren(content);
  // Who hears the page is told that it is another one.
  if (focus) main.focus({ preventScroll: true });
  scrollTo({ top: 0 });
}

function notFound(path: string): HTMLElement {
  const now = h("a", { href: "#/" }, "See what runs now");
  return headed("Not found", emptyState("There is no such page", `Nothing is at ${path}. `, now, "."));
}

function headed(title: string, content: HTMLElement): HTMLElement {
  return h("div", {}, h("h1", {}, title), content);
}

function byId(id: string): HTMLElement {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`index.html has no #${id}`);
  return element;
}

addEventListener("hashchange", () => void show({ focus: true }));
void show({ focus: false });
