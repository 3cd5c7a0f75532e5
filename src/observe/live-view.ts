import { type MigrationEvent, type MigrationPhase, migrationEvents } from "../migration/events.js";
import type { RoundReport } from "../migration/report.js";
import { safeStrings, safeText } from "../safe-text.js";
import type { TrackerKind } from "../tracking/tracker.js";
import { formatCount, formatMs, formatRate, formatShare, formatSize } from "./format.js";
import { table } from "./table.js";

/*
 * A migration while it runs, on standard error: on a terminal a block that is redrawn in place, elsewhere a line per
 * round. It only listens to the events that the migration publishes.
 */

const BAR_CELLS = 20;
/** Shorter, so that the line fits 80 columns. */
const ROUND_BAR_CELLS = 12;

/** Phases whose text the final report repeats, or, of `indeterminate`, the command says at more length. */
const ENDED: readonly MigrationPhase[] = ["completed", "failed", "cancelled", "indeterminate"];

/** Where the view is drawn; process.stderr is one. */
export interface ViewStream {
  readonly isTTY?: boolean;
  readonly columns?: number | undefined;
  write(text: string): unknown;
}

export interface LiveViewOptions {
  readonly stream: ViewStream;
  /** ANSI colours, on a terminal. */
  readonly color: boolean;
  /** The machine's devices with the trackers that were chosen for them. */
  readonly devices: readonly { readonly id: string; readonly tracker: TrackerKind }[];
  readonly downtimeLimitMs: number;
}

/** What is known of a running migration; made of its events alone. */
export interface LiveState {
  readonly phase: MigrationPhase;
  readonly round: number | null;
  readonly sentBytes: number;
  readonly remainingBytes: number | null;
  readonly bytesPerSecond: number;
  readonly expectedDowntimeMs: number | null;
  /** Bytes dirtied per second, by tracker owner. */
  readonly dirtyRates: Readonly<Record<string, number>>;
}

export const NOTHING_YET: LiveState = {
  phase: "connecting",
  round: null,
  sentBytes: 0,
  remainingBytes: null,
  bytesPerSecond: 0,
  expectedDowntimeMs: null,
  dirtyRates: {},
};

/** The state after an event. Pure. */
export function afterEvent(state: LiveState, event: MigrationEvent): LiveState {
  switch (event.type) {
    case "phase":
      return { ...state, phase: event.phase };
    case "round":
      return { ...state, round: event.round.round, remainingBytes: event.round.remaining };
    case "progress":
      return {
        ...state,
        round: event.round,
        sentBytes: event.sentBytes,
        remainingBytes: event.remainingBytes,
        bytesPerSecond: event.bytesPerSecond,
        expectedDowntimeMs: event.expectedDowntimeMs,
        dirtyRates: event.dirtyBytesPerSecond,
      };
    case "read":
      return state;
  }
}

/** The block's lines, without colours; at most `columns` characters each. */
export function blockLines(
  state: LiveState,
  { devices, downtimeLimitMs }: Pick<LiveViewOptions, "devices" | "downtimeLimitMs">,
  columns: number,
): string[] {
  const head: string[] = [state.phase];
  if (state.round !== null) head.push(`round ${state.round}`);
  if (state.remainingBytes !== null) head.push(`remaining ${formatSize(state.remainingBytes)}`);
  if (state.bytesPerSecond > 0) head.push(`throughput ${formatRate(state.bytesPerSecond)}`);
  const rates = Object.values(state.dirtyRates).reduce((sum, rate) => sum + rate, 0);
  const rows = owners(state.dirtyRates, devices).map(({ owner, tracker }) => {
    const rate = state.dirtyRates[owner];
    if (rate === undefined) return [owner, tracker, "-", "", ""];
    const share = rates > 0 ? rate / rates : 0;
    return [owner, tracker, formatRate(rate), bar(share, BAR_CELLS), formatShare(share)];
  });
  const body = table(
    [["device", "tracker", "dirty rate", "share"], ...rows],
    ["left", "left", "right", "left", "right"],
  );
  const lines = [head.join(" · "), `  ${progressLine(state, downtimeLimitMs)}`, ...body.map((line) => `  ${line}`)];
  return [...lines, "Ctrl-C cancels; the source goes on running."].map((line) => line.slice(0, columns));
}

