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

/** Rates are taken over so long, at most. */
const WINDOW_MS = 10_000;

/** From this share of a bandwidth limit on, the limit is what holds the migration back. */
const AT_THE_CAP = 0.8;

/** Passes that are looked ahead: far more than QEMU makes before someone ends it. */
const MAX_PASSES_AHEAD = 1000;

/** What is known of a device's state, where a trace tells it. */
export interface DeviceSize {
  readonly device: string;
  /** What would be moved of it while the guest stands still. */
  readonly stopCopyBytes: number;
}

/** What is judged. */
export interface Situation {
  /** The newest last. */
  readonly samples: readonly Sample[];
  /** What the newest pass had to send; null: not known. */
  readonly passBytes: number | null;
  readonly stall: Stall;
  readonly settings: WatchedSettings;
  readonly devices: readonly DeviceSize[];
}

/** Rates in bytes per second; null: not known yet. */
export interface Rates {
  readonly sent: Range | null;
  /** Of pages that QEMU takes off its list, zero pages included. */
  readonly handled: Range | null;
  readonly dirtied: number | null;
}

/** The rates of the last seconds: each as a range over the whole window and its newer half. */
export function ratesOf(samples: readonly Sample[]): Rates {
  const last = samples.at(-1);
  if (last === undefined) return { sent: null, handled: null, dirtied: null };
  const recent = samples.filter(({ atMs }) => last.atMs - atMs <= WINDOW_MS);
  const newer = recent.slice(Math.floor(recent.length / 2));
  const range = (value: (sample: Sample) => number): Range | null => {
    const rates = [recent, newer].flatMap((part) => {
      const ms = last.atMs - (part[0]?.atMs ?? last.atMs);
      return ms > 0 ? [((value(last) - value(part[0])) * 1000) / ms] : [];
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
export function diagnose({ samples, passBytes, stall, settings, devices }: Situation): Omit<Diagnosis, "type"> {
  const last = samples.at(-1);
  const rates = ratesOf(samples);
  const { downtimeLimitMs: limitMs } = settings;
  const switchover = settings.switchoverBandwidth ?? rates.sent?.high ?? null;
  const fits = switchover === null || limitMs === null ? null : (switchover * limitMs) / 1000;
  const stateBytes = devices.reduce((sum, { stopCopyBytes }) => sum + stopCopyBytes, 0);
  const left = passBytes === null ? null : passBytes + stateBytes;
  const growth = growthOf(rates);
  const converging = convergesOf({ left, fits, growth, stall });
  const base = {
    atMs: last?.atMs ?? 0,
    converging,
    stalled: stall !== null,
    sentBytesPerSecond: rates.sent === null ? null : (rates.sent.low + rates.sent.high) / 2,
    dirtiedBytesPerSecond: rates.dirtied,
    passBytes,
  };
  const stateReasons = fits === null ? [] : statesTooLarge(devices, fits);
  const reasons =
    converging === false || stall !== null
      ? [...reasonsOf({ rates, settings, left, switchover, stall, last }), ...stateReasons]
      : [];
  if (converging !== true || last === undefined) return { ...base, reasons, leftMs: null, downtimeMs: null };
  return {
    ...base,
    reasons,
    leftMs: timeLeft(last, rates, growth),
    downtimeMs: downtimeOf({ left, fits, growth, limitMs, rates }),
  };
}

/** How much of what a pass has is dirtied anew while it is sent; a range, since rates vary. Null: not known. */
function growthOf({ handled, dirtied }: Rates): Range | null {
  if (handled === null || dirtied === null || handled.high === 0) return null;
  return { low: dirtied / handled.high, high: handled.low === 0 ? Number.POSITIVE_INFINITY : dirtied / handled.low };
}

function convergesOf({
  left,
  fits,
  growth,
  stall,
}: {
  left: number | null;
  fits: number | null;
  growth: Range | null;
  stall: Stall;
}): boolean | null {
  if (left !== null && fits !== null && fits > 0 && left <= fits) return true;
  if (stall !== null) return false;
  if (growth === null) return null;
  if (growth.high < 1) return true;
  return growth.low >= 1 ? false : null;
}

function reasonsOf({
  rates,
  settings,
  left,
  switchover,
  stall,
  last,
}: {
  rates: Rates;
  settings: WatchedSettings;
  left: number | null;
  switchover: number | null;
  stall: Stall;
  last: Sample | undefined;
}): SlowReason[] {
  if (stall === "nothing-moves") return [{ code: "nothing-moves", have: 0, need: last?.remainingBytes ?? 0 }];
  const reasons: SlowReason[] = [];
  const { sent, handled, dirtied } = rates;
  const { maxBandwidth, switchoverBandwidth, downtimeLimitMs } = settings;
  if (handled !== null && dirtied !== null && dirtied >= handled.low) {
    reasons.push({ code: "dirty-rate", have: handled.high, need: dirtied });
  }
  if (sent !== null && maxBandwidth !== null && sent.high >= maxBandwidth * AT_THE_CAP) {
    reasons.push({ code: "bandwidth-limit", have: maxBandwidth, need: dirtied ?? 0 });
  }
  if (left !== null && switchover !== null && switchover > 0 && downtimeLimitMs !== null) {
    const needMs = (left * 1000) / switchover;
    if (needMs > downtimeLimitMs) reasons.push({ code: "downtime-limit", have: downtimeLimitMs, need: needMs });
  }
  if (switchoverBandwidth !== null && sent !== null && switchoverBandwidth < sent.low) {
    reasons.push({ code: "switchover-bandwidth", have: switchoverBandwidth, need: sent.high });
  }
  return reasons;
}

function statesTooLarge(devices: readonly DeviceSize[], fits: number): SlowReason[] {
  return devices.flatMap(({ device, stopCopyBytes }) =>
    stopCopyBytes > fits ? [{ code: "device-state" as const, have: fits, need: stopCopyBytes, device }] : [],
  );
}

/** Until the guest is stopped: this pass at best; at worst all that is dirtied meanwhile as well. High is null: no bound. */
function timeLeft({ memoryBytes }: Sample, { handled }: Rates, growth: Range | null): Diagnosis["leftMs"] {
  if (handled === null || handled.high === 0) return null;
  const low = (memoryBytes * 1000) / handled.high;
  const canEnd = growth !== null && growth.high < 1 && handled.low > 0;
  return { low, high: canEnd ? (memoryBytes * 1000) / handled.low / (1 - growth.high) : null };
}

/** What the first pass that is small enough takes; at worst, all of the limit. */
function downtimeOf({
  left,
  fits,
  growth,
  limitMs,
  rates,
}: {
  left: number | null;
  fits: number | null;
  growth: Range | null;
  limitMs: number | null;
  rates: Rates;
}): Range | null {
  const { sent } = rates;
  if (left === null || fits === null || limitMs === null || sent === null || sent.high === 0) return null;
  let bytes = left;
  const shrink = growth === null ? 1 : growth.low;
  for (let pass = 0; bytes > fits && shrink < 1 && pass < MAX_PASSES_AHEAD; pass++) bytes *= shrink;
  const low = Math.min(limitMs, (bytes * 1000) / sent.high);
  return { low, high: limitMs };
}
