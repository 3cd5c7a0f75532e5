import type { BenchedDevice } from "../trackers/result.js";
import type { Contender, Margin, RecommendedDevice, TrackerAt } from "./recommend.js";

/*
 * Recommendations in words.
 */

/** One sentence: what decided for a device. */
export function reasonText(
  device: BenchedDevice,
  best: Contender,
  alternatives: RecommendedDevice["alternatives"],
): string {
  const { tracker, figures } = best;
  if (tracker === "everything") return `no tracker of ${device.id} works here: ${missing(device)}`;
  const unknown = figures.converges === null ? "nobody knows here what the device writes; " : "";
  // Of its own granules the table tells; what an operator asks is why not the other tracker.
  const other = alternatives.find(({ over }) => over.tracker !== tracker) ?? alternatives.at(0);
  return other === undefined
    ? `${unknown}'${tracker}' is the only tracker that it has`
    : `${unknown}${called(best)}: ${other.text}`;
}

/** What is recommended against another tracker, in a few words. */
export function marginText(best: TrackerAt, { over, by, figure, overFigure }: Omit<Margin, "text">): string {
  const other = called(over);
  const both = figure === null || overFigure === null ? "not known" : `${ms(figure)} against ${ms(overFigure)}`;
  switch (by) {
    case "converges":
      return `it meets the downtime limit, ${other} does not (${both})`;
    case "downtime":
      return `less downtime than ${other} (${both})`;
    case "total":
      return `a shorter migration than ${other} (${both})`;
    case "dma":
      return `its device loses ${share(figure)} of its writes, with ${other} ${share(overFigure)}`;
    case "read":
      return `faster reads than ${other} (${both})`;
    case "order":
      return best.tracker === over.tracker
        ? `as good as ${other}, and finer`
        : `too close to call against ${other}, so the policy's order decides`;
  }
}

/** "device at 64K" */
export function called({ tracker, granule }: TrackerAt): string {
  return granule === null ? `'${tracker}'` : `'${tracker}' at ${size(granule)}`;
}

function missing({ trackers, capabilities }: BenchedDevice): string {
  const problems = trackers.flatMap(({ problem, tracker }) => (problem === null ? [] : [`'${tracker}': ${problem}`]));
  if (problems.length > 0) return problems.join("; ");
  const lacking = Object.values(capabilities.trackers).flatMap((one) => (one.available ? [] : [one.why]));
  return [...new Set(lacking)].join("; ");
}

function ms(value: number): string {
  return `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
}

function share(value: number | null): string {
  return value === null ? "an unknown part" : `${Math.round(Math.max(0, value) * 100)} %`;
}

function size(bytes: number): string {
  const unit = bytes >= 2 ** 30 ? "G" : bytes >= 2 ** 20 ? "M" : "K";
  return `${bytes / { G: 2 ** 30, M: 2 ** 20, K: 2 ** 10 }[unit]}${unit}`;
}
