import { costsFromReports, type LinkEstimate, linkFromReports } from "../../../evidence/predict/link.js";
import { measureLoopback } from "../../../evidence/predict/loopback.js";
import { type Prediction, predict } from "../../../evidence/predict/predict.js";
import type { TraceInterval } from "../../../evidence/trace/interval.js";
import type { Settings } from "../../input/option-scenario-default.js";
import type { MigrationOptions } from "../../input/options/migration.js";
import type { StoreOption } from "../../input/options/places.js";
import type { WatchOptions } from "../../input/options/watch.js";
import type { Asked } from "../../input/scenario.js";
import { pastReports, readReports } from "../../kept/past-reports.js";
import type { EmulatedMachine } from "../../sites/hosts.js";
import { observeMachine } from "./observe-machine.js";

/** What a prediction goes by, besides the machine. */
export interface PredictOptions extends StoreOption, WatchOptions, Pick<MigrationOptions, "maxRounds"> {
  /** Reports of migrations over this very link (`migrate --json`). */
  readonly linkFrom?: readonly string[] | undefined;
  readonly verifyFirst?: boolean;
}

/**
 * Watches a running machine, and predicts its migration. Its trackers are off again when this resolves.
 * @throws the signal's reason; UsageError, UapiError of the trackers, and what {@link estimateLink} throws
 */
export async function predictMachine(
  machine: EmulatedMachine,
  { scenario, policy, design, settings }: Asked,
  { duration: durationMs, interval: intervalMs, ...options }: PredictOptions,
  signal: AbortSignal,
): Promise<Prediction> {
  const intervals: TraceInterval[] = [];
  const seen = await observeMachine({
    ...{ machine, policy, design, intervalMs, durationMs, signal, host: machine.host.name, scenario },
    onInterval: async (interval) => {
      intervals.push(interval);
    },
  });
  signal.throwIfAborted();
  if (seen === null) throw new Error("a machine that was watched and never read");
  const link = await estimateLink({ ...options, channels: settings.channels, scenario, signal });
  return predict({ ...seen.header, intervals }, link, predictedConditions(settings, options, seen.readMs));
}

/** The conditions of a predicted migration. */
export function predictedConditions(
  { downtimeLimit: downtimeLimitMs, bandwidth }: Pick<Settings, "downtimeLimit" | "bandwidth">,
  { maxRounds, verifyFirst = false }: Pick<PredictOptions, "maxRounds" | "verifyFirst">,
  readMs: number,
) {
  return { downtimeLimitMs, bandwidth, maxRounds, readMs, verifyFirst };
}

/** Where what is known of a link comes from. */
export interface LinkSources extends StoreOption, Pick<PredictOptions, "linkFrom"> {
  readonly channels: number;
  /** Earlier migrations of this scenario say best how long stopping takes. */
  readonly scenario: string | null;
  readonly signal: AbortSignal;
}

/**
 * Estimates how fast a migration will be: as earlier ones over the link were, if their reports are given. Otherwise
 * loopback is measured for the speed, and the last migrations in the store tell how long stopping and starting takes.
 * @throws UsageError `BAD_REPORT`; of the store, where one was asked for
 */
export async function estimateLink(options: LinkSources): Promise<LinkEstimate> {
  const { channels, linkFrom = [], scenario, signal } = options;
  if (linkFrom.length > 0) return linkFromReports(readReports(linkFrom));
  const loopback = await measureLoopback({ channels, signal });
  return costsFromReports(pastReports(options, scenario), loopback);
}
