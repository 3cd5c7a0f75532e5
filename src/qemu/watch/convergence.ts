import type { Diagnosis, Range, SlowReason } from "../../migration/events.js";
import type { Sample } from "./sample.js";
import type { WatchedSettings } from "./settings.js";
import type { Stall } from "./stall-rule.js";

/*
 * Whether a migration that is watched will end, when, and what keeps it from that. Pure: all figures come in.
 *
 * QEMU stops the guest once what is left, at the bandwidth that it measures or was told, takes no longer than the downtime limit.
 * So what a pass has to send must come below that.
 */

/** Rates are taken over this long, at most. */
const WINDOW_MS = 10_000;

/** From this share of a bandwidth limit on, the limit is what holds the migration back. */
const AT_THE_CAP = 0.8;

/** Passes that are looked ahead: far more than QEMU makes before someone ends it. */
const MAX_PASSES_AHEAD = 1000;

/** What is judged. */
export interface Situation {
  /** The newest last; at least one. */
  readonly samples: readonly Sample[];
  /** What the newest pass had to send; null: not known. */
  readonly passBytes: number | null;
  readonly stall: Stall;
  readonly settings: WatchedSettings;
}

/** Rates in bytes per second; null: not known yet. */
export interface Rates {
  readonly sent: Range | null;
  /** Of pages that QEMU takes off its list, zero pages included. */
  readonly handled: Range | null;
  readonly dirtied: number | null;
}

/** All that a verdict is made of. */
interface Figures extends Rates {
  readonly last: Sample;
  readonly passBytes: number | null;
  readonly settings: WatchedSettings;
  /** Bytes per second that QEMU counts with for the switchover. */
  readonly switchover: number | null;
  /** Bytes that the downtime limit allows. */
  readonly fits: number | null;
  /** How much of what a pass has is dirtied anew while it is sent; a range, because rates vary. */
  readonly growth: Range | null;
}

/** The rates of the last seconds: each as a range over the whole window and its newer half. */
export function ratesOf(samples: readonly Sample[]): Rates {
  const last = samples.at(-1);
  if (last === undefined) return { sent: null, handled: null, dirtied: null };
  const recent = samples.filter(({ atMs }) => last.atMs - atMs <= WINDOW_MS);
  const newer = recent.slice(Math.floor(recent.length / 2));
  const range = (value: (sample: Sample) => number): Range | null => {
    const rates = [recent, newer].flatMap(([first]) => {
      const ms = last.atMs - first.atMs;
      return ms > 0 ? [((value(last) - value(first)) * 1000) / ms] : [];
    });
    return rates.length === 0 ? null : { low: Math.max(0, Math.min(...rates)), high: Math.max(0, ...rates) };
  };
  return {
    sent: range(({ sentBytes }) => sentBytes),
    handled: range(({ handledBytes }) => handledBytes),
    dirtied: last.dirtyBytesPerSecond,
  };
}

/** Judges a migration whose guest still runs. */
export function diagnose({ samples, passBytes, stall, settings }: Situation): Diagnosis {
  const [last] = samples.slice(-1);
  const rates = ratesOf(samples);
  const switchover = settings.switchoverBandwidth ?? rates.sent?.high ?? null;
  const limitMs = settings.downtimeLimitMs;
  const fits = switchover === null || limitMs === null ? null : (switchover * limitMs) / 1000;
  const figures: Figures = { ...rates, last, passBytes, settings, switchover, fits, growth: growthOf(rates) };
  const converging = stall === null ? converges(figures) : false;
  return {
    type: "diagnosis",
    atMs: last.atMs,
    converging,
    stalled: stall !== null,
    reasons: converging === false ? reasonsOf(figures, stall) : [],
    leftMs: converging === true ? timeLeft(figures) : null,
    downtimeMs: converging === true ? downtimeOf(figures) : null,
    sentBytesPerSecond: rates.sent === null ? null : (rates.sent.low + rates.sent.high) / 2,
    dirtiedBytesPerSecond: rates.dirtied,
    passBytes,
  };
}

function growthOf({ handled, dirtied }: Rates): Range | null {
  if (handled === null || dirtied === null || handled.high === 0) return null;
  return { low: dirtied / handled.high, high: handled.low === 0 ? Number.POSITIVE_INFINITY : dirtied / handled.low };
}

function converges({ passBytes, fits, growth }: Figures): boolean | null {
  if (passBytes !== null && fits !== null && passBytes <= fits) return true;
  if (growth === null) return null;
  if (growth.high < 1) return true;
  return growth.low >= 1 ? false : null;
}

function reasonsOf(
  { sent, handled, dirtied, last, passBytes, settings, switchover }: Figures,
  stall: Stall,
): SlowReason[] {
  if (stall === "nothing-moves") return [{ code: "nothing-moves", have: 0, need: last.remainingBytes }];
  const reasons: SlowReason[] = [];
  const { maxBandwidth, switchoverBandwidth, downtimeLimitMs } = settings;
  if (handled !== null && dirtied !== null && dirtied >= handled.low) {
    reasons.push({ code: "dirty-rate", have: handled.high, need: dirtied });
  }
  if (sent !== null && maxBandwidth !== null && sent.high >= maxBandwidth * AT_THE_CAP) {
    reasons.push({ code: "bandwidth-limit", have: maxBandwidth, need: dirtied ?? 0 });
  }
  if (passBytes !== null && switchover !== null && switchover > 0 && downtimeLimitMs !== null) {
    const needMs = (passBytes * 1000) / switchover;
    if (needMs > downtimeLimitMs) reasons.push({ code: "downtime-limit", have: downtimeLimitMs, need: needMs });
  }
  if (switchoverBandwidth !== null && sent !== null && switchoverBandwidth < sent.low) {
    reasons.push({ code: "switchover-bandwidth", have: switchoverBandwidth, need: sent.high });
  }
  return reasons;
}

/** Until the guest is stopped: this pass at best; at worst all that is dirtied meanwhile as well. High is null: no bound. */
function timeLeft({ last, handled, growth }: Figures): Diagnosis["leftMs"] {
  if (handled === null || handled.high === 0) return null;
  const low = (last.memoryBytes * 1000) / handled.high;
  const canEnd = growth !== null && growth.high < 1 && handled.low > 0;
  return { low, high: canEnd ? (last.memoryBytes * 1000) / handled.low / (1 - growth.high) : null };
}

/** What the first pass that is small enough takes; at worst, all of the limit. */
function downtimeOf({ passBytes, fits, growth, settings, sent }: Figures): Range | null {
  const limitMs = settings.downtimeLimitMs;
  if (passBytes === null || fits === null || limitMs === null || sent === null || sent.high === 0) return null;
  const shrink = growth?.low ?? 1;
  let bytes = passBytes;
  for (let pass = 0; bytes > fits && shrink < 1 && pass < MAX_PASSES_AHEAD; pass++) bytes *= shrink;
  return { low: Math.min(limitMs, (bytes * 1000) / sent.high), high: limitMs };
}
