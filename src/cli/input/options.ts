import { type Command, InvalidArgumentError, Option } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { explain, UsageError } from "../../errors.js";
import type { Store } from "../../evidence/store/store.js";
import { suggest } from "../../nearest.js";
import {
  DESIGNS,
  DEVICE_TRACKERS,
  DOMAINS,
  DOWNTIME_LIMIT_MS,
  isMeasured,
  MAX_CHANNELS,
  MEASURED,
  POLICY_ORDERS,
  UNMEASURED,
  UNTRACKED,
} from "../../scenario/choices.js";
import { parseBandwidth, parseDuration, parseSize, writeBandwidth, writeDuration } from "../../units.js";
import { HOSTS, P2P } from "./choices.js";

/*
 * Options that several commands have. What is left out is the scenario's to say, and then that of the table of defaults.
 */

/** How help names a default, which can be typed as it stands there. */
export function orElse(typed: string): string {
  return ` (default: ${typed})`;
}

/** The same for what a scenario can say. */
export function orScenario(typed: string): string {
  return orElse(`the scenario's, else ${typed}`);
}

/** Whose devices: a scenario's on the emulated host, or this machine's. */
export interface HostOptions {
  readonly host: (typeof HOSTS)[number] | ServedHost;
  /** Of this machine; absent: the command's default. */
  readonly device?: readonly string[];
}

/** `vfio-user:PATH[,PATH…]`: devices behind these sockets. */
export type ServedHost = `${typeof SERVED}${string}`;

const SERVED = "vfio-user:";

/** The sockets that a host's name lists; null where it is another host. */
export function servedSockets(host: HostOptions["host"]): string[] | null {
  return isServed(host) ? host.slice(SERVED.length).split(",") : null;
}

function isServed(text: string): text is ServedHost {
  return text.startsWith(SERVED);
}

/** Which machine. */
export interface MachineOptions {
  readonly scenario: string;
  readonly memory?: number;
  readonly seed?: number;
  readonly p2p?: (typeof P2P)[number];
}

/** `--policy ORDER`, or `--policy measured:FILE`. */
export type PolicyOption = (typeof POLICY_ORDERS)[number] | MeasuredPolicy;
export type MeasuredPolicy = `${typeof MEASURED}${string}`;

/** How its devices are to be tracked. */
export interface PolicyOptions {
  readonly policy?: PolicyOption;
  readonly unmeasured?: (typeof UNMEASURED)[number];
  readonly tracker?: Readonly<Record<string, (typeof DEVICE_TRACKERS)[number]>>;
  readonly granule?: Readonly<Record<string, number>>;
  readonly domain?: (typeof DOMAINS)[number];
  readonly untracked?: UntrackedOption;
  readonly design?: (typeof DESIGNS)[number];
}

/** `--untracked MODE` for all devices, `--untracked DEV=MODE` for one. */
export interface UntrackedOption {
  readonly all?: (typeof UNTRACKED)[number];
  readonly devices: Readonly<Record<string, (typeof UNTRACKED)[number]>>;
}

/** How long a machine is watched, and how often its trackers are read. Milliseconds. */
export interface ObserveOption {
  readonly observe: number;
  readonly interval: number;
}

/** Bounds of an interval: a read takes a millisecond and more, and what happens within one can't be told apart. */
const INTERVAL_MS = { min: 5, max: 60_000 } as const;
/** Bounds of how long a machine is watched. */
export const OBSERVE_MS = { min: 10, max: 24 * 3_600_000 } as const;

/** A duration within bounds, both inclusive, in milliseconds. */
export function durationWithin({ min, max }: { min: number; max: number }): (text: string) => number {
  return argument((text) => {
    const ms = parseDuration(text);
    if (ms >= min && ms <= max) return ms;
    throw new UsageError(`'${text}' is not possible`, { code: "BAD_OPTION", remedy: `give ${min}ms to ${max}ms` });
  });
}

/** A duration within bounds that has a default, which help shows with its unit. */
export function durationOption(
  flags: string,
  text: string,
  bounds: { min: number; max: number },
  defaultMs: number,
): Option {
  return new Option(flags, text).argParser(durationWithin(bounds)).default(defaultMs, writeDuration(defaultMs));
}

