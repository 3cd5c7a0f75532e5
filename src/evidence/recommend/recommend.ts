import { PAGE_SIZE } from "../../memory/address.js";
import type { DeviceTracker, PolicyOrder } from "../../tracking/choice.js";
import { valueAt } from "../curve.js";
import type { Comparison, Summary } from "../statistics.js";
import { estimateMigration, type Link, type MigrationEstimate, readCurve } from "../trackers/estimate.js";
import type { BenchedDevice, SharingFigures, TrackerBenchmark, TrackerFigures } from "../trackers/result.js";
import { marginText, reasonText } from "./reason.js";

/*
 * Which tracker, granule and domain each device should get, from what was measured: a pure function of the benchmark, the
 * link and the order in which ties are broken.
 *
 * The trackers of a device go through criteria one after the other; each keeps those that are as good as the best as far as
 * the measurement can tell. What is left at the end is equal by all of them, and the policy's order decides.
 */

/** By what a tracker was preferred. `order`: by nothing that was measured. */
export const CRITERIA = ["converges", "downtime", "total", "dma", "round", "order"] as const;
export type Criterion = (typeof CRITERIA)[number];

/** The figures that a tracker is judged by. null: it was not, or could not be, measured. */
export interface JudgedFigures {
  /** The machine can be stopped within the downtime limit. */
  readonly converges: boolean | null;
  readonly rounds: number | null;
  readonly totalMs: number | null;
  readonly downtimeMs: number | null;
  /** Share of its DMA writes that the device loses while it is tracked; below 0, it gained. */
  readonly dmaLoss: number | null;
  /** The loss lies between these with 95 % confidence. */
  readonly dmaLossRange: readonly [low: number, high: number] | null;
  /** What is certain of it: 0 where the measurement does not tell whether it is a loss at all. */
  readonly dmaLossAtLeast: number | null;
  /** Milliseconds of a read at the device's work. */
  readonly readMs: number | null;
  /** The same, with the time of sending what the read names though nobody wrote it: what a round pays for the tracker. */
  readonly roundMs: number | null;
  /** Pages named over pages written. */
  readonly precision: number | null;
}

/** A tracker at a granule. */
export interface TrackerAt {
  readonly tracker: DeviceTracker;
  readonly granule: number | null;
}

/** What is recommended, against another tracker of the device. */
export interface Margin {
  readonly over: TrackerAt;
  /** What separated the two. */
  readonly by: Criterion;
  /** Both by that criterion, in milliseconds or, for `dma`, as a share; null for `converges` and `order`. */
  readonly figure: number | null;
  readonly overFigure: number | null;
  /** What speaks against the other, as a clause whose subject it is. */
  readonly text: string;
}

/** What is recommended for one device. */
export interface RecommendedDevice {
  readonly id: string;
  readonly model: string;
  readonly tracker: DeviceTracker;
  readonly granule: number | null;
  /** null: the tracker needs no domain. */
  readonly domain: "per-device" | "shared" | null;
  readonly figures: JudgedFigures;
  /** Against the second best: the one that came furthest. null: there is no other tracker. */
  readonly margin: Margin | null;
  /** Against all others, the nearest first, with the figures of each. */
  readonly alternatives: readonly (Margin & { readonly figures: JudgedFigures })[];
  readonly reason: string;
}

/** A tracker of a device with all that it is judged by. */
export interface Contender extends TrackerAt {
  readonly measured: TrackerFigures;
  readonly estimate: MigrationEstimate | null;
  readonly dma: Comparison | null;
  /** What {@link JudgedFigures.roundMs} is the median of. */
  readonly round: Summary | null;
  readonly figures: JudgedFigures;
}

/** An estimate is no more exact than this share of the downtime limit, or of the total time. */
const ESTIMATE_SHARE = 0.05;
/** Of a device's writes: a loss that is less is none. */
const DMA_SHARE = 0.02;
/** Reads that differ by less are alike. */
const READ_SHARE = 0.1;

/**
 * Recommends a tracker, a granule and a domain for each device of a benchmark.
 * @param order whom ties go to
 */
