import { get } from "./api.js";
import { type FeedEvent, type RunHeader, RunModel } from "./run-model.js";

/*
 * The runs in progress, as the server tells of them. Events come as they come; views are told once a frame.
 */

/** A run in progress, or one that ended while it was looked at. */
export interface LiveRun {
  readonly model: RunModel;
  /** Where it is kept: its id among the runs that are over; null: nowhere. undefined: it goes on. */
  stored?: number | null;
}

/** Ended runs that are still shown. */
const MAX_ENDED = 8;

/** Follows all runs for as long as the page is open. */
export class Live {
  readonly runs = new Map<string, LiveRun>();
  connected = false;
  readonly #listeners = new Set<() => void>();
  #frame = 0;

  constructor() {
    const source = new EventSource("/api/events");
    source.onopen = () => {
      // The server begins with all that is in progress.
      for (const [run, { stored }] of this.runs) if (stored === undefined) this.runs.delete(run);
      this.connected = true;
      this.#changed();
    };
    source.onerror = () => {
      this.connected = false;
      this.#changed();
      // An EventSource doesn't say why; a token that is wanted anew takes the page to its form.
      get("/api/live", new AbortController().signal).catch(() => {});
    };
    source.addEventListener("begin", ({ data }) => {
      const header = JSON.parse(data) as RunHeader;
      this.runs.set(header.run, { model: new RunModel(header) });
      this.#changed();
    });
    source.addEventListener("event", ({ data }) => {
      const { run, event } = JSON.parse(data) as { run: string; event: FeedEvent };
      this.runs.get(run)?.model.add(event);
      this.#changed();
    });
    source.addEventListener("end", ({ data }) => {
      const { run, stored } = JSON.parse(data) as { run: string; stored: number | null };
      const live = this.runs.get(run);
      if (live !== undefined) live.stored = stored;
      this.#forget();
      this.#changed();
    });
  }

  /** Runs that go on, the newest first. */
  get inProgress(): LiveRun[] {
    const runs = [...this.runs.values()].filter(({ stored }) => stored === undefined);
    return runs.sort((a, b) => (a.model.header.startedAt < b.model.header.startedAt ? 1 : -1));
  }

  /** Calls back at most once a frame, until the signal. */
  watch(changed: () => void, signal: AbortSignal): void {
    this.#listeners.add(changed);
    signal.addEventListener("abort", () => this.#listeners.delete(changed));
  }

  #changed(): void {
    if (this.#frame !== 0) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      for (const listener of this.#listeners) listener();
    });
  }

  #forget(): void {
    const ended = [...this.runs].filter(([, { stored }]) => stored !== undefined);
    for (const [run] of ended.slice(0, Math.max(0, ended.length - MAX_ENDED))) this.runs.delete(run);
  }
}