/** Adds `--interval`. */
export function addIntervalOption(command: Command, defaultMs: number): Command {
  const text = "from one read of the trackers to the next";
  return command.addOption(durationOption("--interval <duration>", text, INTERVAL_MS, defaultMs));
}

/** Adds the options of {@link ObserveOption}. */
export function addObserveOptions(command: Command): Command {
  const text = "how long to watch the machine";
  return addIntervalOption(
    command.addOption(durationOption("--observe <duration>", text, OBSERVE_MS, DEFAULTS.observeMs)),
    DEFAULTS.observeIntervalMs,
  );
}

/** Options that only a scenario's machine goes with. */
export const OF_SCENARIOS = [
  ...["scenario", "memory", "seed", "p2p", "policy", "tracker", "granule", "domain", "untracked", "design"],
  ...["observe", "interval"],
] as const;

/**
 * Refuses options that don't go with another.
 * @throws UsageError `WRONG_OPTION`
 */
export function refuseOptions(command: Command, names: readonly string[], why: string): void {
  const given = names.find((name) => command.getOptionValueSource(name) === "cli");
  if (given === undefined) return;
  throw new UsageError(`--${given} can't be given here: ${why}`, {
    code: "WRONG_OPTION",
    remedy: "leave out one of the two",
  });
}

/** Makes a parser's UsageError one that commander reports with the option's name. */
export function argument<T>(parse: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return parse(text);
    } catch (error) {
      if (error instanceof UsageError) throw new InvalidArgumentError(explain(error));
      throw error;
    }
  };
}

/** A whole number in a range, both ends inclusive. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return argument((text) => {
    const value = Number(text);
    if (/^\d{1,16}$/.test(text) && value >= min && value <= max) return value;
    throw new UsageError(`'${text}' is not possible`, { code: "BAD_OPTION", remedy: `give ${min} to ${max}` });
  });
}

/** One of a list of words. */
export function oneOf<Word extends string>(words: readonly Word[], what: string): (text: string) => Word {
  return (text) => {
    const word = words.find((candidate) => candidate === text);
    if (word !== undefined) return word;
    throw new UsageError(`there is no ${what} '${text}'`, { code: "BAD_OPTION", remedy: suggest(text, words) });
  };
}

/** Text that is there. */
export function nonEmpty(text: string): string {
  if (text !== "") return text;
  throw new UsageError("it is empty", { code: "BAD_OPTION", remedy: "write what is meant" });
}

/** `DEV=VALUE`, as often as wanted; the last one for a device wins. */
export function perDevice<T>(
  parse: (text: string) => T,
): (text: string, before?: Record<string, T>) => Record<string, T> {
  return (text, before = {}) => {
    const at = text.indexOf("=");
    if (at < 1) throw new InvalidArgumentError(`'${text}' has no device; write DEV=VALUE`);
    return { ...before, [text.slice(0, at)]: argument(parse)(text.slice(at + 1)) };
  };
}

function untracked(text: string, before: UntrackedOption = { devices: {} }): UntrackedOption {
  const mode = argument(oneOf(UNTRACKED, "mode"));
  if (!text.includes("=")) return { ...before, all: mode(text) };
  return { ...before, devices: perDevice(mode)(text, { ...before.devices }) };
}

/** An option whose value is one of a list of words. @param after what its help ends with: {@link orElse} */
export function choice<Word extends string>(
  flags: string,
  words: readonly Word[],
  what: string,
  text: string,
  after = "",
): Option {
  return new Option(flags, `${text}: ${words.join(", ")}${after}`).argParser(argument(oneOf(words, what)));
}

/**
 * Adds the options of {@link HostOptions}.
 * @param devices which devices of this machine are meant by default
 * @param served the command also takes {@link ServedHost}
 * @param everywhere `--device` also names devices of other hosts than this machine
 */
