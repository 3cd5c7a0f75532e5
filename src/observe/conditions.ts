import type { z } from "zod";
import type { Immutable } from "../immutable.js";
import type { runConditionsSchema } from "./conditions-schema.js";
import { formatMs, formatRate, formatShare, formatSize } from "./format.js";

/*
 * The conditions that a run ran under, and how they are told and compared. The dashboard's page has this module, too: it imports
 * nothing but how quantities are written.
 */

/** What a run's figures depend on besides its scenario; conditions-schema.ts describes each field. */
export type RunConditions = Immutable<z.output<typeof runConditionsSchema>>;

/** What is known of a run's conditions: all, or of a run that an older Dirtmap kept what its report says. */
export type KnownConditions = { readonly [Name in keyof RunConditions]?: RunConditions[Name] | undefined };

/** What stands in the place of a condition that was not kept. */
export const NOT_RECORDED = "not recorded";

/** One condition of a run, as text. */
export interface ConditionRow {
  readonly name: string;
  readonly value: string;
}

/** The conditions as text, in the order in which they are shown. */
export function conditionRows(known: KnownConditions): ConditionRow[] {
  return CONDITIONS.map(({ name, textOf }) => ({ name, value: textOf(known) ?? NOT_RECORDED }));
}

/** One condition of two runs. */
export interface ComparedCondition {
  readonly name: string;
  readonly values: readonly [string, string];
  /** null: it was not recorded of both. */
  readonly differs: boolean | null;
}

/** The conditions of two runs beside each other. */
export function compareConditions(left: KnownConditions, right: KnownConditions): ComparedCondition[] {
  return CONDITIONS.map(({ name, textOf, same }) => ({
    name,
    values: [textOf(left) ?? NOT_RECORDED, textOf(right) ?? NOT_RECORDED],
    differs: textOf(left) === null || textOf(right) === null ? null : !same(left, right),
  }));
}

interface Condition {
  readonly name: string;
  /** null: not recorded. */
  textOf(known: KnownConditions): string | null;
  /** Whether two runs, of which both recorded it, may be compared as far as it goes. */
  same(left: KnownConditions, right: KnownConditions): boolean;
}

/** @param same by default: whether the texts are equal */
function condition<Field extends keyof RunConditions>(
  name: string,
  field: Field,
  text: (value: RunConditions[Field]) => string,
  same = (a: RunConditions[Field], b: RunConditions[Field]) => text(a) === text(b),
): Condition {
  return {
    name,
    textOf: ({ [field]: value }) => (value === undefined ? null : text(value)),
    same: ({ [field]: a }, { [field]: b }) => a !== undefined && b !== undefined && same(a, b),
  };
}

const CONDITIONS: readonly Condition[] = [
  condition("Dirtmap", "software", (software) => software),
  condition("Host", "hosts", (hosts) => hosts.join(", ")),
  condition("Guest memory", "memoryBytes", formatSize),
  condition("Design", "design", (design) => design),
  condition("Policy", "policy", policyText),
  condition("Transport", "transport", ({ scheme, local }) =>
    local ? `${scheme}, to a process on the same machine` : scheme,
  ),
  condition("Bandwidth", "bandwidth", (rate) => (rate === null ? "unlimited" : formatRate(rate))),
  condition("Channels", "channels", String),
  condition("Downtime limit", "downtimeLimitMs", formatMs),
  condition("Rounds at most", "maxRounds", (rounds) => (rounds === null ? "unlimited" : String(rounds))),
  condition("Memories compared", "verify", (when) => (when === null ? "never" : `${when} the destination runs`)),
  condition("Checked after running on for", "runAfterMs", formatMs),
  condition(
    "Machine",
    "machine",
    ({ cpu, cores, memoryBytes }) => `${cpu}, ${cores} cores, ${formatSize(memoryBytes)}`,
  ),
  condition("System", "machine", ({ kernel, node }) => `${kernel}, Node ${node}`),
  condition("Load", "machine", loadText, similarLoad),
];

function policyText(policy: RunConditions["policy"]): string {
  const { order, measured, trackers, granules, domain, untracked, untrackedDevices } = policy;
  const perDevice = (named: Readonly<Record<string, string>>) =>
    Object.entries(named).map(([device, value]) => `${device}=${value}`);
  const sizes = Object.fromEntries(Object.entries(granules).map(([device, bytes]) => [device, formatSize(bytes)]));
  return [
    measured === null ? order : `measured by ${measured}, else ${order}`,
    ...perDevice(trackers),
    ...perDevice(sizes),
    ...(domain === null ? [] : [`domains ${domain}`]),
    ...(untracked === null ? [] : [`untracked ${[untracked, ...perDevice(untrackedDevices)].join(" ")}`]),
  ].join(", ");
}

function loadText({ load, stealShare }: RunConditions["machine"]): string {
  return `${load.toFixed(1)}${stealShare === null ? "" : `, stolen ${formatShare(stealShare)}`}`;
}

/** The load that one core more or less makes is within what differs from minute to minute. */
const SIMILAR_LOAD = 1;
/** Processor time that the hypervisor gave to others. */
const SIMILAR_STEAL = 0.05;

function similarLoad(a: RunConditions["machine"], b: RunConditions["machine"]): boolean {
  return (
    Math.abs(a.load - b.load) <= SIMILAR_LOAD && Math.abs((a.stealShare ?? 0) - (b.stealShare ?? 0)) <= SIMILAR_STEAL
  );
}
