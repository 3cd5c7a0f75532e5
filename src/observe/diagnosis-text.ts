import type { Diagnosis, SlowReason } from "../migration/events.js";
import { formatMs, formatRate, formatSize } from "./format.js";

/*
 * Whether a watched migration will end, in words: for the live view, notes and reports.
 */

/** The verdict on one line. */
export function verdictLine({ converging, stalled, leftMs, downtimeMs }: Diagnosis): string {
  if (stalled) return "STALLED: it does not get nearer to its end";
  if (converging === null) return "whether it converges can't be told yet";
  if (!converging) return "it does not converge";
  const parts = ["it converges"];
  if (leftMs !== null) parts.push(`expected to end in ${range(leftMs.low, leftMs.high)}`);
  if (downtimeMs !== null) parts.push(`downtime ${range(downtimeMs.low, downtimeMs.high)}`);
  return parts.join(" · ");
}

/** What keeps it from its end, and what would help. */
export function reasonText({ code, have, need }: SlowReason): string {
  switch (code) {
    case "dirty-rate":
      return `the guest and its devices dirty ${formatRate(need)}, and ${formatRate(have)} are sent: raise the bandwidth, slow the guest (auto-converge), or use a faster link`;
    case "bandwidth-limit":
      return `max-bandwidth holds it to ${formatRate(have)}: raise it`;
    case "downtime-limit":
      return `what a pass leaves takes ${formatMs(need)}, and downtime-limit is ${formatMs(have)}: raise it, or the bandwidth`;
    case "switchover-bandwidth":
      return `QEMU counts with avail-switchover-bandwidth of ${formatRate(have)}, and sends ${formatRate(need)}: raise it`;
    case "nothing-moves":
      return `QEMU sends nothing, with ${formatSize(need)} left: see whether the link and the destination are there`;
  }
}

function range(lowMs: number, highMs: number | null): string {
  if (highMs === null) return `${formatMs(lowMs)} or more`;
  return lowMs === highMs ? formatMs(lowMs) : `${formatMs(lowMs)} to ${formatMs(highMs)}`;
}
