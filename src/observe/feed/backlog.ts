import type { FeedEvent } from "./schema.js";

/** What a run told so far, for those who come later: the newest progress, and of all else as much as fits. */
export class Backlog {
  readonly #maxBytes: number;
  readonly #kept: string[] = [];
  #bytes = 0;
  #left = 0;
  #progress = "";

  /** @param maxBytes of lines; the oldest are left out above */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** Adds an event, as the line that it is. */
  add(type: FeedEvent["type"], line: string): void {
    // Of the progress only the newest is of use.
    if (type === "progress") {
      this.#progress = line;
      return;
    }
    this.#kept.push(line);
    this.#bytes += line.length;
    while (this.#bytes > this.#maxBytes) {
      this.#bytes -= this.#kept.shift()?.length ?? 0;
      this.#left++;
    }
  }

  /** The lines in order. Where some were left out, the first says how many. */
  lines(): string[] {
    const left = this.#left === 0 ? [] : [lostLine(this.#left)];
    return [...left, ...this.#kept, ...(this.#progress === "" ? [] : [this.#progress])];
  }
}

/** The line that tells of events that were left out. */
export function lostLine(events: number): string {
  return JSON.stringify({ type: "lost", events } satisfies FeedEvent);
}
