import { channel } from "node:diagnostics_channel";
import type { RoundReport } from "./report.js";

/*
 * What a migration publishes while it runs. observe/ and the command line listen; the migration doesn't know of them,
 * and publishing costs nothing where nobody does.
 */

/** The phases of a migration, in order; the last three are how it may end. */
export type MigrationPhase =
  | "connecting"
  | "suspending"
  | "tracking"
  | "pre-copy"
  | "pausing"
  | "stop-copy"
  | "verifying"
  | "handover"
  | "running-at-destination"
  | "auditing"
  | "completed"
  | "failed"
  | "cancelled"
  | "indeterminate";

export type MigrationEvent =
  | { readonly type: "phase"; readonly phase: MigrationPhase; readonly atMs: number; readonly text?: string }
  | { readonly type: "round"; readonly round: RoundReport }
  | {
      /** A few times a second during a round. */
      readonly type: "progress";
      readonly atMs: number;
      readonly round: number;
      readonly sentBytes: number;
      readonly remainingBytes: number;
      readonly bytesPerSecond: number;
      readonly expectedDowntimeMs: number | null;
      /** Per tracker owner: bytes dirtied per second, as its last two reads tell. */
      readonly dirtyBytesPerSecond: Readonly<Record<string, number>>;
    };

/** The diagnostics channel that {@link MigrationEvent}s are published on. */
export const migrationEvents = channel("dirtmap:migration");

/** Publishes an event. */
export function publish(event: MigrationEvent): void {
  if (migrationEvents.hasSubscribers) migrationEvents.publish(event);
}
