import { ASSUMED_BYTES_PER_SECOND, dataBytes, roundSpeed, STOP_MS, zeroMs } from "../../migration/convergence.js";
import type { MigrationReport, RoundReport } from "../../migration/report.js";
import { summarize } from "../statistics.js";

/** The speed at which pages get to the destination, and the other costs of a migration. */
export interface LinkEstimate {
  /** The origin of the figures. */
  readonly source: "assumed" | "loopback" | "run";
  /** Bytes of non-zero pages per second in the first round, in which the destination's memory is touched for the first time. */
  readonly firstBytesPerSecond: number;
  /** Bytes of non-zero pages per second in all later rounds. */
  readonly bytesPerSecond: number;
  /** Milliseconds from one round's end to the next one's start: the read of the trackers, and messages. */
  readonly betweenMs: number;
  /** Milliseconds of downtime besides its bytes: stopping, states, journals, starting. */
  readonly stopMs: number;
}

/** The estimate before anything was measured. */
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

type PastReport = Pick<MigrationReport, "result" | "rounds" | "phases" | "downtimeMs">;

/**
 * Returns the estimate of a link from earlier migrations over it: the medians of their figures. A figure that none of them has is
 * taken from `otherwise`.
 * @param reports reports of migrations; those that did not complete are ignored
 */
export function linkFromReports(reports: readonly PastReport[], otherwise: LinkEstimate = ASSUMED_LINK): LinkEstimate {
  const rounds = completed(reports).flatMap((report) =>
    report.rounds.filter((round) => dataBytes(round) >= ENOUGH_BYTES),
  );
  if (completed(reports).length === 0) return otherwise;
  const first = median(rounds.filter(({ round }) => round === 0).map(roundSpeed));
  const speed = median(rounds.filter(({ round }) => round > 0).map(roundSpeed)) ?? first ?? otherwise.bytesPerSecond;
  const speeds = { ...otherwise, firstBytesPerSecond: first ?? speed, bytesPerSecond: speed };
  return { ...costsFromReports(reports, speeds), source: "run" };
}

/**
 * Returns a link estimate whose costs besides the bytes come from earlier migrations. Small rounds take longer than their bytes
 * do. The last round is small, so its time beyond its bytes counts as the cost of stopping.
 * @param link the estimate whose speed is kept; its other figures are kept too if no migration has completed
 */
export function costsFromReports(reports: readonly PastReport[], link: LinkEstimate): LinkEstimate {
  const between: number[] = [];
  const stop: number[] = [];
  for (const { rounds, phases, downtimeMs } of completed(reports)) {
    // One that was held back, by a limit or by a slower link, shows it in its fastest round.
    const fastest = Math.max(...rounds.filter((round) => dataBytes(round) >= ENOUGH_BYTES).map(roundSpeed));
    const idealMs = (round: RoundReport) => {
      const wanted = round.round === 0 ? link.firstBytesPerSecond : link.bytesPerSecond;
      return (dataBytes(round) / (fastest > 0 ? Math.min(wanted, fastest) : wanted)) * 1000 + zeroMs(round);
    };
    const copied = rounds.filter(({ phase }) => phase === "pre-copy");
    const precopyMs = phases.find(({ phase }) => phase === "pre-copy")?.ms;
    if (precopyMs !== undefined && copied.length > 0) {
      const bytesMs = copied.reduce((sum, round) => sum + idealMs(round), 0);
      between.push(Math.max(0, precopyMs - bytesMs) / copied.length);
    }
    const last = rounds.find(({ phase }) => phase === "stop-copy");
    if (last !== undefined) stop.push(Math.max(0, downtimeMs - idealMs(last)));
  }
  return { ...link, betweenMs: median(between) ?? link.betweenMs, stopMs: median(stop) ?? link.stopMs };
}

function completed(reports: readonly PastReport[]) {
  return reports.flatMap((report) => {
    const { downtimeMs } = report;
    return report.result === "completed" && downtimeMs !== null ? [{ ...report, downtimeMs }] : [];
  });
}

function median(values: readonly number[]): number | undefined {
  return values.length === 0 ? undefined : summarize(values).median;
}
