import { type Comparison, type Summary, spread, WIDE_SPREAD } from "../statistics.js";
import type { TrackerBenchmark } from "./result.js";

/** A loss of writes that would matter, if it were one. */
const NOTICEABLE = 0.05;

/** What somebody must know before the figures are trusted: a line each, with what would help. */
export function benchmarkWarnings({ devices, sharing, machine, leftOut }: TrackerBenchmark): string[] {
  const reads = devices.flatMap(({ id, trackers }) =>
    trackers.filter(({ reads: all }) => all.some(({ ms }) => isWide(ms))).map(({ tracker }) => `${id} on ${tracker}`),
  );
  const dma = devices.flatMap(({ id, trackers }) =>
    trackers.filter(({ dma: one }) => one !== null && isOpen(one)).map(({ tracker }) => `${id} on ${tracker}`),
  );
  const shared = sharing.filter(({ read }) => isOpen(read)).map((group) => group.devices.join("+"));
  const refused = devices.flatMap(({ id, trackers }) =>
    trackers.flatMap(({ tracker, problem }) => (problem === null ? [] : [`${id} on ${tracker}: ${problem}`])),
  );
  const again = "measure again on a quieter machine";
  return [
    ...leftOut.map(({ id, why }) => `${id} was not measured: ${why}`),
    ...refused,
    ...listed(
      reads,
      (names) => `reads of ${names} took so different times that small differences say nothing: ${again}`,
    ),
    ...listed(
      dma,
      (names) => `what tracking costs the DMA of ${names} is too wide a range to decide: ${again}, or without --quick`,
    ),
    ...listed(shared, (names) => `whether one HWPT for ${names} reads faster is open: ${again}`),
    ...((machine.stealShare ?? 0) > NOTICEABLE
      ? [`the hypervisor gave ${Math.round((machine.stealShare ?? 0) * 100)} % of the processor to others meanwhile`]
      : []),
  ];
}

/** Half of the values lie further apart than half of the median, and it is no matter of microseconds. */
function isWide(ms: Summary): boolean {
  return spread(ms) > WIDE_SPREAD && ms.q3 - ms.q1 > 0.2;
}

/** It may be nothing, and it may be much. */
function isOpen({ decides, low, high }: Comparison): boolean {
  return !decides && (low < 1 - NOTICEABLE || high > 1 + NOTICEABLE);
}

function listed(names: readonly string[], say: (names: string) => string): string[] {
  const different = [...new Set(names)];
  return different.length === 0 ? [] : [say(different.join(", "))];
}