export function recommend(
  benchmark: TrackerBenchmark,
  link: Link,
  order: PolicyOrder = "iommu-first",
): RecommendedDevice[] {
  const decided = benchmark.devices.map((device) => decideTracker(benchmark, device, link, order));
  return decided.map(({ device, best, alternatives }) => {
    const { domain, why } = chooseDomain(benchmark, device, best, decided, link);
    const reason = reasonText(device, best, alternatives);
    return {
      id: device.id,
      model: device.model,
      tracker: best.tracker,
      granule: best.granule,
      domain,
      figures: best.figures,
      margin: marginOf(alternatives),
      alternatives,
      reason: why === null ? reason : `${reason}; ${why}`,
    };
  });
}

interface Decided {
  readonly device: BenchedDevice;
  readonly best: Contender;
  readonly alternatives: RecommendedDevice["alternatives"];
}

function decideTracker(benchmark: TrackerBenchmark, device: BenchedDevice, link: Link, order: PolicyOrder): Decided {
  let left = contendersOf(benchmark, device, link).toSorted((a, b) => rank(a, order) - rank(b, order));
  /** Those that were dropped, the last first. */
  const lost: { readonly by: Criterion; readonly contender: Contender }[] = [];
  for (const { by, keep } of criteria(link)) {
    const kept = keep(left);
    const dropped = left
      .filter((one) => !kept.includes(one))
      .sort((a, b) => (figureBy(a, by) ?? 0) - (figureBy(b, by) ?? 0));
    lost.unshift(...dropped.map((contender) => ({ by, contender })));
    left = kept;
  }
  const [best, ...equals] = left;
  lost.unshift(...equals.map((contender) => ({ by: "order" as const, contender })));
  return { device, best, alternatives: lost.map(({ by, contender }) => against(best, contender, by)) };
}

function against(best: Contender, over: Contender, by: Criterion): RecommendedDevice["alternatives"][number] {
  const margin = {
    over: { tracker: over.tracker, granule: over.granule },
    by,
    figure: figureBy(best, by),
    overFigure: figureBy(over, by),
  };
  return { ...margin, text: marginText(best, margin), figures: over.figures };
}

function marginOf([nearest]: RecommendedDevice["alternatives"]): Margin | null {
  if (nearest === undefined) return null;
  const { figures: _, ...margin } = nearest;
  return margin;
}

/** The trackers that can be used, each with its figures; `everything` only where there is no other. Never empty. */
function contendersOf(benchmark: TrackerBenchmark, device: BenchedDevice, link: Link): Contender[] {
  const usable = device.trackers.filter(({ problem, tracker }) => problem === null && tracker !== "everything");
  const measured = usable.length > 0 ? usable : device.trackers.filter(({ tracker }) => tracker === "everything");
  const contenders = (measured.length > 0 ? measured : [UNMEASURED]).map((figures) =>
    contenderOf(benchmark, device, figures, link),
  );
  const estimated = contenders.filter(({ estimate }) => estimate !== null);
  if (estimated.length > 0) return estimated;
  // Nobody knows what a coarse bit names besides what was written: that its read is cheap must not count.
  return contenders.filter((one) =>
    contenders.every(({ tracker, granule }) => tracker !== one.tracker || (granule ?? 0) >= (one.granule ?? 0)),
  );
}

/** Of a device that no tracker was measured of. */
const UNMEASURED: TrackerFigures = {
  tracker: "everything",
  granule: null,
  foundGranule: null,
  readableWhen: "always",
  problem: null,
  attach: null,
  start: null,
  stop: null,
  reads: [],
  dma: null,
  precision: [],
};