export function addHostOptions(
  command: Command,
  devices: string,
  { served = false, everywhere = false }: { served?: boolean; everywhere?: boolean } = {},
): Command {
  const hosts = served ? [...HOSTS, `${SERVED}PATH[,PATH…]`] : HOSTS;
  const whose = `whose devices: a scenario's, this machine's${served ? ", or those served at sockets" : ""}`;
  return command
    .addOption(
      new Option("--host <host>", `${whose}: ${hosts.join(", ")}`)
        .argParser(argument((text) => (served && isServed(text) ? servedHost(text) : oneOf(HOSTS, "host")(text))))
        .default(DEFAULTS.host, DEFAULTS.host),
    )
    .option(
      "--device <id...>",
      `${everywhere ? "devices: a scenario's ids, of this machine" : "devices of this machine:"} 3b:00.1, an mdev's UUID, eth0, nvme0n1, a path in sysfs, libvirt's pci_0000_3b_00_1 (default: ${devices})`,
    );
}

/** @throws UsageError `BAD_OPTION` for a list with nothing in it */
function servedHost(text: ServedHost): ServedHost {
  if (servedSockets(text)?.every((path) => path !== "")) return text;
  throw new UsageError(`'${text}' names no socket`, { code: "BAD_OPTION", remedy: `write ${SERVED}PATH[,PATH…]` });
}

/**
 * Refuses options that go with the other host than the one that was asked for.
 * @param anywhere options that the command has a meaning for on every host
 * @throws UsageError `WRONG_HOST`
 */
export function checkHostOptions(command: Command, host: HostOptions["host"], anywhere: readonly string[] = []): void {
  const emulated = ["scenario", "memory", "seed", "p2p", "design"].filter((name) => !anywhere.includes(name));
  const linux = ["device", "only"].filter((name) => !anywhere.includes(name));
  const others = host === "linux" ? emulated : host === "emulated" ? linux : [...emulated, ...linux];
  const given = others.find((name) => command.getOptionValueSource(name) === "cli");
  if (given === undefined) return;
  const isOfScenario = emulated.includes(given);
  const what = isOfScenario ? "describes a machine of the emulated host" : "is for devices of this machine";
  const whose = host === "linux" ? "this machine" : "devices that are served";
  const is = host === "emulated" ? "the host is the emulated one" : `--host ${host} is ${whose}`;
  throw new UsageError(`--${given} ${what}, and ${is}`, {
    code: "WRONG_HOST",
    remedy: host === "emulated" ? "add --host linux" : `leave out --${given}, or --host ${host}`,
  });
}

/** Adds the options of {@link MachineOptions}. */
export function addMachineOptions(command: Command): Command {
  return command
    .addOption(
      new Option("-s, --scenario <name|file>", "the machine and its workload; see `dirtmap scenarios`").default(
        DEFAULTS.scenario,
        DEFAULTS.scenario,
      ),
    )
    .option("--memory <size>", "guest memory instead of the scenario's: 512M, 1G …", argument(parseSize))
    .option("--seed <number>", "seed of the memory's first content, and of disks", wholeNumber(0, 0xffffffff))
    .addOption(choice("--p2p <mode>", P2P, "P2P mode", "peer-to-peer DMA"));
}

/** @throws UsageError `BAD_OPTION` */
function policyOption(text: string): PolicyOption {
  if (!isMeasured(text)) return oneOf([...POLICY_ORDERS, `${MEASURED}FILE`], "policy")(text) as PolicyOption;
  if (text.length > MEASURED.length) return text;
  throw new UsageError(`'${text}' names no file`, {
    code: "BAD_OPTION",
    remedy: `write ${MEASURED}FILE, of \`dirtmap recommend --output FILE\``,
  });
}

