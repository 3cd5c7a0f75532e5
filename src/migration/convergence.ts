import { DirtmapError } from "../errors.js";
import { MiB, PAGE_SIZE } from "../memory/address.js";
import { DOWNTIME_LIMIT_MS } from "./limits.js";

/*
 * When to stop the machine: once what is left, moved at the speed that was measured, takes no longer than the downtime
 * limit. And when to say that this will not happen. Pure: facts of the rounds in, a verdict out.
 */

/** What one round showed: what it moved, and what the read after it found. */
export interface RoundFacts {
  readonly pages: number;
  readonly zeroPages: number;
  /** Time that moving them took, above 0. */
  readonly ms: number;
  /** Found by the read after the round: what would have to be sent if the machine were stopped now. */
  readonly remainingBytes: number;
  /** The part of it that no round makes smaller: what devices without a tracker may write. */
  readonly alwaysDirtyBytes: number;
  /** What each tracker owner reported in that read. */
  readonly owners: readonly { readonly owner: string; readonly everything: boolean; readonly bytes: number }[];
}

type RoundSize = Pick<RoundFacts, "pages" | "zeroPages">;

/** What else goes into a downtime. */
export interface Conditions {
  readonly downtimeLimitMs: number;
  /** Pre-copy rounds after which it is enough. */
  readonly maxRounds: number;
  /** Bytes per second that may be used; Infinity: no limit. */
  readonly bandwidth: number;
  /** What the devices expect to send once they are stopped (MIG_DATA_SIZE). */
  readonly deviceStateBytes: number;
  /** Whatever doesn't depend on bytes: stopping, the last read, flushes, round trips, digests if they come before GO. */
  readonly fixedMs: number;
}

export type Verdict =
  | { readonly kind: "continue" | "switch-over"; readonly expectedDowntimeMs: number }
  | {
      readonly kind: "does-not-converge";
      readonly expectedDowntimeMs: number;
      readonly why: "always-dirty" | "no-progress" | "max-rounds";
      /** The limit with which it would have worked. */
      readonly neededLimitMs: number;
      /** What is moved is as much as the bandwidth allows: more channels move no more. */
      readonly capped: boolean;
      /** Tracker owners in the way, the worst first. */
      readonly owners: readonly { readonly owner: string; readonly everything: boolean }[];
    };

/** Speed assumed until a round has moved enough data to measure it: a conservative figure for loopback. */
export const ASSUMED_BYTES_PER_SECOND = 500e6;
/** All-zero pages are read and found to be zero at about the speed of memory, and never sent. */
export const ZERO_BYTES_PER_SECOND = 8e9;
/** Rounds that move less than this measure latency, not throughput. */
const ENOUGH_BYTES = 8 * MiB;
/** Rounds without progress after which there will be none. A busy machine has slow rounds in between. */
const PATIENCE = 8;
/** The part of the bandwidth from which on it is what limits the speed: a token bucket is never used up entirely. */
const CAPPED = 0.9;
/** Progress is an expected downtime that is a tenth less. */
const PROGRESS = 0.9;

/**
 * What stopping, loading device states, two flushed journals and starting took on an idle machine with two cores, both
 * sides on it (docs/performance.md): with the pages that are left, the downtime.
 */
export const STOP_MS = 30;
/** Bytes per second at which a memory is hashed, for the estimate where digests come before GO. */
const DIGEST_BYTES_PER_SECOND = 5e9;

/**
 * {@link Conditions.fixedMs}.
 * @param readMs what a read of the trackers takes
 * @param digestedBytes of memory that is digested before GO; 0: the memories are compared afterwards
 */
export function fixedDowntime(readMs: number, digestedBytes: number): number {
  return STOP_MS + readMs + (digestedBytes / DIGEST_BYTES_PER_SECOND) * 1000;
}

/** Bytes of non-zero pages of a round. */
export function dataBytes({ pages, zeroPages }: RoundSize): number {
  return (pages - zeroPages) * PAGE_SIZE;
}

