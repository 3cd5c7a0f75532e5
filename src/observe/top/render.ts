import { devicesOf, ownerLabel } from "../../tracking/owner.js";
import { formatMs, formatRate, formatShare, formatSize } from "../format.js";
import { type OwnerReading, ownersRead } from "../run-state.js";
import { table } from "../table.js";
import { byTracker, type TopState } from "./state.js";

/** How a view is drawn. */
export interface TopLook {
  /** Characters per line, and lines, at most. */
  readonly columns: number;
  readonly rows: number;
  readonly color: boolean;
}

const BLOCKS = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/** From seldom to often, of the 256 colours of a terminal: dark to bright, so that it reads without telling hues apart. */
const RAMP = [54, 61, 31, 36, 72, 113, 184];
const SHARE_CELLS = 16;
/** A device's own strip of heat, where the terminal is wide enough for it. */
const STRIP_CELLS = 24;
const STRIP_COLUMNS = 108;
const HEAT_LINES = 4;

/** The lines of a view, at most as many and as long as the look allows (escape sequences don't count). */
export function topLines(state: TopState, { columns, rows, color }: TopLook): string[] {
  const { header, run, written, heat } = state;
  const isRead = run.reads > 0;
  const lines: string[] = [head(state).slice(0, columns)];
  if (isRead) lines.push("", ...fitted(ownersTable(state, columns >= STRIP_COLUMNS), columns));
  if (Object.keys(written).length > 0) lines.push("", ...fitted(writtenTable(state), columns));
  if (!isRead && Object.keys(written).length === 0) lines.push("", "nothing was read yet".slice(0, columns));
  if (ownersRead(run).length > 1) lines.push("", trackersLine(state).slice(0, columns));
  if (heat.length > 0) lines.push("", ...heatLines(heat, header.memoryBytes, { columns, color }));
  return lines.slice(0, rows);
}

/** A line for each read, where there is no terminal. */
export function topLine({ run, written }: TopState): string {
  const { atMs, round } = run;
  const parts = ownersRead(run).map(({ owner, last }) => `${ownerLabel(owner)} ${formatRate(last.bytesPerSecond)}`);
  const counted = Object.entries(written).map(([writer, rate]) => `${writer} ${formatRate(rate)} written`);
  return [formatMs(atMs), ...(round === null ? [] : [`round ${round}`]), ...parts, ...counted].join(" · ");
}

/** What `--json` prints of a read: one object on a line. */
export function topJson(state: TopState): object {
  const { run, written, heat } = state;
  const { phase, round, atMs, elapsedMs, lost } = run;
  return {
    atMs,
    elapsedMs,
    phase,
    round,
    owners: ownersRead(run).map(({ name, owner, tracker, granule, peakBytesPerSecond, last }) => ({
      owner: name,
      tracker,
      granule,
      bytesPerSecond: last.bytesPerSecond,
      peakBytesPerSecond,
      exclusive: exclusiveShare(last),
      readMs: last.readMs,
      heat: last.heat,
      devices: devicesOf(owner),
    })),
    trackers: byTracker(state),
    writtenBytesPerSecond: written,
    heat,
    lost,
  };
}

function head({ header, run }: TopState): string {
  const { phase, round, atMs, elapsedMs, reads, lost } = run;
  const parts = [`${header.title} on ${header.host}`, phase ?? "watching"];
  if (round !== null) parts.push(`round ${round}`);
  parts.push(formatMs(atMs));
  if (reads > 0) parts.push(`last interval ${formatMs(elapsedMs)}`);
  if (lost > 0) parts.push(`${lost} events lost: this reader is too slow`);
  return parts.join(" · ");
}