function contenderOf(
  benchmark: TrackerBenchmark,
  device: BenchedDevice,
  measured: TrackerFigures,
  link: Link,
): Contender {
  const estimate = estimateMigration(benchmark, device, measured, link);
  const { tracker, granule, dma, precision } = measured;
  const written = precision.reduce((sum, { writtenPages }) => sum + writtenPages, 0);
  const reported = precision.reduce((sum, { reportedPages }) => sum + reportedPages, 0);
  const read = readOf(measured, benchmark.memoryBytes);
  const [first] = precision;
  const needless = first === undefined ? 0 : Math.max(0, first.reportedPages - first.writtenPages);
  const needlessMs = (needless * PAGE_SIZE * 1000) / link.bandwidth;
  return {
    tracker,
    granule,
    measured,
    estimate,
    dma,
    round: read === null ? null : later(read, needlessMs),
    figures: {
      converges: estimate?.converges ?? null,
      rounds: estimate?.rounds ?? null,
      totalMs: estimate?.totalMs ?? null,
      downtimeMs: estimate?.downtimeMs ?? null,
      dmaLoss: dma === null ? null : 1 - dma.ratio,
      dmaLossRange: dma === null ? null : [1 - dma.high, 1 - dma.low],
      dmaLossAtLeast: dma === null ? null : dma.decides ? Math.max(0, 1 - dma.high) : 0,
      readMs: read?.median ?? null,
      roundMs: read === null ? null : read.median + needlessMs,
      precision: written === 0 ? null : reported / written,
    },
  };
}

/** What a read costs at the device's work: of the figures on the largest memory those that name about as many pages. */
function readOf(measured: TrackerFigures, memoryBytes: number): Summary | null {
  const { reads, precision } = measured;
  const curve = readCurve(measured, memoryBytes);
  if (curve === null) return null;
  const named = precision.at(0)?.reportedPages ?? 0;
  const largest = Math.max(...reads.map((read) => read.memoryBytes));
  const near = reads
    .filter((read) => read.memoryBytes === largest)
    .reduce((a, b) => (Math.abs(b.reportedPages - named) < Math.abs(a.reportedPages - named) ? b : a));
  const median = valueAt(curve, named);
  // As wide as what was measured there.
  const scale = near.ms.median === 0 ? 1 : median / near.ms.median;
  const { count, min, max, q1, q3 } = near.ms;
  return { count, median, min: min * scale, max: max * scale, q1: q1 * scale, q3: q3 * scale };
}

/** The same, so much later. */
function later({ count, median, min, max, q1, q3 }: Summary, ms: number): Summary {
  return { count, median: median + ms, min: min + ms, max: max + ms, q1: q1 + ms, q3: q3 + ms };
}

/** In which order equals are taken: the policy's, then the finest granule. */
function rank({ tracker, granule }: TrackerAt, order: PolicyOrder): number {
  const first = order === "iommu-first" ? tracker === "iommu" : tracker !== "iommu";
  // A granule is less than 2^53: far less than one tracker is worth before another.
  return (first ? 0 : 2 ** 53) + (granule ?? 0);
}

interface Test {
  readonly by: Criterion;
  /** Keeps at least one of at least one. */
  keep(contenders: readonly Contender[]): Contender[];
}

function criteria({ downtimeLimitMs }: Link): readonly Test[] {
  return [
    {
      by: "converges",
      keep: (contenders) => {
        const converging = contenders.filter(({ estimate }) => estimate?.converges === true);
        return converging.length > 0 ? converging : [...contenders];
      },
    },
    {
      by: "downtime",
      keep: (contenders) =>
        keepNear(contenders, "downtime", ({ estimate }) => {
          return Math.max(estimate?.noiseMs ?? 0, downtimeLimitMs * ESTIMATE_SHARE);
        }),
    },
    {
      by: "total",
      keep: (contenders) =>
        keepNear(contenders, "total", ({ estimate }) => {
          // Each round is followed by a read, and the stop by one.
          const reads = (estimate?.rounds ?? 0) + 1;
          return Math.max((estimate?.noiseMs ?? 0) * reads, (estimate?.totalMs ?? 0) * ESTIMATE_SHARE);
        }),
    },
    { by: "dma", keep: keepUnharmed },
    { by: "round", keep: keepCheap },
  ];
}