/** Milliseconds that a round's zero pages take. */
export function zeroMs({ zeroPages }: RoundSize): number {
  return ((zeroPages * PAGE_SIZE) / ZERO_BYTES_PER_SECOND) * 1000;
}

/** Bytes of non-zero pages per second that a round shows; it took more than 0 ms. */
export function roundSpeed(round: RoundSize & Pick<RoundFacts, "ms">): number {
  // At least half of the time is counted for the data: the speed of zeros is an assumption.
  return (dataBytes(round) / Math.max(round.ms - zeroMs(round), round.ms / 2)) * 1000;
}

/** Bytes of non-zero pages per second: of the last round that was large enough to measure, never above the bandwidth. */
export function throughput(history: readonly RoundFacts[], bandwidth: number): number {
  const round = history.findLast((candidate) => dataBytes(candidate) >= ENOUGH_BYTES);
  return Math.min(bandwidth, round === undefined ? ASSUMED_BYTES_PER_SECOND : roundSpeed(round));
}

/** Milliseconds from the pause of the vCPUs to the confirmation that the destination runs, if `bytes` are left. */
export function expectedDowntime(bytes: number, bytesPerSecond: number, conditions: Conditions): number {
  return ((bytes + conditions.deviceStateBytes) / bytesPerSecond) * 1000 + conditions.fixedMs;
}

/** What to do after the last round of `history`, which must not be empty. */
export function judge(history: readonly RoundFacts[], conditions: Conditions): Verdict {
  const last = history[history.length - 1];
  const speed = throughput(history, conditions.bandwidth);
  const expected = (bytes: number) => expectedDowntime(bytes, speed, conditions);
  const expectedDowntimeMs = expected(last.remainingBytes);
  if (expectedDowntimeMs <= conditions.downtimeLimitMs) return { kind: "switch-over", expectedDowntimeMs };

  const best = Math.min(...history.map(({ remainingBytes }) => remainingBytes));
  const fails = (why: "always-dirty" | "no-progress" | "max-rounds", bytes: number): Verdict => ({
    kind: "does-not-converge",
    expectedDowntimeMs,
    why,
    neededLimitMs: comfortable(expected(bytes)),
    capped: speed >= conditions.bandwidth * CAPPED,
    owners: ownersInTheWay(last),
  });
  if (expected(last.alwaysDirtyBytes) > conditions.downtimeLimitMs && last.alwaysDirtyBytes > 0) {
    return fails("always-dirty", last.remainingBytes);
  }
  if (history.length > PATIENCE) {
    // What was expected after each round, with the speed as it was known then.
    const estimates = history.map(({ remainingBytes }, i) =>
      expectedDowntime(remainingBytes, throughput(history.slice(0, i + 1), conditions.bandwidth), conditions),
    );
    const before = Math.min(...estimates.slice(0, -PATIENCE));
    const lately = Math.min(...estimates.slice(-PATIENCE));
    if (lately > before * PROGRESS) return fails("no-progress", best);
  }
  if (history.length >= conditions.maxRounds) return fails("max-rounds", best);
  return { kind: "continue", expectedDowntimeMs };
}

/** A fifth more, on two digits: what to advise, since estimates vary. */
function comfortable(ms: number): number {
  const wanted = ms * 1.2;
  const step = 10 ** Math.max(0, Math.floor(Math.log10(wanted)) - 1);
  return Math.ceil(wanted / step) * step;
}

/** Who has no tracker; otherwise who reported at least a quarter of all, or else the most. */
function ownersInTheWay({ owners }: RoundFacts): { owner: string; everything: boolean }[] {
  const sorted = owners.filter(({ bytes }) => bytes > 0).sort((a, b) => b.bytes - a.bytes);
  const untracked = sorted.filter(({ everything }) => everything);
  if (untracked.length > 0) return untracked.map(({ owner, everything }) => ({ owner, everything }));
  const total = sorted.reduce((sum, { bytes }) => sum + bytes, 0);
  return sorted
    .filter(({ bytes }, i) => i === 0 || bytes >= total / 4)
    .map(({ owner, everything }) => ({ owner, everything }));
}

