import { h } from "../dom.js";
import type { Live } from "../live.js";

/** What a view has to work with. */
export interface ViewContext {
  readonly live: Live;
  /** Fires when another view is shown. */
  readonly signal: AbortSignal;
  /** The variable parts of the address. */
  readonly parameters: readonly (string | undefined)[];
}

/** A view's content, and the name that the window gets. */
export interface Shown {
  readonly title: string;
  readonly content: HTMLElement;
}

export type View = (context: ViewContext) => Shown | Promise<Shown>;

/** How a run or a phase went, told by a word; the colour only repeats it. */
export function badge(result: string): HTMLElement {
  const kind = result === "completed" ? "good" : result === "failed" || result === "indeterminate" ? "bad" : "plain";
  return h("span", { class: `badge ${kind}` }, result);
}

/** A point in time as the reader's clock says it. */
export function timeOf(iso: string): HTMLElement {
  const text = new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return h("time", { datetime: iso }, text);
}

/** A difference with its sign: `+5 %`, `−3`, `0 %`. */
export function signed(value: number, unit: string): string {
  return `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value)}${unit}`;
}
