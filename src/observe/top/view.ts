import { safeJson, safeStrings } from "../../safe-text.js";
import { topJson, topLine, topLines } from "./render.js";
import { after, startOf, type TopEvent, type TopHeader, type TopState } from "./state.js";

/** Where a view is drawn; process.stdout is one. */
export interface TopStream {
  readonly isTTY?: boolean;
  readonly columns?: number | undefined;
  readonly rows?: number | undefined;
  write(text: string): unknown;
  on(event: "resize", listener: () => void): unknown;
  off(event: "resize", listener: () => void): unknown;
}

export interface TopViewOptions {
  readonly stream: TopStream;
  readonly color: boolean;
  /** A JSON object a line, of each read. */
  readonly json: boolean;
  /** Nothing is drawn before {@link TopView.finish}, which draws all once. */
  readonly once: boolean;
}

/** What a terminal has where nobody says. */
const COLUMNS = 100;
const ROWS = 24;

/**
 * Shows what is dirtied: on a terminal a view that is redrawn in place, also when its size changes; elsewhere a line a
 * read, or JSON.
 */
export class TopView implements Disposable {
  readonly #options: TopViewOptions;
  #state: TopState;
  #drawn = 0;
  readonly #resized = () => {
    // What stands there was wrapped anew: where it begins now nobody knows.
    this.#options.stream.write("\x1b[2J\x1b[H");
    this.#drawn = 0;
    this.#draw();
  };

  constructor(header: TopHeader, options: TopViewOptions) {
    this.#options = options;
    this.#state = startOf(safeStrings(header));
    if (this.#live) options.stream.on("resize", this.#resized);
  }

  get state(): TopState {
    return this.#state;
  }

  show(event: TopEvent): void {
    this.#state = after(this.#state, safeStrings(event));
    if (this.#options.once) return;
    if (this.#live) this.#draw();
    else if (event.type === "read" || (event.type === "written" && this.#counted)) this.#print();
  }

  /** There is nothing more to show: prints all where it was to be printed once. */
  finish(): void {
    if (this.#options.once) this.#print();
  }

  [Symbol.dispose](): void {
    if (this.#live) this.#options.stream.off("resize", this.#resized);
  }

  get #live(): boolean {
    const { stream, json, once } = this.#options;
    return stream.isTTY === true && !json && !once;
  }

  /** Nothing reads trackers here: what writers count themselves is all that there is. */
  get #counted(): boolean {
    return this.#state.header.memoryBytes === null;
  }

  #print(): void {
    const { stream, json, once, color } = this.#options;
    if (json) stream.write(`${safeJson({ schemaVersion: 1, ...topJson(this.#state) })}\n`);
    else if (once) {
      const look = { columns: stream.columns ?? Number.POSITIVE_INFINITY, rows: Number.POSITIVE_INFINITY, color };
      stream.write(`${topLines(this.#state, look).join("\n")}\n`);
    } else stream.write(`${topLine(this.#state)}\n`);
  }

  #draw(): void {
    const { stream, color } = this.#options;
    // One less than there are: in the last column some terminals wrap, and the cursor takes a line.
    const look = { columns: (stream.columns ?? COLUMNS) - 1, rows: (stream.rows ?? ROWS) - 1, color };
    const lines = topLines(this.#state, look);
    const back = this.#drawn === 0 ? "" : `\r\x1b[${this.#drawn}A\x1b[J`;
    this.#drawn = lines.length;
    stream.write(`${back}${lines.join("\n")}\n`);
  }
}
