import { countPages, mergeRuns, type PageRuns } from "../../bitmap/ram-runs.js";
import { DEFAULTS } from "../../defaults.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { layoutRegions, type Platform } from "../../memory/guest-memory.js";
import { type Conditions, doesNotConverge, fixedDowntime } from "../../migration/convergence.js";
import type { PredictedOutcome } from "../../migration/report.js";
import type { TraceInterval } from "../trace/interval.js";
import { type GrowthCurve, type GrowthPoint, growthCurve } from "./growth.js";
import { type LinkEstimate, limited } from "./link.js";
import { type SimulatedRound, type Simulation, simulate, type Workload } from "./simulate.js";

/*
 * What will a migration of this machine be like? Pure: what was observed goes in, figures come out.
 */

/** An owner of dirty bits in an observation. */
export interface ObservedOwner {
  readonly owner: string;
  readonly tracker: string;
  /** The owner's devices: several for a domain, none for `cpu`. */
  readonly devices: readonly { readonly id: string; readonly model: string }[];
}

/** The observation of a machine, watched or from a trace. */
export interface Observation {
  readonly memoryBytes: number;
  readonly platform: Platform;
  /** Share of RAM's pages that are all zero, 0 to 1; null: unknown, and treated as 0. */
  readonly zeroShare: number | null;
  /** The sum of all devices' MIG_DATA_SIZE, in bytes; null: unknown. */
  readonly deviceStateBytes: number | null;
  readonly owners: readonly ObservedOwner[];
  readonly unread: readonly string[];
  readonly intervals: readonly TraceInterval[];
}

/** The conditions of a predicted migration. */
export interface PredictedConditions {
  readonly downtimeLimitMs: number;
  /** The maximum number of rounds. Default: 30. */
  readonly maxRounds?: number;
  /** The limit of bandwidth in bytes per second. Default: no limit. */
  readonly bandwidth?: number;
  /** True: the memories are compared before GO. Default: false. */
  readonly verifyFirst?: boolean;
  /** Milliseconds that a read of the trackers takes; 1 if it isn't known. */
  readonly readMs?: number;
}

/** What a migration would be. */
export interface Outcome {
  readonly converges: boolean;
  readonly rounds: number;
  readonly downtimeMs: number | null;
  readonly movingMs: number | null;
}

/** What would change if one owner wrote less. */
export interface WhatIf extends Outcome {
  /** Milliseconds less of downtime; negative: more; null: one of the two does not converge. */
  readonly gainMs: number | null;
}

/** The writes of one owner, and the gain if it wrote less. */
export interface OwnerPrediction {
  readonly owner: string;
  readonly tracker: string;
  readonly devices: readonly string[];
  /** True: nothing tracks it, so all memory that it may write counts as dirty. */
  readonly everything: boolean;
  /** Bytes of distinct pages per second at the shortest interval that was measured. */
  readonly bytesPerSecond: number;
  /** Bytes of distinct pages over the whole observation. */
  readonly workingSetBytes: number;
  /** Distinct pages dirtied by the length of time: at most 16 of the measured points. */
  readonly growth: readonly GrowthPoint[];
  /** The outcome if it is stopped before the first page is sent; null for vCPUs, which can't be stopped. */
  readonly suspended: WhatIf | null;
  /** The outcome if it writes half as fast; null if nothing tracks it, because its speed does not matter then. */
  readonly halved: WhatIf | null;
}

/** The prediction of a migration: its outcome, and the basis of the figures. Durations are milliseconds. */
export interface Prediction extends Outcome {
  readonly observedMs: number;
  readonly intervals: number;
  readonly downtimeLimitMs: number;
  readonly link: LinkEstimate;
  /** The owners that prevent convergence, the worst first; empty if it converges. */
  readonly inTheWay: readonly string[];
  /** The reason why it doesn't converge, and a remedy; null if it converges. */
  readonly why: { readonly message: string; readonly remedy: string | undefined } | null;
  /** The downtime limit in milliseconds with which it would converge; null if it converges. */
  readonly neededLimitMs: number | null;
  readonly simulated: readonly SimulatedRound[];
  readonly owners: readonly OwnerPrediction[];
  /** Warnings about facts that the figures can't contain. */
  readonly warnings: readonly string[];
}

