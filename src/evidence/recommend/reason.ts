import { size } from "../../tracking/policy.js";
import type { BenchedDevice } from "../trackers/result.js";
import type { Contender } from "./recommend.js";
import type { Margin, RecommendedDevice, TrackerAt } from "./result.js";

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
    : `${unknown}${called(best)}, since ${called(other.over)} ${other.text}`;
}

/** What speaks against another tracker, as a clause whose subject it is. */
export function marginText(best: TrackerAt, { over, by, figure, overFigure }: Omit<Margin, "text">): string {
  const both = figure === null || overFigure === null ? null : bothText(overFigure, figure);
  // What is compared is free of what disturbed the reads, and may be less than the table's figure.
  const atLeast = both === null ? "by an unknown time" : `at least ${both}`;
  switch (by) {
    case "converges":
      return `would miss the downtime limit: ${both ?? "by an unknown time"}`;
    case "downtime":
      return `would have more downtime: ${atLeast}`;
    case "total":
      return `would take longer to migrate: ${atLeast}`;
    case "dma":
      return `costs the device at least ${share(overFigure)} of its writes, against ${share(figure)}`;
    case "round":
      return `costs each round more, in reading and in sending what nobody wrote: ${atLeast}`;
    case "order":
      return best.tracker === over.tracker
        ? "is as good, and coarser"
        : "is as good as far as was measured, and the policy's order decides";
  }
}

/** "device at 64K" */
export function called({ tracker, granule }: TrackerAt): string {
  return granule === null ? `'${tracker}'` : `'${tracker}' at ${size(granule)}`;
}

function missing({ trackers, capabilities }: BenchedDevice): string {
  const problems = trackers.flatMap(({ problem, tracker }) => (problem === null ? [] : [`'${tracker}': ${problem}`]));
  if (problems.length > 0) return problems.join("; ");
  const could = capabilities.mdev ? (["iommu", "pinned"] as const) : (["iommu", "device"] as const);
  return could
    .map((kind) => capabilities.trackers[kind])
    .flatMap((one) => (one.available === true ? [] : [one.why]))
    .join("; ");
}

/** "38 ms against 31 ms", with as many decimals as tell the two apart. */
function bothText(more: number, less: number): string {
  const fewest = less < 10 ? 2 : 0;
  const decimals = [fewest, 2, 4, 6].find((digits) => more.toFixed(digits) !== less.toFixed(digits)) ?? fewest;
  return `${more.toFixed(decimals)} ms against ${less.toFixed(decimals)} ms`;
}

function share(value: number | null): string {
  return value === null ? "an unknown part" : `${Math.round(Math.max(0, value) * 100)} %`;
}