/** A line for a round that is over, as it is printed where there is no terminal. */
export function roundLine(round: RoundReport): string {
  const dirty = Object.entries(round.byDevice).map(
    ([owner, { reported }]) => `${label(owner)} ${formatCount(reported)}`,
  );
  const parts = [
    `round ${round.round} (${round.phase})`,
    `${formatCount(round.pages)} pages`,
    formatSize(round.bytes),
    formatMs(round.ms),
    `remaining ${formatSize(round.remaining)}`,
  ];
  if (dirty.length > 0) parts.push(`dirty: ${dirty.join(", ")}`);
  return parts.join(" · ");
}

/** Shows a migration until it is disposed. */
export class LiveView implements Disposable {
  readonly #options: LiveViewOptions;
  #state = NOTHING_YET;
  #drawn = 0;
  readonly #listener = (event: unknown) => this.#show(safeStrings(event as MigrationEvent));

  constructor(options: LiveViewOptions) {
    this.#options = { ...options, devices: safeStrings(options.devices) };
    migrationEvents.subscribe(this.#listener);
  }

  /** Writes a line that stays, above the block. */
  note(text: string): void {
    const { stream } = this.#options;
    stream.write(`${this.#erase()}${safeText(text)}\n`);
    if (stream.isTTY === true) this.#draw();
  }

  /** Erases the block, so that something else may be written; the next event or note draws it again. */
  clear(): void {
    const erase = this.#erase();
    if (erase !== "") this.#options.stream.write(erase);
  }

  [Symbol.dispose](): void {
    migrationEvents.unsubscribe(this.#listener);
    this.clear();
  }

  #show(event: MigrationEvent): void {
    this.#state = afterEvent(this.#state, event);
    if (event.type === "phase" && event.text !== undefined && !ENDED.includes(event.phase)) {
      this.note(`${event.phase}: ${event.text}`);
    }
    if (this.#options.stream.isTTY === true) this.#draw();
    else if (event.type === "round") this.note(roundLine(event.round));
  }

  #draw(): void {
    const { stream, color } = this.#options;
    // One column less than there are: in the last one some terminals wrap.
    const lines = blockLines(this.#state, this.#options, (stream.columns ?? 80) - 1);
    const erase = this.#erase();
    this.#drawn = lines.length;
    const shown = color ? [`\x1b[1m${lines[0]}\x1b[0m`, ...lines.slice(1, -1), `\x1b[2m${lines.at(-1)}\x1b[0m`] : lines;
    stream.write(`${erase}${shown.join("\n")}\n`);
  }

  /** Goes back to the block's first line and clears from there on; its column too, since the terminal echoes ^C. */
  #erase(): string {
    const lines = this.#drawn;
    this.#drawn = 0;
    return lines === 0 ? "" : `\r\x1b[${lines}A\x1b[J`;
  }
}

/** The rows: what the rates name, and devices that no rate names yet. A domain's owner is its devices, joined by '+'. */
function owners(
  rates: LiveState["dirtyRates"],
  devices: LiveViewOptions["devices"],
): { owner: string; tracker: string }[] {
  const members = (owner: string) => label(owner).split("+");
  const covered = new Set(Object.keys(rates).flatMap(members));
  const waiting = devices.filter(({ id }) => !covered.has(id)).map(({ id }) => id);
  return [...Object.keys(rates), ...waiting].map((owner) => {
    const trackers = devices.filter(({ id }) => members(owner).includes(id)).map(({ tracker }) => tracker);
    return { owner, tracker: trackers.length === 0 ? owner : [...new Set(trackers)].join("+") };
  });
}

function label(owner: string): string {
  return owner.replace(/^domain:/, "");
}

function progressLine({ sentBytes, remainingBytes, expectedDowntimeMs }: LiveState, limitMs: number): string {
  const parts: string[] = [];
  const all = sentBytes + (remainingBytes ?? 0);
  if (remainingBytes !== null && all > 0) {
    parts.push(`${bar(sentBytes / all, ROUND_BAR_CELLS)} ${formatShare(sentBytes / all)} of this round`);
  }
  if (expectedDowntimeMs !== null) {
    parts.push(`expected downtime ${formatMs(expectedDowntimeMs)} (limit ${formatMs(limitMs)})`);
  }
  return parts.join(" · ");
}

function bar(share: number, cells: number): string {
  const full = Math.round(share * cells);
  return "█".repeat(full) + "░".repeat(cells - full);
}