const MAX_POINTS = 16;
const NO_PAGES: PageRuns = new Uint32Array(0);

/** Predicts a migration of the observed machine. A pure function. */
export function predict(seen: Observation, link: LinkEstimate, wanted: PredictedConditions): Prediction {
  const { intervals, owners } = seen;
  const bandwidth = wanted.bandwidth ?? DEFAULTS.bandwidth;
  const usable = limited(link, bandwidth);
  const conditions: Conditions = {
    downtimeLimitMs: wanted.downtimeLimitMs,
    maxRounds: wanted.maxRounds ?? DEFAULTS.maxRounds,
    bandwidth,
    deviceStateBytes: seen.deviceStateBytes ?? 0,
    fixedMs: fixedDowntime(wanted.readMs ?? DEFAULTS.readMs, wanted.verifyFirst === true ? seen.memoryBytes : 0),
  };
  const curves = ownCurves(seen);
  const all = dirtiedBy(seen, owners);
  const workload = workloadOf(seen, { owners, curves, union: all });
  const simulateWith = (other: Workload) => simulate(other, usable, conditions);
  const base = simulateWith(workload);
  const { verdict } = base;
  const fails = verdict.kind === "does-not-converge" ? verdict : null;
  const error = fails === null ? null : doesNotConverge(fails, conditions);
  return {
    ...outcomeOf(base),
    observedMs: intervals.reduce((sum, { elapsedMs }) => sum + elapsedMs, 0),
    intervals: intervals.length,
    downtimeLimitMs: wanted.downtimeLimitMs,
    link: usable,
    inTheWay: fails?.owners.map(({ owner }) => owner) ?? [],
    why: error === null ? null : { message: error.message, remedy: error.remedy },
    neededLimitMs: fails?.neededLimitMs ?? null,
    simulated: base.rounds,
    owners: owners.map((owner) => {
      const everything = isEverything(owner);
      const points = curves.get(owner.owner)?.points ?? [];
      const others = owners.filter((other) => other !== owner);
      const rest = dirtiedBy(seen, others);
      const without = workloadOf(seen, { owners: others, curves, union: rest });
      const workingSet = everything ? alwaysPages(seen, [owner]) : (points.at(-1)?.pages ?? 0);
      return {
        owner: owner.owner,
        tracker: owner.tracker,
        devices: owner.devices.map(({ id }) => id),
        everything,
        bytesPerSecond: initialRate(points),
        workingSetBytes: workingSet * PAGE_SIZE,
        growth: sampled(points),
        suspended: owner.devices.length === 0 ? null : whatIf(base, simulateWith(without)),
        halved: everything ? null : whatIf(base, simulateWith(halved(workload, owner.owner, { all, rest }))),
      };
    }),
    warnings: warningsOf(seen),
  };
}

/** Returns the part of a prediction that a migration's report keeps. */
export function predictedOutcome(prediction: Prediction): PredictedOutcome {
  const { converges, rounds, downtimeMs, movingMs, inTheWay, observedMs } = prediction;
  return { converges, rounds, downtimeMs, movingMs, inTheWay, observedMs };
}

function outcomeOf({ verdict, rounds, downtimeMs, movingMs }: Simulation): Outcome {
  return { converges: verdict.kind === "switch-over", rounds: rounds.length, downtimeMs, movingMs };
}

function whatIf(base: Simulation, changed: Simulation): WhatIf {
  const both = base.downtimeMs !== null && changed.downtimeMs !== null;
  return { ...outcomeOf(changed), gainMs: both ? (base.downtimeMs ?? 0) - (changed.downtimeMs ?? 0) : null };
}

function isEverything({ tracker }: ObservedOwner): boolean {
  return tracker === "everything";
}

