import { PAGE_SIZE } from "../../memory/address.js";
import { type Conditions, judge, type RoundFacts } from "../../migration/convergence.js";
import { type Point, valueAt } from "../curve.js";
import type { BenchedDevice, TrackerBenchmark, TrackerFigures } from "./result.js";

/*
 * What a migration would be like whose only writer is this device, followed by this tracker: the rounds are played through
 * with what was measured, and judged by the migration's own rule.
 */

/** What a migration is given. */
export interface Link {
  /** Bytes per second, finite. */
  readonly bandwidth: number;
  readonly downtimeLimitMs: number;
}

/** Where nobody says more: a common link, and the limit of a migration without one. */
export const DEFAULT_LINK: Link = { bandwidth: 1.25e9, downtimeLimitMs: 100 };

/** What a link without a limit is taken to carry: what two processes of one machine were measured to. */
export const UNLIMITED_BANDWIDTH = 2.5e9;

/** How the migration of a machine would go. */
export interface MigrationEstimate {
  /** The machine can be stopped within the downtime limit. */
  readonly converges: boolean;
  /** Rounds that are sent while the machine runs. */
  readonly rounds: number;
  /** Milliseconds from the first byte to the machine running at the destination. */
  readonly totalMs: number;
  /** Where it doesn't converge: of the round in which it came nearest. */
  readonly downtimeMs: number;
  /** How far the downtime may be off because reads took now longer, now shorter; milliseconds. */
  readonly noiseMs: number;
}

const MAX_ROUNDS = 30;
/** Stopping, loading states, two journals: see docs/performance.md. It is the same for all trackers. */
const FIXED_MS = 30;

/** Plays a migration through. null where it is not known what the device writes, or what the tracker names. */
export function estimateMigration(
  { memoryBytes }: Pick<TrackerBenchmark, "memoryBytes">,
  device: BenchedDevice,
  figures: TrackerFigures,
  { bandwidth, downtimeLimitMs }: Link,
): MigrationEstimate | null {
  const named = namedCurve(device, figures, memoryBytes / PAGE_SIZE);
  const cost = readCurve(figures, memoryBytes);
  if (named === null || cost === null) return null;
  const untracked = figures.tracker === "everything";
  const conditions: Conditions = {
    downtimeLimitMs,
    maxRounds: MAX_ROUNDS,
    bandwidth,
    deviceStateBytes: device.stateBytes ?? 0,
    fixedMs: FIXED_MS,
  };
  const history: RoundFacts[] = [];
  let pages = memoryBytes / PAGE_SIZE;
  let elapsed = 0;
  let nearest = Number.POSITIVE_INFINITY;
  for (;;) {
    const ms = Math.max((pages * PAGE_SIZE * 1000) / bandwidth, 1e-3);
    elapsed += ms;
    // A log that is read only at the end names then what was written since the beginning.
    const since = figures.readableWhen === "quiesced" ? elapsed : ms;
    const remaining = named(since);
    const readMs = valueAt(cost, remaining);
    elapsed += readMs;
    const always = untracked ? remaining : 0;
    history.push({
      pages,
      zeroPages: 0,
      ms,
      remainingBytes: remaining * PAGE_SIZE,
      alwaysDirtyBytes: always * PAGE_SIZE,
      owners: [],
    });
    const verdict = judge(history, { ...conditions, fixedMs: FIXED_MS + readMs });
    nearest = Math.min(nearest, verdict.expectedDowntimeMs);
    if (verdict.kind !== "continue") {
      const converges = verdict.kind === "switch-over";
      const downtimeMs = converges ? verdict.expectedDowntimeMs : nearest;
      return {
        converges,
        rounds: history.length,
        totalMs: elapsed + downtimeMs,
        downtimeMs,
        noiseMs: readNoise(figures),
      };
    }
    pages = untracked || figures.readableWhen === "quiesced" ? 0 : remaining;
  }
}

/** Pages that the tracker names of so many milliseconds of the device's untracked work; null: not known. */
function namedCurve(
  { writes }: BenchedDevice,
  { tracker, precision, reads }: TrackerFigures,
  allPages: number,
): ((ms: number) => number) | null {
  if (tracker === "everything") return () => allPages;
  if (writes === null || writes.length === 0 || precision.length === 0) return null;
  // Of the device untracked: a tracker that slows it down is not to gain from that.
  const written = [{ x: 0, y: 0 }, ...writes.map(({ ms, pages }) => ({ x: ms, y: pages }))];
  const still = reads.find(({ writtenPages }) => writtenPages === 0)?.reportedPages ?? 0;
  const named = ascending([
    { x: 0, y: still },
    ...precision.map(({ writtenPages, reportedPages }) => ({ x: writtenPages, y: reportedPages })),
  ]);
  return (ms) => {
    const pages = valueAt(written, ms);
    // No tracker names less than was written, and none more than there is.
    return Math.min(allPages, Math.max(pages, valueAt(named, pages)));
  };
}

/** Milliseconds of a read by pages that it names, on memory of this size; null: not measured. */
export function readCurve({ reads }: TrackerFigures, memoryBytes: number): Point[] | null {
  const largest = Math.max(...reads.map((read) => read.memoryBytes));
  const scale = memoryBytes / largest;
  const points = reads
    .filter((read) => read.memoryBytes === largest)
    .map(({ reportedPages, ms }) => ({ x: reportedPages * scale, y: ms.median * scale }));
  return points.length === 0 ? null : ascending(points);
}

/** Half of the middle half of what reads took, of the widest of them. */
function readNoise({ reads }: TrackerFigures): number {
  return Math.max(0, ...reads.map(({ ms }) => (ms.q3 - ms.q1) / 2));
}

/** In order of x, each x once (with the greatest y), and y never falling: noise must not make more pages cost less. */
function ascending(points: readonly Point[]): Point[] {
  const sorted = points.toSorted((a, b) => a.x - b.x || a.y - b.y);
  const rising: Point[] = [];
  for (const { x, y } of sorted) {
    const last = rising.at(-1);
    const point = { x, y: Math.max(y, last?.y ?? 0) };
    if (last?.x === x) rising[rising.length - 1] = point;
    else rising.push(point);
  }
  return rising;
}
