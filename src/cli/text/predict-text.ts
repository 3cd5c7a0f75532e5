import type { Outcome, OwnerPrediction, Prediction, WhatIf } from "../../evidence/predict/predict.js";
import { formatCount, formatMs, formatRate, formatSize } from "../../observe/format.js";
import { ownerLabel, parseOwner } from "../../tracking/owner.js";
import { tableLines } from "./table-text.js";

/** A prediction for people: the outcome first, then its rounds, then whoever writes. Ends without a newline. */
export function predictText(prediction: Prediction): string {
  const { why, link, observedMs, intervals, downtimeLimitMs, warnings, owners, simulated } = prediction;
  const lines = [headline(prediction)];
  if (why !== null) {
    lines.push(`  ${why.message}`);
    if (why.remedy !== undefined) lines.push(`  what would work: ${why.remedy}`);
  }
  const from = { assumed: "assumed", loopback: "measured on loopback", run: "as earlier migrations showed" }[
    link.source
  ];
  lines.push(
    ...warnings.map((warning) => `  warning: ${warning}`),
    `  observed for ${formatMs(observedMs)} in ${intervals} intervals; downtime limit ${formatMs(downtimeLimitMs)}`,
    `  link: ${formatRate(link.firstBytesPerSecond)} in the first round, then ${formatRate(link.bytesPerSecond)} (${from}); ${formatMs(link.stopMs)} to stop and start`,
    "",
    ...tableLines({
      head: ["round", "phase", "pages", "time", "remaining"],
      rows: simulated.map(({ round, phase, pages, ms, remaining }) => [
        String(round),
        phase,
        formatCount(pages),
        formatMs(ms),
        formatSize(remaining),
      ]),
      left: [1],
    }),
  );
  if (owners.length > 0) lines.push("", ...ownersTable(owners));
  return lines.join("\n");
}

function headline(outcome: Outcome): string {
  if (!outcome.converges) return "does not converge";
  return `converges · ${outcomeWords(outcome)}`;
}

function outcomeWords({ rounds, downtimeMs, movingMs }: Outcome): string {
  return `${rounds} rounds · downtime ${formatMs(downtimeMs ?? 0)} · total ${formatMs(movingMs ?? 0)}`;
}

function ownersTable(owners: readonly OwnerPrediction[]): string[] {
  const rows = owners.map(({ owner, tracker, everything, bytesPerSecond, workingSetBytes, suspended, halved }) => [
    ownerLabel(parseOwner(owner)),
    tracker,
    everything ? "-" : formatRate(bytesPerSecond),
    formatSize(workingSetBytes),
    suspended === null ? "-" : whatIfWords(suspended),
    halved === null ? "-" : whatIfWords(halved),
  ]);
  const head = ["owner", "tracker", "dirty rate", "working set", "if suspended", "if half as fast"];
  return tableLines({ head, rows, left: [0, 1, 4, 5] });
}

function whatIfWords({ converges, downtimeMs, rounds, gainMs }: WhatIf): string {
  if (!converges || downtimeMs === null) return "does not converge";
  const gain = gainMs === null ? "" : ` (${gainMs >= 0 ? "-" : "+"}${formatMs(Math.abs(gainMs))})`;
  return `${formatMs(downtimeMs)}${gain}, ${rounds} rounds`;
}
