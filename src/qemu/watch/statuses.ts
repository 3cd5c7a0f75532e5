import type { MigrationPhase } from "../../migration/events.js";
import type { MigrationResult } from "../../migration/report.js";

/*
 * QEMU's statuses of a migration (MigrationStatus of qapi/migration.json, as of 11.1), as phases of a run.
 */

/** Statuses of a migration that goes on. One that is not here leaves the phase as it is. */
const PHASES: Readonly<Record<string, MigrationPhase>> = {
  setup: "connecting",
  "wait-unplug": "connecting",
  active: "pre-copy",
  "pre-switchover": "pausing",
  device: "stop-copy",
  "postcopy-device": "stop-copy",
  "postcopy-active": "running-at-destination",
  "postcopy-paused": "running-at-destination",
  "postcopy-recover": "running-at-destination",
  "postcopy-recover-setup": "running-at-destination",
};

/** What is said of a status that is not just the next phase. */
const WORDS: Readonly<Record<string, string>> = {
  "wait-unplug": "QEMU waits until the guest has let go of its failover devices",
  "pre-switchover": "the guest stands still; QEMU waits for migrate-continue",
  "postcopy-active": "the guest runs at the destination, and fetches the memory that is still here (post-copy)",
  "postcopy-paused": "post-copy has lost its connection; the guest at the destination waits for memory",
  "postcopy-recover": "post-copy goes on over a new connection",
  cancelling: "QEMU cancels the migration",
  failing: "QEMU ends the migration, which has failed",
};

/** How a migration that is watched ends. */
export type WatchedResult = Exclude<MigrationResult, "indeterminate">;

const RESULTS: Readonly<Record<string, WatchedResult>> = {
  completed: "completed",
  failed: "failed",
  cancelled: "cancelled",
};

/** Null: the phase stays what it is. */
export function phaseOf(status: string): MigrationPhase | null {
  return PHASES[status] ?? null;
}

export function wordsOf(status: string): string | undefined {
  return WORDS[status];
}

/** How a migration with this status has ended; null: it has not. */
export function resultOf(status: string): WatchedResult | null {
  return RESULTS[status] ?? null;
}
