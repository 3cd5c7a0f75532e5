import { PAGE_SIZE } from "../../memory/address.js";
import { ASSUMED_BYTES_PER_SECOND, STOP_MS, ZERO_BYTES_PER_SECOND } from "../../migration/convergence.js";
import type { MigrationReport } from "../../migration/report.js";
import { summarize } from "../statistics.js";

/** How fast pages get to the destination, and what a migration costs besides. */
export interface LinkEstimate {
  /** Where the figures come from. */
  readonly source: "assumed" | "loopback" | "run";
  /** Bytes of non-zero pages per second in the first round: the destination's memory is touched for the first time. */
  readonly firstBytesPerSecond: number;
  /** In all later rounds. */
  readonly bytesPerSecond: number;
  /** Milliseconds from one round's end to the next one's start: the read of the trackers, and messages. */
  readonly betweenMs: number;
  /** What a downtime has besides its bytes: stopping, states, journals, starting. */
  readonly stopMs: number;
}

/** What is known before anything was measured. */
export const ASSUMED_LINK: LinkEstimate = {
  source: "assumed",
  firstBytesPerSecond: ASSUMED_BYTES_PER_SECOND,
  bytesPerSecond: ASSUMED_BYTES_PER_SECOND,
  betweenMs: 5,
  stopMs: STOP_MS,
};

/** Rounds that move less measure latency. */
const ENOUGH_BYTES = 2 ** 20;

/** The same link where no more than `bandwidth` bytes per second may be used. */
export function limited(link: LinkEstimate, bandwidth: number): LinkEstimate {
  return {
    ...link,
    firstBytesPerSecond: Math.min(link.firstBytesPerSecond, bandwidth),
    bytesPerSecond: Math.min(link.bytesPerSecond, bandwidth),
  };
}

/**
 * What earlier migrations over the same link tell of it: medians of what each one showed. A part that none of them shows
 * is taken from `otherwise`.
 * @param reports of migrations that completed; others are passed over
 */
export function linkFromReports(
  reports: readonly Pick<MigrationReport, "result" | "rounds" | "phases" | "downtimeMs">[],
  otherwise: LinkEstimate = ASSUMED_LINK,
): LinkEstimate {
  const first: number[] = [];
  const later: number[] = [];
  const between: number[] = [];
  const stop: number[] = [];
  for (const { result, rounds, phases, downtimeMs } of reports) {
    if (result !== "completed" || downtimeMs === null) continue;
    let roundsMs = 0;
    for (const { round, phase, pages, zeroPages, ms } of rounds) {
      const data = (pages - zeroPages) * PAGE_SIZE;
      const zeroMs = ((zeroPages * PAGE_SIZE) / ZERO_BYTES_PER_SECOND) * 1000;
      if (data >= ENOUGH_BYTES) (round === 0 ? first : later).push((data / Math.max(ms - zeroMs, ms / 2)) * 1000);
      if (phase === "pre-copy") roundsMs += ms;
      else stop.push(downtimeMs - ms);
    }
    const precopy = phases.find(({ phase }) => phase === "pre-copy")?.ms;
    const precopyRounds = rounds.filter(({ phase }) => phase === "pre-copy").length;
    if (precopy !== undefined && precopyRounds > 0) between.push(Math.max(0, precopy - roundsMs) / precopyRounds);
  }
  if (first.length + later.length + stop.length === 0) return otherwise;
  const speed = median(later) ?? median(first) ?? otherwise.bytesPerSecond;
  return {
    source: "run",
    firstBytesPerSecond: median(first) ?? speed,
    bytesPerSecond: speed,
    betweenMs: median(between) ?? otherwise.betweenMs,
    stopMs: median(stop) ?? otherwise.stopMs,
  };
}

function median(values: readonly number[]): number | undefined {
  return values.length === 0 ? undefined : summarize(values).median;
}
