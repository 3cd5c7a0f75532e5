import { type Diagnosis, type MigrationEvent, type MigrationPhase, migrationEvents } from "../migration/events.js";
import type { RoundReport } from "../migration/report.js";
import { safeStrings, safeText } from "../safe-text.js";
import { ownerLabel, parseOwner } from "../tracking/owner.js";
import { reasonText, verdictLine } from "./diagnosis-text.js";
import { formatCount, formatMs, formatRate, formatShare, formatSize } from "./format.js";
import { afterEvent, ownersRead, type RunDevice, type RunState, startOfRun } from "./run-state.js";
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
  readonly devices: readonly RunDevice[];
  readonly downtimeLimitMs: number;
  /** Somebody else migrates, and it is only watched. */
  readonly watched?: boolean;
}

/** The block's lines, without colours; at most `columns` characters each. */
export function blockLines(
  state: RunState,
  { downtimeLimitMs, watched = false }: Pick<LiveViewOptions, "downtimeLimitMs" | "watched">,
  columns: number,
): string[] {
  const head: string[] = [state.phase ?? "connecting"];
  if (state.round !== null) head.push(`round ${state.round}`);
  if (state.remainingBytes !== null) head.push(`remaining ${formatSize(state.remainingBytes)}`);
  const { bytesPerSecond } = state;
  if (bytesPerSecond !== null && bytesPerSecond > 0) head.push(`throughput ${formatRate(bytesPerSecond)}`);
  const lines = [
    head.join(" · "),
    `  ${progressLine(state, downtimeLimitMs)}`,
    ...(watched ? watchedLines(state) : ownerLines(state)).map((line) => `  ${line}`),
    watched ? "Ctrl-C ends the watch; the migration goes on." : "Ctrl-C cancels; the source goes on running.",
  ];
  return lines.map((line) => line.slice(0, columns));
}

function ownerLines(state: RunState): string[] {
  const all = ownersRead(state).reduce((sum, { last }) => sum + last.bytesPerSecond, 0);
  const rows = state.owners.map(({ owner, tracker, last }) => {
    if (last === null) return [ownerLabel(owner), tracker, "-", "", ""];
    const share = all > 0 ? last.bytesPerSecond / all : 0;
    return [ownerLabel(owner), tracker, formatRate(last.bytesPerSecond), bar(share, BAR_CELLS), formatShare(share)];
  });
  return table([["device", "tracker", "dirty rate", "share"], ...rows], ["left", "left", "right", "left", "right"]);
}

/** Whether it will end, why not, and how far each device is. */
function watchedLines({ diagnosis, devices, deviceStates }: RunState): string[] {
  const verdict = diagnosis === null ? [] : [verdictLine(diagnosis), ...diagnosis.reasons.map(reasonText)];
  if (devices.length === 0) return verdict;
  const rows = devices.map(({ id, model }) => [id, model, deviceStates[id] ?? "-"]);
  return [...verdict, ...table([["device", "model", "state"], ...rows], ["left", "left", "left"])];
}

/** A line for a round that is over, as it is printed where there is no terminal. */
export function roundLine(round: RoundReport): string {
  const dirty = Object.entries(round.byDevice).map(
    ([owner, { reported }]) => `${ownerLabel(parseOwner(owner))} ${formatCount(reported)}`,
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
  #state: RunState;
  #drawn = 0;
  #verdict: string | undefined;
  readonly #listener = (event: unknown) => this.#show(safeStrings(event as MigrationEvent));

  constructor(options: LiveViewOptions) {
    this.#options = options;
    this.#state = startOfRun(safeStrings(options.devices));
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
    else if (event.type === "device") this.note(`${event.device}: ${event.state}`);
    else if (event.type === "diagnosis") this.#noteVerdict(event);
  }

  /** A verdict that is not the one before, with why. */
  #noteVerdict(diagnosis: Diagnosis): void {
    const { converging, stalled, reasons } = diagnosis;
    const verdict = `${converging} ${stalled}`;
    if (verdict === this.#verdict || (converging === null && !stalled)) return;
    this.#verdict = verdict;
    this.note([verdictLine(diagnosis), ...reasons.map(reasonText)].join("; "));
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

function progressLine({ sentBytes, remainingBytes, expectedDowntimeMs }: RunState, limitMs: number): string {
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
