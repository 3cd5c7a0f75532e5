import type { TrackerKind } from "../tracking/tracker.js";

/** How a migration ended; see "Handover" in docs/architecture.md for `indeterminate`. */
export type MigrationResult = "completed" | "cancelled" | "failed" | "indeterminate";

/** One device in a report. Where devices share an HWPT there is no share per device: the counts are null. */
export interface DeviceReport {
  readonly id: string;
  readonly model: string;
  /** `vmm`: the VMM that moves the memory finds out by itself what the device has written. */
  readonly tracker: TrackerKind | "vmm";
  /** Bytes per dirty bit; null for a tracker without bits (`everything`) or where tracking never started. */
  readonly granule: number | null;
  readonly reason: string;
  /** Trackers that were passed over, each with why. */
  readonly alternatives: readonly { readonly tracker: TrackerKind; readonly why: string }[];
  /** 4 KiB pages that its tracker reported, over all rounds; null where it shares a domain. */
  readonly pagesReported: number | null;
  /** Of these, pages that no other tracker reported in the same round. */
  readonly pagesExclusive: number | null;
  readonly readMs: number;
  /** How long the device was suspended (its own outage); 0 for one that was not. */
  readonly suspendedMs: number;
}

/** The phases in which a migration moves the machine: from the first page sent until the destination runs. */
const MOVING: readonly string[] = ["pre-copy", "pausing", "stop-copy", "handover"];

/** Milliseconds from the first page sent until the destination ran, or the migration ended. */
export function movingMs({ phases }: Pick<MigrationReport, "phases">): number {
  return phases.reduce((sum, { phase, ms }) => sum + (MOVING.includes(phase) ? ms : 0), 0);
}

/** What one round took, found and sent. Times are milliseconds. */
export interface RoundReport {
  readonly round: number;
  readonly phase: "pre-copy" | "stop-copy";
  /** Pages sent, zero pages included. */
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  readonly ms: number;
  /** Bytes still dirty at the end of the round, as the next read found. */
  readonly remaining: number;
  /** Pages per tracker owner: a device's id, `cpu`, or `domain:<id>+<id>` where devices share one. */
  readonly byDevice: Readonly<Record<string, { reported: number; exclusive: number; readMs: number }>>;
}

/** How many were looked at, and what is wrong with some. */
export interface Findings {
  readonly checked: number;
  readonly problems: readonly { readonly owner: string; readonly kind: string; readonly count: number }[];
}

/** What the destination found after the workload had run on there. */
export interface DestinationReport {
  /** From the arrival of GO until everything ran. */
  readonly resumeMs: number;
  /** Units that devices and vCPUs stamped, checked after the workload had run on; null: nobody could check. */
  readonly stamps: Findings | null;
  /** Requests that the guest's drivers have queued, at both ends, each of which must be done and completed once; absent: none. */
  readonly requests?: Findings | undefined;
  /** Per device and vCPU, units written or requests completed at the destination: the workload runs on. */
  readonly written: Readonly<Record<string, number>>;
}

/** The comparison of the two memories, page by page. */
export interface MemoryComparison {
  readonly pagesCompared: number;
  readonly pagesDifferent: number;
  /** Guest-physical addresses of the first few pages that differ, in hexadecimal. */
  readonly firstAddresses: readonly string[];
  /** Owners of the trackers that reported any of them during the migration; empty: none ever did. */
  readonly coveredBy: readonly string[];
}

/** What was foreseen of a migration before it began: what the report puts beside what happened. */
export interface PredictedOutcome {
  readonly converges: boolean;
  /** Rounds, the one of the stop-copy included; of one that doesn't converge, the rounds until it gives up. */
  readonly rounds: number;
  /** null: it doesn't converge. */
  readonly downtimeMs: number | null;
  /** From the first page sent until the destination runs; null: it doesn't converge. */
  readonly movingMs: number | null;
  /** Tracker owners in the way, the worst first; empty where it converges. */
  readonly inTheWay: readonly string[];
  /** How long the machine was observed. */
  readonly observedMs: number;
}

/** The error's code of a migration that is `indeterminate` because the operator said `abort`. */
export const GIVEN_UP = "GIVEN_UP";

/** What `dirtmap migrate --json` prints. */
export interface MigrationReport {
  readonly schemaVersion: 1;
  /** The id that `dirtmap resume` and `dirtmap abort` take. */
  readonly migration: string;
  readonly result: MigrationResult;
  /** The destination's memory, read back, equals the source's, and what was written and requested is whole; null: never compared. */
  readonly verified: boolean | null;
  readonly totalMs: number;
  readonly downtimeMs: number | null;
  /** Sent, over all channels and the control connection's device states. */
  readonly bytes: number;
  /** Milliseconds spent in each phase that was reached, in order. */
  readonly phases: readonly { readonly phase: string; readonly ms: number }[];
  readonly rounds: readonly RoundReport[];
  readonly devices: readonly DeviceReport[];
  /** `vmm`: the VMM that moves the memory tracks it, too. */
  readonly design: "split" | "type1" | "aggregated" | "iterating" | "vmm";
  readonly policy: string;
  /** null: the memories were not compared. */
  readonly memory: MemoryComparison | null;
  /** null: the destination has not reported. */
  readonly destination: DestinationReport | null;
  /** What was foreseen; null: nobody asked. */
  readonly predicted: PredictedOutcome | null;
  /** What happened on the way that the operator should know of, though it did not end the migration. */
  readonly warnings: readonly string[];
  readonly error?: {
    readonly code: string;
    readonly message: string;
    readonly remedy?: string | undefined;
    /** The device that it is about, of which side, and why in its own words; absent: it is about none. */
    readonly device?: { readonly id: string; readonly side: "source" | "destination"; readonly reason: string };
  };
}
