import {
  type DestinationReport,
  type Findings,
  type MigrationReport,
  movingMs,
  type WatchedReport,
} from "../../migration/report.js";
import { reasonText } from "../../observe/diagnosis-text.js";
import { formatCount, formatMs, formatSize } from "../../observe/format.js";
import { type Cells, tableLines } from "./table-text.js";

const UNKNOWN = "-";

/** A migration's report for people: the outcome first, then its rounds and its devices. Ends without a newline. */
export function reportText(report: MigrationReport): string {
  const { rounds, devices, error, destination, warnings, phases } = report;
  const lines = [headline(report)];
  if (error !== undefined) {
    lines.push(`  ${error.message}`);
    if (error.remedy !== undefined) lines.push(`  what would work: ${error.remedy}`);
  }
  lines.push(...warnings.map((warning) => `  warning: ${warning}`));
  lines.push(`  migration ${report.migration}, design ${report.design}, policy ${report.policy}`);
  if (phases.length > 0) lines.push(`  ${phases.map(({ phase, ms }) => `${phase} ${formatMs(ms)}`).join(" · ")}`);
  lines.push(...predictedLines(report));
  lines.push(...memoryLines(report));
  if (destination !== null) lines.push(...destinationLines(destination));
  lines.push(...watchedLines(report));
  if (rounds.length > 0) lines.push("", ...tableLines(roundsTable(report)));
  if (devices.length > 0) lines.push("", ...tableLines(devicesTable(report)), "");
  for (const { id, reason } of devices) lines.push(`${id}: ${reason}`);
  return lines.join("\n");
}

/** How a migration went, on one line. */
export function headline({ result, verified, downtimeMs, totalMs, bytes, rounds }: MigrationReport): string {
  const parts: string[] = [result];
  if (verified !== null) parts.push(verified ? "verified: no write was lost" : "NOT VERIFIED: writes were lost");
  if (downtimeMs !== null) parts.push(`downtime ${formatMs(downtimeMs)}`);
  parts.push(`total ${formatMs(totalMs)}`, `${formatSize(bytes)} in ${rounds.length} rounds`);
  return parts.join(" · ");
}

/** What was foreseen, beside what happened. */
export function predictedLines(report: MigrationReport): string[] {
  const { predicted, downtimeMs, rounds, result } = report;
  if (predicted === null) return [];
  const seen = `foreseen after ${formatMs(predicted.observedMs)}`;
  if (!predicted.converges || predicted.downtimeMs === null || predicted.movingMs === null) {
    return [`  ${seen}: it does not converge, because of ${predicted.inTheWay.join(", ") || "the fixed costs"}`];
  }
  const parts = [
    `downtime ${formatMs(predicted.downtimeMs)}${result === "completed" ? ` (was ${formatMs(downtimeMs ?? 0)})` : ""}`,
    `${predicted.rounds} rounds (${rounds.length})`,
    `total ${formatMs(predicted.movingMs)} (${formatMs(movingMs(report))})`,
  ];
  return [`  ${seen}: ${parts.join(", ")}`];
}

/** What the comparison of the two memories showed. */
export function memoryLines({ memory }: MigrationReport): string[] {
  if (memory === null) return [];
  const { pagesCompared, pagesDifferent, firstAddresses, coveredBy } = memory;
  if (pagesDifferent === 0) return [`  memory: ${formatCount(pagesCompared)} pages compared, all equal`];
  const by = coveredBy.length === 0 ? "no tracker ever reported them" : `reported by ${coveredBy.join(", ")}`;
  return [
    `  memory: ${formatCount(pagesDifferent)} of ${formatCount(pagesCompared)} pages differ, at ${firstAddresses.join(", ")}` +
      `${pagesDifferent > firstAddresses.length ? " …" : ""}; ${by}`,
  ];
}

