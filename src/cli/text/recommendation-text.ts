import type { JudgedFigures, Recommendation, RecommendedDevice } from "../../evidence/recommend/result.js";
import { formatMs, formatRate, formatSize } from "../../observe/format.js";
import { tableLines } from "./table-text.js";

/*
 * What `dirtmap recommend` prints.
 */

/** The recommendation as a table, then the reason for each device. Ends without a newline. */
export function recommendationText({ host, scenario, takenAt, link, order, devices }: Recommendation): string {
  if (devices.length === 0) return "the benchmark has no devices";
  const subject = scenario === null ? `host ${host}` : `scenario ${scenario}`;
  const rows = devices.map(({ id, model, tracker, granule, domain, figures, margin }) => [
    id,
    model,
    tracker,
    granule === null ? "-" : formatSize(granule),
    domain ?? "-",
    ...figureCells(figures),
    secondText(margin),
  ]);
  const head = ["device", "model", "tracker", "granule", "domain", ...FIGURES, "second best"];
  return [
    `from the benchmark of ${subject}, ${takenAt}`,
    `for a migration over ${formatRate(link.bandwidth)} with a downtime limit of ${formatMs(link.downtimeLimitMs)}; ties go to ${order}`,
    "",
    ...tableLines({ head, rows, left: [0, 1, 2, 4, 9] }),
    "",
    ...devices.flatMap(reasonLines),
  ].join("\n");
}

const FIGURES = ["downtime", "total", "DMA lost", "a round pays"];

function figureCells({ downtimeMs, totalMs, roundMs, ...figures }: JudgedFigures): string[] {
  const ms = (value: number | null) =>
    value === null ? "?" : value < 1 ? `${Math.round(value * 1000)} us` : formatMs(value);
  return [ms(downtimeMs), ms(totalMs), lossText(figures), ms(roundMs)];
}

/** A loss that is not known to be one is told as a range. */
function lossText({
  dmaLoss,
  dmaLossRange,
  dmaLossAtLeast,
}: Omit<JudgedFigures, "downtimeMs" | "totalMs" | "roundMs">): string {
  if (dmaLoss === null || dmaLossRange === null) return "?";
  const percent = (share: number) => Math.round(share * 100);
  const [low, high] = dmaLossRange;
  return dmaLossAtLeast !== null && dmaLossAtLeast > 0
    ? `${percent(dmaLoss)} %`
    : `${percent(low)} to ${percent(high)} %`;
}

function secondText(margin: RecommendedDevice["margin"]): string {
  if (margin === null) return "none";
  const { over, by, figure, overFigure } = margin;
  const name = over.granule === null ? over.tracker : `${over.tracker} ${formatSize(over.granule)}`;
  if (figure === null || overFigure === null) return `${name}: ${by === "order" ? "equal" : "fails"}`;
  const apart = overFigure - figure;
  if (by === "dma") return `${name}: ${Math.round(apart * 100)} points of DMA`;
  return `${name}: ${apart < 1 ? `${Math.round(apart * 1000)} us` : formatMs(apart)} more`;
}

function reasonLines({ id, reason, alternatives }: RecommendedDevice): string[] {
  return [
    `${id}: ${reason}`,
    ...alternatives.map(({ over, text }) => {
      const name = over.granule === null ? over.tracker : `${over.tracker} at ${formatSize(over.granule)}`;
      return `  not ${name}: it ${text}`;
    }),
  ];
}
