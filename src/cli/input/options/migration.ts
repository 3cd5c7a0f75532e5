import { type Command, Option } from "commander";
import { DEFAULTS } from "../../../defaults.js";
import { DOWNTIME_LIMIT_MS, MAX_CHANNELS } from "../../../scenario/choices.js";
import { parseBandwidth, parseDuration, writeBandwidth, writeDuration } from "../../../units.js";
import { argument, type orElse, orScenario, wholeNumber } from "./values.js";

/** The link that a migration has, and the downtime that it may take. */
export interface LinkOptions {
  /** Bytes per second; Infinity: no limit. */
  readonly bandwidth?: number | undefined;
  /** Milliseconds. */
  readonly downtimeLimit?: number | undefined;
}

/** How a machine is moved, or would be. */
export interface MigrationOptions extends LinkOptions {
  readonly channels?: number;
  readonly maxRounds: number;
}

/** Adds the options of {@link LinkOptions}, of a migration that is estimated. @param or {@link orElse}, {@link orScenario} */
export function addLinkOptions(command: Command, or: typeof orElse): Command {
  return addLink(command, or, DEFAULTS.linkBandwidth);
}

/** Adds the options of {@link MigrationOptions}. */
export function addMigrationOptions(command: Command): Command {
  return addLink(command, orScenario, DEFAULTS.bandwidth)
    .option(
      "--channels <number>",
      `send pages over this many connections${orScenario(String(DEFAULTS.channels))}`,
      wholeNumber(1, MAX_CHANNELS),
    )
    .addOption(
      new Option("--max-rounds <number>", "limit the rounds of pre-copy")
        .argParser(wholeNumber(1, 10_000))
        .default(DEFAULTS.maxRounds, String(DEFAULTS.maxRounds)),
    );
}

function addLink(command: Command, or: typeof orElse, bandwidth: number): Command {
  return addBandwidthOption(command, or(writeBandwidth(bandwidth))).option(
    "--downtime-limit <duration>",
    `stop the machine only once it is expected to be down no longer than this: 50ms${or(writeDuration(DEFAULTS.downtimeLimitMs))}`,
    argument(downtimeLimit),
  );
}

/** Adds `--bandwidth` alone. @param after the end of its help: {@link orElse} */
export function addBandwidthOption(command: Command, after: string): Command {
  return command.option(
    "--bandwidth <rate>",
    `limit the bandwidth of the link: 500M (bytes per second), 10Gbit, or unlimited${after}`,
    argument(parseBandwidth),
  );
}

/** A downtime limit: a duration, brought into the range that is possible. */
function downtimeLimit(text: string): number {
  return Math.min(Math.max(parseDuration(text), DOWNTIME_LIMIT_MS.min), DOWNTIME_LIMIT_MS.max);
}