/** Adds the options of {@link PolicyOptions}. */
export function addPolicyOptions(command: Command): Command {
  return command
    .addOption(
      new Option(
        "--policy <order>",
        `whom to ask first, or what was measured: ${[...POLICY_ORDERS, `${MEASURED}FILE`].join(", ")}${orScenario(DEFAULTS.policy)}`,
      ).argParser(argument(policyOption)),
    )
    .addOption(
      choice(
        "--unmeasured <order>",
        UNMEASURED,
        "mode",
        "with --policy measured:FILE, devices without a benchmark",
        orScenario(DEFAULTS.unmeasured),
      ),
    )
    .addOption(
      new Option(
        "--tracker <dev=tracker...>",
        `a device's tracker, whatever the policy says: ${DEVICE_TRACKERS.join(", ")}`,
      ).argParser(perDevice(oneOf(DEVICE_TRACKERS, "tracker"))),
    )
    .addOption(
      new Option("--granule <dev=size...>", "bytes per dirty bit of a device: 4K, 2M …").argParser(
        perDevice(parseSize),
      ),
    )
    .addOption(
      choice("--domain <mode>", DOMAINS, "mode", "HWPTs of devices on the system IOMMU", orScenario(DEFAULTS.domain)),
    )
    .addOption(
      new Option(
        "--untracked <[dev=]mode...>",
        `devices without a tracker, or one of them: ${UNTRACKED.join(", ")}${orScenario(DEFAULTS.untracked)}`,
      ).argParser(untracked),
    )
    .addOption(
      choice("--design <design>", DESIGNS, "design", "who merges the trackers' answers", orScenario(DEFAULTS.design)),
    );
}

/** The migration that is estimated. */
export interface LinkOptions {
  /** Bytes per second; Infinity: no limit. */
  readonly bandwidth?: number | undefined;
  /** Milliseconds. */
  readonly downtimeLimit?: number | undefined;
}

/** A downtime limit: a duration, brought into the range that is possible. */
export function downtimeLimit(text: string): number {
  return Math.min(Math.max(parseDuration(text), DOWNTIME_LIMIT_MS.min), DOWNTIME_LIMIT_MS.max);
}

/** Adds the options of {@link LinkOptions}. @param or how help names the defaults: a command may have a scenario */
export function addLinkOptions(command: Command, or: typeof orElse): Command {
  return addBandwidthOption(command, or(writeBandwidth(DEFAULTS.linkBandwidth))).option(
    "--downtime-limit <duration>",
    `that a migration must keep: 50ms${or(writeDuration(DEFAULTS.downtimeLimitMs))}`,
    argument(downtimeLimit),
  );
}

function addBandwidthOption(command: Command, after: string): Command {
  return command.option(
    "--bandwidth <rate>",
    `of the link: 500M (bytes per second), 10Gbit, or unlimited${after}`,
    argument(parseBandwidth),
  );
}

/** How a machine is moved, or would be. */
export interface MigrationOptions extends LinkOptions {
  readonly channels?: number;
  readonly maxRounds: number;
}

/** Adds the options of {@link MigrationOptions}. */
export function addMigrationOptions(command: Command): Command {
  command.option(
    "--downtime-limit <duration>",
    `expected downtime at which the machine may be stopped: 50ms${orScenario(writeDuration(DEFAULTS.downtimeLimitMs))}`,
    argument(downtimeLimit),
  );
  return addBandwidthOption(command, orScenario(writeBandwidth(DEFAULTS.bandwidth)))
    .option(
      "--channels <number>",
      `connections that pages travel over${orScenario(String(DEFAULTS.channels))}`,
      wholeNumber(1, MAX_CHANNELS),
    )
    .addOption(
      new Option("--max-rounds <number>", "pre-copy rounds at most")
        .argParser(wholeNumber(1, 10_000))
        .default(DEFAULTS.maxRounds, String(DEFAULTS.maxRounds)),
    );
}

/** Where what is found out is kept; `store` is false with `--no-store`. */
export interface StoreOption {
  readonly store?: string | false;
}

/**
 * Adds `--store PATH`.
 * @param optional also `--no-store`, for commands that do something else in the first place
 */
export function addStoreOption(command: Command, { optional = false } = {}): Command {
  const where = "$XDG_DATA_HOME/dirtmap/evidence.db, or below ~/.local/share";
  command.option("--store <path>", `the file that runs and benchmarks are kept in (default: ${where})`);
  return optional ? command.option("--no-store", "keep nothing") : command;
}

/** Opens the store that was asked for; null: none was wanted. @throws UsageError as `openStore` does */
export async function openStoreOf({ store }: StoreOption, options?: { waitMs: number }): Promise<Store | null> {
  if (store === false) return null;
  const { openStore } = await import("../../evidence/store/store.js");
  return openStore(store, options);
}
