import { channel } from "node:diagnostics_channel";
import type { z } from "zod";
import type { Immutable } from "../immutable.js";
import type { DirtyRead } from "../tracking/dirty-source.js";
import { heatOf } from "../tracking/heat.js";
import type { migrationEventSchema, ownerReadSchema, rangeSchema, readEventSchema } from "./events-schema.js";
import type { slowReasonSchema } from "./report-schema.js";

/*
 * The events that a migration publishes while it runs; events-schema.ts describes each field. observe/ and the command line
 * listen. The migration doesn't know of them, and publishing costs nothing without a listener.
 */

/** The phases of a migration, in order; the last four are how it may end. */
export const MIGRATION_PHASES = [
  "connecting",
  "suspending",
  "tracking",
  "pre-copy",
  "pausing",
  "stop-copy",
  "verifying",
  "handover",
  "running-at-destination",
  "auditing",
  "completed",
  "failed",
  "cancelled",
  "indeterminate",
] as const;
/** A phase of a migration, or the way it ended. */
export type MigrationPhase = (typeof MIGRATION_PHASES)[number];

/** An event of a migration, published while it runs. Times are milliseconds since the migration began. */
export type MigrationEvent = Immutable<z.output<typeof migrationEventSchema>>;

/** Whether a migration that is watched will end, and why not. */
export type Diagnosis = Extract<MigrationEvent, { type: "diagnosis" }>;

/** Why a migration does not end. */
export type SlowReason = Immutable<z.output<typeof slowReasonSchema>>;

/** The least and the most that a figure may be. */
export type Range = Immutable<z.output<typeof rangeSchema>>;

/** One read of all trackers. */
export type ReadEvent = Immutable<z.output<typeof readEventSchema>>;

/** When a read was, and of what. */
export type ReadBounds = Pick<ReadEvent, "atMs" | "round" | "elapsedMs">;

/** One tracker's report in a read. `heat` counts pages by stretch of RAM (tracking/heat.ts). */
export type OwnerRead = Immutable<z.output<typeof ownerReadSchema>>;

/** The diagnostics channel on which {@link MigrationEvent}s are published: `dirtmap:migration`. */
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