/** What is known of a machine's devices, so that what is advised can work. */
export interface DeviceWays {
  readonly device: string;
  /** It supports STOP, and so can be suspended. */
  readonly stops: boolean | "unknown";
  /** Trackers with bits that it has, and doesn't get. */
  readonly trackers: readonly string[];
}

/**
 * The error for a verdict `does-not-converge`: who is in the way, and what would work.
 * @param ways of the devices in the way; of one that is missing nothing is known
 * @param design one that follows no device's tracker, so that neither trackers nor a suspension help; null: `split`
 */
export function doesNotConverge(
  verdict: Extract<Verdict, { kind: "does-not-converge" }>,
  conditions: Conditions,
  { ways = [], design = null }: { readonly ways?: readonly DeviceWays[]; readonly design?: string | null } = {},
): DirtmapError {
  const { downtimeLimitMs } = conditions;
  const names = verdict.owners.map(({ owner }) => (owner === "cpu" ? "the vCPUs" : owner)).join(", ");
  const expected = Math.ceil(verdict.expectedDowntimeMs);
  const because = {
    "always-dirty": `all that ${names} may write counts as dirty at all times`,
    "no-progress":
      names === "" ? "it takes that long without any dirty page" : `${names} dirtied memory as fast as it was sent`,
    "max-rounds":
      names === ""
        ? "the rounds allowed were used up"
        : `the rounds allowed were used up, most of the rest is by ${names}`,
  }[verdict.why];
  const untracked = verdict.owners.filter(({ everything }) => everything).map(({ owner }) => owner);
  const remedies = [
    ...(untracked.length > 0
      ? design === null
        ? waysOf(untracked, ways)
        : [`use another design than ${design} (--design split)`]
      : faster(verdict, conditions)),
    // A limit that the option would not take is no advice.
    ...(verdict.neededLimitMs <= DOWNTIME_LIMIT_MS.max ? [`raise --downtime-limit to ${verdict.neededLimitMs}ms`] : []),
  ];
  return new DirtmapError(
    `the migration doesn't converge: a downtime of ${expected} ms is expected and ${downtimeLimitMs} ms allowed; ${because}`,
    {
      code: "DOES_NOT_CONVERGE",
      attempted: `stop the machine for at most ${downtimeLimitMs} ms`,
      ...(remedies.length === 0 ? {} : { remedy: anyOf(remedies) }),
    },
  );
}

/** What gets devices without a tracker out of the way, each of them. */
function waysOf(untracked: readonly string[], ways: readonly DeviceWays[]): string[] {
  const known = untracked.map(
    (device) => ways.find((one) => one.device === device) ?? { device, stops: "unknown" as const },
  );
  const stopping = known.filter(({ stops }) => stops !== false);
  const doubt = stopping.some(({ stops }) => stops === "unknown") ? ", if it supports STOP" : "";
  const tracked = known.flatMap((one) => {
    const [tracker] = "trackers" in one ? one.trackers : [];
    return tracker === undefined ? [] : [`give ${one.device} a tracker (--tracker ${one.device}=${tracker})`];
  });
  const unsure = known.some((one) => !("trackers" in one)) ? ["give it a tracker, if it has one (--tracker)"] : [];
  const stop =
    stopping.length === 0
      ? []
      : [`suspend ${stopping.map(({ device }) => device).join(", ")} for the migration${doubt} (--untracked suspend)`];
  return [...stop, ...tracked, ...unsure];
}

/** What lets memory be sent faster than it is dirtied. */
function faster(
  { owners, capped }: Extract<Verdict, { kind: "does-not-converge" }>,
  { fixedMs, downtimeLimitMs }: Conditions,
): string[] {
  // What takes too long without a byte to send gets no shorter by sending faster.
  const sending = fixedMs >= downtimeLimitMs ? [] : [capped ? "raise --bandwidth" : "use more --channels"];
  return [...(owners.length === 0 ? [] : ["lower their load"]), ...sending];
}

function anyOf(remedies: readonly string[]): string {
  const [last, ...before] = [...remedies].reverse();
  return before.length === 0 ? last : `${before.reverse().join(", ")} or ${last}`;
}
