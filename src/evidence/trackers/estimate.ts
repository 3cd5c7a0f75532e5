import { DEFAULTS } from "../../defaults.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { fixedDowntime } from "../../migration/convergence.js";
import { type Point, valueAt } from "../curve.js";
import { simulate } from "../predict/simulate.js";
import type { Summary } from "../statistics.js";
import type { BenchedDevice, TrackerBenchmark, TrackerFigures } from "./result.js";

/*
 * What a migration would be like whose only writer is this device, followed by this tracker: the prediction's simulation, fed
 * with what was measured here.
 */

/** The bandwidth and downtime limit of an estimated migration. */
export interface Link {
  /** Bytes per second, finite. */
  readonly bandwidth: number;
  readonly downtimeLimitMs: number;
}

/** The default link: a common bandwidth, and the default downtime limit. */
export const DEFAULT_LINK: Link = {
  bandwidth: DEFAULTS.linkBandwidth,
  downtimeLimitMs: DEFAULTS.downtimeLimitMs,
};

/** What a link without a limit is taken to carry: what two processes of one machine were measured to. */
export const UNLIMITED_BANDWIDTH = 2.5e9;

/** The estimate of a machine's migration. */
export interface MigrationEstimate {
  /** True if the machine can be stopped within the downtime limit. */
  readonly converges: boolean;
  /** Rounds that are sent while the machine runs. */
  readonly rounds: number;
  /** Milliseconds from the first byte to the machine running at the destination. */
  readonly totalMs: number;
  /** Milliseconds of downtime. If the migration doesn't converge, that of the round that came nearest. */
  readonly downtimeMs: number;
  /** The same two with every read as fast as the fastest, because other work on the machine only adds to a read. */
  readonly totalAtLeastMs: number;
  readonly downtimeAtLeastMs: number;
}

/** Estimates a migration with a device's tracker; null if the device's writes or the tracker's exactness are unknown. */
export function estimateMigration(
  { memoryBytes }: Pick<TrackerBenchmark, "memoryBytes">,
  device: BenchedDevice,
  figures: TrackerFigures,
  link: Link,
): MigrationEstimate | null {
  const ramPages = memoryBytes / PAGE_SIZE;
  const named = namedCurve(device, figures, ramPages);
  const usual = readCurve(figures, memoryBytes, ({ median }) => median);
  const fastest = readCurve(figures, memoryBytes, ({ min }) => min);
  if (named === null || usual === null || fastest === null) return null;
  const estimate = play(memoryBytes, device, figures, { named, cost: usual }, link);
  const undisturbed = play(memoryBytes, device, figures, { named, cost: fastest }, link);
  return {
    ...estimate,
    // Rounds are whole, so that slower reads can happen to stop the machine at a better moment.
    totalAtLeastMs: Math.min(estimate.totalMs, undisturbed.totalMs),
    downtimeAtLeastMs: Math.min(estimate.downtimeMs, undisturbed.downtimeMs),
  };
}

/** Plays a migration through with reads of a given cost. */
function play(
  memoryBytes: number,
  device: BenchedDevice,
  figures: TrackerFigures,
  { named, cost }: { named: (ms: number) => number; cost: readonly Point[] },
  { bandwidth, downtimeLimitMs }: Link,
): Omit<MigrationEstimate, "totalAtLeastMs" | "downtimeAtLeastMs"> {
  const ramPages = memoryBytes / PAGE_SIZE;
  const untracked = figures.tracker === "everything";
  const unread = figures.readableWhen === "quiesced";
  const msOf = (bytes: number) => (bytes * 1000) / bandwidth;
  // The read that finds the most: the one after the first, and longest, round.
  const readMs = valueAt(cost, named(msOf(memoryBytes)));
  const stateBytes = device.stateBytes ?? 0;
  const fixedMs = fixedDowntime(readMs, 0);
  const { verdict, rounds, downtimeMs, movingMs } = simulate(
    {
      ramPages,
      zeroPages: 0,
      // A log that can't be read before the device is stopped names nothing until then.
      dirtied: (ms) => (untracked || unread ? 0 : named(ms)),
      alwaysPages: untracked ? ramPages : 0,
      owners: () => [],
    },
    {
      source: "assumed",
      firstBytesPerSecond: bandwidth,
      bytesPerSecond: bandwidth,
      betweenMs: readMs,
      stopMs: fixedMs,
    },
    { downtimeLimitMs, maxRounds: DEFAULTS.maxRounds, bandwidth, deviceStateBytes: stateBytes, fixedMs },
  );
  const copied = rounds.filter(({ phase }) => phase === "pre-copy");
  const copiedMs = copied.reduce((sum, { ms }) => sum + ms + readMs, 0);
  if (unread) {
    const restMs = msOf(named(copiedMs) * PAGE_SIZE + stateBytes) + fixedMs;
    const totalMs = copiedMs + restMs;
    return { converges: restMs <= downtimeLimitMs, rounds: copied.length, totalMs, downtimeMs: restMs };
  }
  const least = Math.min(...copied.map(({ remaining }) => remaining));
  const nearestMs = downtimeMs ?? msOf(least + stateBytes) + fixedMs;
  return {
    converges: verdict.kind === "switch-over",
    rounds: copied.length,
    totalMs: movingMs ?? copiedMs + nearestMs,
    downtimeMs: nearestMs,
  };
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

/**
 * Milliseconds of a read by pages that it names, on memory of this size; null: not measured.
 * @param of which of the measured times counts
 */
export function readCurve(
  { reads }: TrackerFigures,
  memoryBytes: number,
  of: (times: Summary) => number,
): Point[] | null {
  const largest = Math.max(...reads.map((read) => read.memoryBytes));
  const scale = memoryBytes / largest;
  const points = reads
    .filter((read) => read.memoryBytes === largest)
    .map(({ reportedPages, ms }) => ({ x: reportedPages * scale, y: of(ms) * scale }));
  return points.length === 0 ? null : ascending(points);
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
