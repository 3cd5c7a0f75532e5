import type { Command } from "commander";
import { durationOption, durationWithin, orElse } from "./values.js";

/** How long a machine is watched, and how often its trackers are read. Milliseconds. */
export interface WatchOptions {
  readonly duration: number;
  readonly interval: number;
}

/** Bounds of an interval: a read takes a millisecond and more, and what happens within one can't be told apart. */
const INTERVAL_MS = { min: 5, max: 60_000 } as const;
/** Bounds of how long a machine is watched. */
export const DURATION_MS = { min: 10, max: 24 * 3_600_000 } as const;

/** Adds the options of {@link WatchOptions}. */
export function addWatchOptions(command: Command, defaults: { durationMs: number; intervalMs: number }): Command {
  const { durationMs, intervalMs } = defaults;
  return addInterval(
    command.addOption(durationOption("--duration <duration>", DURATION_TEXT, DURATION_MS, durationMs)),
    intervalMs,
  );
}

/** The options of a command that shows what it watches, for as long as wanted. */
export interface ViewOptions extends Omit<WatchOptions, "duration"> {
  /** Absent: until the operator, or the run, ends it. */
  readonly duration?: number;
  readonly once?: boolean;
  readonly json?: boolean;
}

/** Adds the options of {@link ViewOptions}. */
export function addViewOptions(command: Command, intervalMs: number): Command {
  const text = `${DURATION_TEXT}${orElse("until Ctrl-C, or the run's end")}`;
  return addInterval(command.option("--duration <duration>", text, durationWithin(DURATION_MS)), intervalMs)
    .option("--once", "show the first interval, and end")
    .option("--json", "print a JSON object per interval, a line each");
}

const DURATION_TEXT = "watch the machine for this long";

function addInterval(command: Command, defaultMs: number): Command {
  const text = "read the trackers at this interval";
  return command.addOption(durationOption("--interval <duration>", text, INTERVAL_MS, defaultMs));
}