/** Keeps what is as small as the smallest, but for what the figures leave open. */
function keepNear(
  contenders: readonly Contender[],
  by: Criterion,
  tolerance: (contender: Contender) => number,
): Contender[] {
  const known = contenders.flatMap((one) => figureBy(one, by) ?? []);
  if (known.length === 0) return [...contenders];
  const least = Math.min(...known);
  const best = contenders.find((one) => figureBy(one, by) === least);
  return contenders.filter((one) => {
    const value = figureBy(one, by) ?? least;
    const open = Math.max(tolerance(one), best === undefined ? 0 : tolerance(best));
    return value - least <= open;
  });
}

/** Drops trackers that are known to cost their device more writes than another is. */
function keepUnharmed(contenders: readonly Contender[]): Contender[] {
  const least = Math.min(...contenders.map((one) => figureBy(one, "dma") ?? 0));
  return contenders.filter((one) => (figureBy(one, "dma") ?? least) - least <= DMA_SHARE);
}

/** Drops trackers that cost a round more than the cheapest does, even where nothing disturbed it. */
function keepCheap(contenders: readonly Contender[]): Contender[] {
  const rounds = contenders.flatMap(({ round }) => round ?? []);
  if (rounds.length === 0) return [...contenders];
  const cheapest = rounds.reduce((a, b) => (b.median < a.median ? b : a));
  return contenders.filter(({ round }) => {
    return round === null || round.min <= cheapest.q3 || round.median <= cheapest.median * (1 + READ_SHARE);
  });
}

/** A tracker's figure by a criterion: the less, the better. null: there is none. */
function figureBy({ figures }: Contender, by: Criterion): number | null {
  switch (by) {
    case "converges":
    case "downtime":
      return figures.downtimeMs;
    case "total":
      return figures.totalMs;
    case "dma":
      return figures.dmaLossAtLeast;
    case "round":
      return figures.roundMs;
    case "order":
      return null;
  }
}

/** Whether a device that the IOMMU tracks shares its HWPT, and why; no reason where it had no choice. */
function chooseDomain(
  { sharing }: TrackerBenchmark,
  { id, capabilities }: BenchedDevice,
  best: Contender,
  decided: readonly Decided[],
  { downtimeLimitMs }: Link,
): { domain: RecommendedDevice["domain"]; why: string | null } {
  if (best.tracker === "everything" || best.tracker === "pinned") return { domain: null, why: null };
  // The tracker of an emulated IOMMU is there to be shared.
  if (capabilities.mdev) return { domain: "shared", why: null };
  if (best.tracker !== "iommu") return { domain: "per-device", why: null };
  const group = sharing.find(({ devices }) => devices.includes(id));
  if (group === undefined) return { domain: "per-device", why: null };
  // One table is read once, however many share it.
  const sharers = group.devices.filter((member) => {
    return decided.some(({ device, best: { tracker, granule } }) => {
      return device.id === member && tracker === "iommu" && granule === best.granule;
    });
  });
  const others = sharers.filter((device) => device !== id).join(", ");
  if (others === "") return { domain: "per-device", why: null };
  const separate = group.separateReads.filter((_, index) => sharers.includes(group.devices[index]));
  const savedMs = separate.reduce((sum, { median }) => sum + median, 0) - group.sharedRead.median;
  const figures = `one read for it and ${others} takes ${savedMs.toFixed(2)} ms less than one for each`;
  if (worthSharing(group, savedMs, downtimeLimitMs)) {
    return { domain: "shared", why: `shared: ${figures}; no device's share is known then` };
  }
  const little = group.read.decides ? "which is little" : "as far as such reads tell";
  return { domain: "per-device", why: `a domain of its own, so that its share is known: ${figures}, ${little}` };
}

/** A share per device is worth something: sharing must gain a noticeable part of the downtime, and harm nobody. */
function worthSharing({ read, dma }: SharingFigures, savedMs: number, downtimeLimitMs: number): boolean {
  const harms = dma?.decides === true && dma.ratio < 1 - DMA_SHARE;
  return read.decides && read.ratio < 1 && savedMs >= downtimeLimitMs * ESTIMATE_SHARE && !harms;
}