function ownersTable({ run }: TopState, strips: boolean): string[] {
  const all = ownersRead(run).reduce((sum, { last }) => sum + last.bytesPerSecond, 0);
  const rateOf = (last: OwnerReading | null) => last?.bytesPerSecond ?? -1;
  // Those without a read come last, as they are.
  const sorted = run.owners.toSorted(
    (a, b) => rateOf(b.last) - rateOf(a.last) || (a.last === null ? 0 : a.name < b.name ? -1 : 1),
  );
  const rows = sorted.map(({ owner, tracker, granule, peakBytesPerSecond, last }) => {
    const described = [ownerLabel(owner), tracker, granule === null ? "-" : formatSize(granule)];
    if (last === null) return [...described, "-"];
    const share = all > 0 ? last.bytesPerSecond / all : 0;
    const exclusive = exclusiveShare(last);
    return [
      ...described,
      formatRate(last.bytesPerSecond),
      formatRate(peakBytesPerSecond),
      `${"█".repeat(Math.round(share * SHARE_CELLS)).padEnd(SHARE_CELLS, "░")} ${formatShare(share).padStart(5)}`,
      exclusive === null ? "-" : formatShare(exclusive),
      formatMs(last.readMs),
      ...(strips ? [strip(last.heat, STRIP_CELLS)] : []),
    ];
  });
  return table(
    [
      ["owner", "tracker", "granule", "dirty", "peak", "share", "only it", "read", ...(strips ? ["where"] : [])],
      ...rows,
    ],
    ["left", "left", "right", "right", "right", "left", "right", "right", "left"],
  );
}

/** Of an owner's pages, the share that no other tracker reported; null where it reported none. */
function exclusiveShare({ reported, exclusive }: OwnerReading): number | null {
  return reported === 0 ? null : exclusive / reported;
}

function writtenTable({ written }: TopState): string[] {
  const rows = Object.entries(written).sort(([, a], [, b]) => b - a);
  return table([["writer", "written"], ...rows.map(([writer, rate]) => [writer, formatRate(rate)])], ["left", "right"]);
}

function trackersLine(state: TopState): string {
  const parts = byTracker(state).map(({ tracker, bytesPerSecond, readMs }) => {
    return `${tracker} ${formatRate(bytesPerSecond)} (read in ${formatMs(readMs)})`;
  });
  return `by tracker: ${parts.join(" · ")}`;
}

/** The address space from its first page to its last, in lines of equal length. */
function heatLines(
  heat: readonly number[],
  memoryBytes: number | null,
  { columns, color }: Pick<TopLook, "columns" | "color">,
): string[] {
  const labels = Array.from({ length: HEAT_LINES }, (_, line) =>
    memoryBytes === null ? "" : formatSize((memoryBytes * line) / HEAT_LINES),
  );
  const margin = Math.max(...labels.map(({ length }) => length)) + 1;
  const cells = Math.min(Math.ceil(heat.length / HEAT_LINES), columns - margin);
  if (cells < 4) return [];
  const all = merged(heat, cells * HEAT_LINES);
  const most = Math.max(...all, 1);
  return labels.map((name, line) => {
    const drawn = all.slice(line * cells, (line + 1) * cells).map((pages) => cell(pages, most, color));
    return `${name.padStart(margin - 1)} ${drawn.join("")}`;
  });
}

function strip(heat: readonly number[], cells: number): string {
  const all = merged(heat, cells);
  const most = Math.max(...all, 1);
  return all.map((pages) => cell(pages, most, false)).join("");
}

/** By the logarithm: a stretch with one dirty page is seen beside one with thousands. */
function cell(pages: number, most: number, color: boolean): string {
  if (pages <= 0) return color ? "\x1b[2m·\x1b[0m" : "·";
  const share = most <= 1 ? 1 : Math.log1p(pages) / Math.log1p(most);
  const block = BLOCKS[Math.max(1, Math.min(8, Math.round(share * 8)))];
  if (!color) return block;
  return `\x1b[38;5;${RAMP[Math.min(RAMP.length - 1, Math.floor(share * RAMP.length))]}m${block}\x1b[0m`;
}

/** The same in another number of stretches: each page is counted where it lies, or in equal parts. */
function merged(heat: readonly number[], cells: number): number[] {
  const sums = new Array<number>(cells).fill(0);
  heat.forEach((pages, i) => {
    const from = (i * cells) / heat.length;
    const to = ((i + 1) * cells) / heat.length;
    for (let at = Math.floor(from); at < to; at++) {
      sums[at] += (pages * (Math.min(to, at + 1) - Math.max(from, at))) / (to - from);
    }
  });
  return sums;
}

function fitted(lines: readonly string[], columns: number): string[] {
  return lines.map((line) => line.slice(0, columns));
}
