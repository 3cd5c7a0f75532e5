import { PAGE_SIZE } from "../../memory/address.js";
import {
  type Conditions,
  judge,
  type RoundFacts,
  type Verdict,
  ZERO_BYTES_PER_SECOND,
} from "../../migration/convergence.js";
import type { LinkEstimate } from "./link.js";

/*
 * A migration in numbers: rounds as migration/source.ts sends them, judged by the very function that judges the real ones,
 * on a workload that is a curve. Pure, and without a clock.
 */

/** What is dirtied, as the simulation sees it. Pages of 4 KiB. */
export interface Workload {
  readonly ramPages: number;
  /** Of the RAM: pages that are all zero, and so cost next to nothing in the first round. */
  readonly zeroPages: number;
  /** Distinct pages dirtied in `ms` by whoever is tracked. */
  dirtied(ms: number): number;
  /** Pages that each read names, because nothing tracks who may write them. */
  readonly alwaysPages: number;
  /** Who reports how much in a read after `ms`. */
  owners(ms: number): RoundFacts["owners"];
}

export interface SimulatedRound {
  readonly round: number;
  readonly phase: "pre-copy" | "stop-copy";
  readonly pages: number;
  readonly bytes: number;
  readonly ms: number;
  /** Bytes dirty at its end. */
  readonly remaining: number;
}

export interface Simulation {
  readonly verdict: Verdict;
  readonly rounds: readonly SimulatedRound[];
  /** null: it doesn't converge. */
  readonly downtimeMs: number | null;
  /** From the first page sent until the destination runs; null: it doesn't converge. */
  readonly movingMs: number | null;
}

/** Devices and vCPUs write on for about this long after the last read of a running machine: they are stopped in turn. */
const STOPPING_MS = 10;

/** Simulates a migration. */
export function simulate(
  workload: Workload,
  link: LinkEstimate,
  /** `deviceStateBytes` and the fixed costs as the migration will reckon with them. */
  conditions: Conditions,
): Simulation {
  const { ramPages, alwaysPages } = workload;
  const history: RoundFacts[] = [];
  const rounds: SimulatedRound[] = [];
  // What no tracker can name is in each read; the rest of what is dirtied lies among the other pages.
  const outside = 1 - alwaysPages / ramPages;
  const fresh = (ms: number) => Math.min(workload.dirtied(ms), ramPages) * outside;
  let pages = ramPages;
  let zeroPages = workload.zeroPages;
  let elapsed = 0;
  for (let round = 0; ; round++) {
    const speed = round === 0 ? link.firstBytesPerSecond : link.bytesPerSecond;
    const ms = Math.max(0.001, transferMs(pages - zeroPages, speed) + transferMs(zeroPages, ZERO_BYTES_PER_SECOND));
    const windowMs = ms + link.betweenMs;
    elapsed += windowMs;
    const remaining = (alwaysPages + fresh(windowMs)) * PAGE_SIZE;
    rounds.push({ round, phase: "pre-copy", pages, bytes: (pages - zeroPages) * PAGE_SIZE, ms, remaining });
    history.push({
      pages,
      zeroPages,
      ms,
      remainingBytes: remaining,
      alwaysDirtyBytes: alwaysPages * PAGE_SIZE,
      owners: workload.owners(windowMs),
    });
    const verdict = judge(history, conditions);
    if (verdict.kind === "does-not-converge") return { verdict, rounds, downtimeMs: null, movingMs: null };
    if (verdict.kind === "switch-over") {
      // What the last read named, and what is written until all have stopped.
      const rest = alwaysPages + fresh(windowMs + STOPPING_MS);
      const restMs = transferMs(rest, link.bytesPerSecond);
      rounds.push({
        round: round + 1,
        phase: "stop-copy",
        pages: rest,
        bytes: rest * PAGE_SIZE,
        ms: restMs,
        remaining: 0,
      });
      const stateMs = (conditions.deviceStateBytes / link.bytesPerSecond) * 1000;
      const downtimeMs = restMs + stateMs + link.stopMs;
      return { verdict, rounds, downtimeMs, movingMs: elapsed + downtimeMs };
    }
    // The pages that every read names wait for the last round.
    pages = fresh(windowMs);
    zeroPages = 0;
  }
}

function transferMs(pages: number, bytesPerSecond: number): number {
  return ((pages * PAGE_SIZE) / bytesPerSecond) * 1000;
}
