import { DEFAULTS } from "../../defaults.js";
import { PAGE_SIZE } from "../../memory/address.js";
import type { PolicyOrder } from "../../tracking/choice.js";
import { valueAt } from "../curve.js";
import { type Summary, summarize } from "../statistics.js";
import { estimateMigration, type Link, readCurve } from "../trackers/estimate.js";
import type { BenchedDevice, SharingFigures, TrackerBenchmark, TrackerFigures } from "../trackers/result.js";
import { classesOf, compareClasses, firstDifference } from "./rank.js";
import { marginText, reasonText } from "./reason.js";
import type { Criterion, JudgedFigures, Margin, RecommendedDevice, TrackerAt } from "./result.js";

/*
 * Which tracker, granule and domain each device should get, from what was measured: a pure function of the benchmark, the
 * link and the order in which ties are broken.
 *
 * Trackers are compared criterion by criterion (rank.ts). By each criterion a tracker is as good as all those that the measurement
 * cannot tell from it. Trackers that are equal by all criteria go by the policy's order.
 *
 * Compared is what is certain: the time of a read that nothing disturbed, the loss of DMA that all pairs bear out. What disturbs a
 * measurement only adds to it, so that a disturbed tracker is not taken for a slow one.
 */

/** A tracker of a device with all that it is judged by. */
export interface Contender extends TrackerAt {
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
 * @param order the order of trackers that decides ties
 */
export function recommend(
  benchmark: TrackerBenchmark,
  link: Link,
  order: PolicyOrder = DEFAULTS.policy,
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
  const contenders = contendersOf(benchmark, device, link);
  const tests = criteria(contenders, link);
  const classes = tests.map(({ figure, error }) => classesOf(contenders.map(figure), error));
  const ranked = contenders
    .map((contender, index) => ({ contender, classes: classes.map((byTest) => byTest[index]) }))
    .sort((a, b) => compareClasses(a.classes, b.classes) || rank(a.contender, order) - rank(b.contender, order));
  const [best, ...others] = ranked;
  const alternatives = others.map((other) => {
    const at = firstDifference(best.classes, other.classes);
    return against(best.contender, other.contender, at === -1 ? TIE : tests[at]);
  });
  return { device, best: best.contender, alternatives };
}

function against(best: Contender, over: Contender, test: Test): RecommendedDevice["alternatives"][number] {
  const { by, figure, told = figure } = test;
  const margin = {
    over: { tracker: over.tracker, granule: over.granule },
    by,
    figure: told(best),
    overFigure: told(over),
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
  const estimated = contenders.filter(({ figures }) => figures.converges !== null);
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
    figures: {
      converges: estimate?.converges ?? null,
      rounds: estimate?.rounds ?? null,
      totalMs: estimate?.totalMs ?? null,
      downtimeMs: estimate?.downtimeMs ?? null,
      totalAtLeastMs: estimate?.totalAtLeastMs ?? null,
      downtimeAtLeastMs: estimate?.downtimeAtLeastMs ?? null,
      dmaLoss: dma === null ? null : 1 - dma.ratio,
      dmaLossRange: dma === null ? null : [1 - dma.high, 1 - dma.low],
      dmaLossAtLeast: dma === null ? null : dma.decides ? Math.max(0, 1 - dma.high) : 0,
      readMs: read?.median ?? null,
      roundMs: read === null ? null : read.median + needlessMs,
      roundAtLeastMs: read === null ? null : read.min + needlessMs,
      precision: written === 0 ? null : reported / written,
    },
  };
}

/** What a read costs at the device's work: of the figures on the largest memory those that name about as many pages. */
function readOf(measured: TrackerFigures, memoryBytes: number): Pick<Summary, "median" | "min"> | null {
  const { reads, precision } = measured;
  const curve = readCurve(measured, memoryBytes, ({ median }) => median);
  if (curve === null) return null;
  const named = precision.at(0)?.reportedPages ?? 0;
  const largest = Math.max(...reads.map((read) => read.memoryBytes));
  const near = reads
    .filter((read) => read.memoryBytes === largest)
    .reduce((a, b) => (Math.abs(b.reportedPages - named) < Math.abs(a.reportedPages - named) ? b : a));
  const median = valueAt(curve, named);
  // As much faster as the fastest was there.
  return { median, min: near.ms.median === 0 ? 0 : (median * near.ms.min) / near.ms.median };
}

/** In which order equals are taken: the policy's, then the finest granule. */
function rank({ tracker, granule }: TrackerAt, order: PolicyOrder): number {
  const first = order === "iommu-first" ? tracker === "iommu" : tracker !== "iommu";
  // A granule is less than 2^53: far less than one tracker is worth before another.
  return (first ? 0 : 2 ** 53) + (granule ?? 0);
}

/** A criterion as {@link classesOf} applies it. */
interface Test {
  readonly by: Criterion;
  /** What the criterion compares: the less, the better. null: not known. */
  figure(contender: Contender): number | null;
  /** How far two figures may lie apart without being told apart, by the lesser of them. */
  error(figure: number): number;
  /** What the recommendation tells of it, unless that is the figure itself. */
  told?(contender: Contender): number | null;
}

/** The stand-in for a criterion between trackers that no measurement tells apart. */
const TIE: Test = { by: "order", figure: () => null, error: () => 0 };

/** The criteria, the first to decide first. Times are as exact as the contenders' reads were, or as an estimate can be. */
function criteria(contenders: readonly Contender[], { downtimeLimitMs }: Link): readonly Test[] {
  const downtimeNoise = noiseOf(contenders, ({ downtimeMs, downtimeAtLeastMs }) => [downtimeMs, downtimeAtLeastMs]);
  const totalNoise = noiseOf(contenders, ({ totalMs, totalAtLeastMs }) => [totalMs, totalAtLeastMs]);
  const roundNoise = noiseOf(contenders, ({ roundMs, roundAtLeastMs }) => [roundMs, roundAtLeastMs]);
  return [
    {
      by: "converges",
      figure: ({ figures }) => (figures.converges === null ? null : Number(!figures.converges)),
      error: () => 0,
      told: ({ figures }) => figures.downtimeMs,
    },
    {
      by: "downtime",
      figure: ({ figures }) => figures.downtimeAtLeastMs,
      error: () => Math.max(downtimeNoise, downtimeLimitMs * ESTIMATE_SHARE),
    },
    {
      by: "total",
      figure: ({ figures }) => figures.totalAtLeastMs,
      error: (ms) => Math.max(totalNoise, ms * ESTIMATE_SHARE),
    },
    { by: "dma", figure: ({ figures }) => figures.dmaLossAtLeast, error: () => DMA_SHARE },
    {
      by: "round",
      figure: ({ figures }) => figures.roundAtLeastMs,
      error: (ms) => Math.max(roundNoise, ms * READ_SHARE),
    },
  ];
}

/**
 * How far measured times lie above undisturbed ones, in milliseconds. It is the machine's noise and not a tracker's, since trackers
 * are measured in turns: the third quartile of all contenders, so that one that was disturbed badly hides no differences between
 * others.
 */
function noiseOf(
  contenders: readonly Contender[],
  times: (figures: JudgedFigures) => [measured: number | null, undisturbed: number | null],
): number {
  const above = contenders.flatMap(({ figures }) => {
    const [measured, undisturbed] = times(figures);
    return measured === null || undisturbed === null ? [] : [measured - undisturbed];
  });
  return above.length === 0 ? 0 : summarize(above).q3;
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
