import type { TrackerKind } from "../tracking/tracker.js";

/** How a migration ended; see "Handover" in docs/architecture.md for `indeterminate`. */
export type MigrationResult = "completed" | "cancelled" | "failed" | "indeterminate";

/** One device in a report. Where devices share an HWPT there is no share per device: the counts are null. */
export interface DeviceReport {
  readonly id: string;
  readonly model: string;
  readonly tracker: TrackerKind;
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

/** What `dirtmap migrate --json` prints. */
export interface MigrationReport {
  readonly schemaVersion: 1;
  readonly result: MigrationResult;
  /** The destination's memory, read back, equals the source's, and the devices' stamps are whole; null: never compared. */
  readonly verified: boolean | null;
  readonly totalMs: number;
  readonly downtimeMs: number | null;
  readonly bytes: number;
  readonly rounds: readonly RoundReport[];
  readonly devices: readonly DeviceReport[];
  readonly design: "split" | "type1" | "aggregated" | "iterating";
  readonly policy: string;
  readonly error?: { readonly code: string; readonly message: string; readonly remedy?: string | undefined };
}