function ownCurves({ owners, intervals }: Observation): Map<string, GrowthCurve> {
  return new Map(
    owners
      .filter((owner) => !isEverything(owner))
      .map(({ owner }) => [
        owner,
        growthCurve(intervals.map(({ elapsedMs, owners: all }) => ({ elapsedMs, runs: all.get(owner) ?? NO_PAGES }))),
      ]),
  );
}

/** Distinct pages that any of these dirtied: their union, since several may write the same. */
function dirtiedBy({ intervals }: Observation, owners: readonly ObservedOwner[]): GrowthCurve {
  const tracked = owners.filter((owner) => !isEverything(owner));
  return growthCurve(
    intervals.map(({ elapsedMs, owners: all }) => ({
      elapsedMs,
      runs: mergeRuns(tracked.map(({ owner }) => all.get(owner) ?? NO_PAGES)),
    })),
  );
}

function alwaysPages({ intervals }: Observation, owners: readonly ObservedOwner[]): number {
  const names = owners.filter(isEverything).map(({ owner }) => owner);
  const last = intervals.at(-1);
  if (last === undefined) return 0;
  const runs = mergeRuns(names.map((owner) => last.owners.get(owner) ?? NO_PAGES));
  return countPages(runs);
}

function workloadOf(
  seen: Observation,
  {
    owners,
    curves,
    union,
  }: { owners: readonly ObservedOwner[]; curves: ReadonlyMap<string, GrowthCurve>; union: GrowthCurve },
): Workload {
  const ramPages = layoutRegions(seen.memoryBytes, seen.platform).reduce((sum, { pages }) => sum + pages, 0);
  const always = Math.min(alwaysPages(seen, owners), ramPages);
  return {
    ramPages,
    zeroPages: Math.round(ramPages * (seen.zeroShare ?? 0)),
    dirtied: (ms) => union.pagesAfter(ms),
    alwaysPages: always,
    owners: (ms) =>
      owners.map((owner) => {
        const everything = isEverything(owner);
        const pages = everything ? always : (curves.get(owner.owner)?.pagesAfter(ms) ?? 0);
        return { owner: owner.owner, everything, bytes: pages * PAGE_SIZE };
      }),
  };
}

/** What only this owner dirtied comes half as fast. */
function halved(workload: Workload, owner: string, { all, rest }: { all: GrowthCurve; rest: GrowthCurve }): Workload {
  const own = (ms: number) => Math.max(0, all.pagesAfter(ms) - rest.pagesAfter(ms));
  return {
    ...workload,
    dirtied: (ms) => rest.pagesAfter(ms) + own(ms / 2),
    owners: (ms) =>
      workload
        .owners(ms)
        .map((entry, index) => (entry.owner === owner ? (workload.owners(ms / 2)[index] ?? entry) : entry)),
  };
}

function initialRate(points: readonly GrowthPoint[]): number {
  const first = points.at(0);
  return first === undefined ? 0 : ((first.pages * PAGE_SIZE) / first.ms) * 1000;
}

/** Few enough to read, doubling from the first to the last. */
function sampled(points: readonly GrowthPoint[]): GrowthPoint[] {
  const picked: GrowthPoint[] = [];
  for (let k = 1; k < points.length && picked.length < MAX_POINTS - 1; k *= 2) picked.push(points[k - 1]);
  const last = points.at(-1);
  return last === undefined ? picked : [...picked, last];
}

function warningsOf({ intervals, owners, unread, zeroShare, deviceStateBytes }: Observation): string[] {
  const warnings = unread.map(
    (owner) => `the log of ${owner} can be read only once it is stopped: what it writes is not foreseen`,
  );
  if (intervals.length === 0) warnings.push("nothing was observed: the figures are those of an idle machine");
  if (zeroShare === null) warnings.push("how much of the memory is zero is not known: none is taken to be");
  if (deviceStateBytes === null) warnings.push("what the devices' states take is not known, and left out");
  if (owners.some(isEverything)) {
    const names = owners.filter(isEverything).map(({ owner }) => owner);
    warnings.push(`nothing tracks ${names.join(", ")}: all that may be written counts as dirty at all times`);
  }
  return warnings;
}
