import { channel } from "node:diagnostics_channel";
import type { DirtyRead } from "../tracking/dirty-source.js";
import { heatOf } from "../tracking/heat.js";
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

/** What is published of a migration while it goes on. Times are milliseconds since it began. */
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
    }
  | ReadEvent;

/** One read of all trackers. */
export interface ReadEvent {
  readonly type: "read";
  readonly atMs: number;
  /** The round that it ended; null: nothing is being migrated, somebody watches. */
  readonly round: number | null;
  /** Since the read before, or since tracking was switched on. */
  readonly elapsedMs: number;
  /** With the ledger's keys. Owners whose log could not be read yet are absent. */
  readonly owners: Readonly<Record<string, OwnerRead>>;
}

/** When a read was, and of what. */
export type ReadBounds = Pick<ReadEvent, "atMs" | "round" | "elapsedMs">;

/** What one tracker reported in a read. */
export interface OwnerRead {
  /** 4 KiB pages. */
  readonly reported: number;
  /** Of these, pages that no other tracker reported in the same read. */
  readonly exclusive: number;
  readonly readMs: number;
  /** Pages reported per stretch of RAM (tracking/heat.ts); their sum is {@link reported}. */
  readonly heat: readonly number[];
}

/** The diagnostics channel that {@link MigrationEvent}s are published on. */
export const migrationEvents = channel("dirtmap:migration");

/** Publishes an event. */
export function publish(event: MigrationEvent): void {
  if (migrationEvents.hasSubscribers) migrationEvents.publish(event);
}

/** Publishes a read of the trackers. Where nobody listens nothing is counted. The read's bitmaps must still be valid. */
export function publishRead(read: DirtyRead, at: ReadBounds): void {
  if (!migrationEvents.hasSubscribers) return;
  const owners = Object.entries(read.byOwner).map(([owner, counts]): [string, OwnerRead] => {
    const pages = read.pagesByOwner.get(owner);
    return [owner, { ...counts, heat: pages === undefined ? [] : heatOf(pages) }];
  });
  publish({ type: "read", ...at, owners: Object.fromEntries(owners) });
}