/** What the destination found. */
export function destinationLines({ resumeMs, stamps, requests, written }: DestinationReport): string[] {
  const lines: string[] = [];
  const on = Object.entries(written).map(([owner, units]) => `${owner} ${formatCount(units)}`);
  if (on.length > 0)
    lines.push(`  at the destination: resumed in ${formatMs(resumeMs)}, and wrote on: ${on.join(", ")}`);
  if (stamps !== null) lines.push(findingsLine("stamps", stamps, "all whole"));
  if (requests !== undefined) lines.push(findingsLine("requests", requests, "each done and completed once"));
  return lines;
}

/** What was seen of a migration that was only watched. */
export function watchedLines({ watched }: MigrationReport): string[] {
  if (watched === undefined) return [];
  const { name, uuid, fromBeginning, statuses, devices, settings, changes, stalls } = watched;
  const guest = `guest ${name ?? uuid ?? "without a name"}`;
  return [
    `  watched: ${guest}, ${fromBeginning ? "from the beginning" : "from the middle"}; QEMU was told nothing`,
    `  statuses: ${statesText(statuses)}`,
    ...devices.map(({ id, states }) => `  ${id}: ${states.length === 0 ? "told no state" : statesText(states)}`),
    ...stalls.map(({ fromMs, toMs, reasons }) => {
      const until = toMs === null ? "to the end of the watch" : `to ${formatMs(toMs)}`;
      return `  stalled from ${formatMs(fromMs)} ${until}${reasons.map((reason) => `; ${reasonText(reason)}`).join("")}`;
    }),
    `  settings: ${Object.entries(settings)
      .map(([setting, value]) => `${setting} ${settingText(value)}`)
      .join(", ")}`,
    ...changes.map(({ atMs, setting, to }) => `  at ${formatMs(atMs)}, ${setting} became ${settingText(to)}`),
  ];
}

function statesText(states: WatchedReport["statuses"]): string {
  return states.map(({ state, atMs }) => `${state} ${formatMs(atMs)}`).join(" · ");
}

function settingText(value: WatchedReport["settings"][string]): string {
  if (typeof value === "boolean") return value ? "on" : "off";
  return value === null ? "none" : String(value);
}

function findingsLine(what: string, { checked, problems }: Findings, allRight: string): string {
  const wrong = problems.map(({ owner, kind, count }) => `${owner}: ${formatCount(count)} ${kind}`);
  return `  ${what}: ${formatCount(checked)} checked, ${wrong.length === 0 ? allRight : wrong.join(", ")}`;
}

/** The rounds. */
export function roundsTable({ rounds }: MigrationReport): Cells {
  const owners = [...new Set(rounds.flatMap(({ byDevice }) => Object.keys(byDevice)))];
  const head = ["round", "phase", "pages", "zero", "sent", "time", "remaining", ...owners.map((o) => `${o} dirty`)];
  const rows = rounds.map((round) => [
    String(round.round),
    round.phase,
    formatCount(round.pages),
    formatCount(round.zeroPages),
    formatSize(round.bytes),
    formatMs(round.ms),
    formatSize(round.remaining),
    ...owners.map((owner) => countOr(round.byDevice[owner]?.reported ?? null)),
  ]);
  return { head, rows, left: [1] };
}

/** The devices. */
export function devicesTable({ devices }: MigrationReport): Cells {
  const suspended = devices.some(({ suspendedMs }) => suspendedMs > 0);
  const head = ["device", "model", "tracker", "granule found", "pages reported", "only by it", "reading"];
  const rows = devices.map((device) => [
    device.id,
    device.model,
    device.tracker,
    device.granule === null ? UNKNOWN : formatSize(device.granule),
    countOr(device.pagesReported),
    countOr(device.pagesExclusive),
    formatMs(device.readMs),
    ...(suspended ? [device.suspendedMs > 0 ? formatMs(device.suspendedMs) : UNKNOWN] : []),
  ]);
  return { head: suspended ? [...head, "suspended"] : head, rows, left: [0, 1, 2] };
}

function countOr(count: number | null): string {
  return count === null ? UNKNOWN : formatCount(count);
}
