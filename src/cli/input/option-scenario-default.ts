import { DEFAULTS } from "../../defaults.js";
import { type Link, UNLIMITED_BANDWIDTH } from "../../evidence/trackers/estimate.js";
import type { MigrationDefaults } from "../../scenario/scenario.js";
import type { LinkOptions, MigrationOptions } from "./options/migration.js";
import type { PolicyOptions } from "./options/policy.js";

/*
 * Where a setting that a scenario can say comes from: the operator's option, else the scenario, else the table of defaults.
 * An option that no scenario can say has its default from the same table, where it is declared.
 */

/** What a scenario says of how its machine is tracked and moved; without a scenario, nothing. */
export type Said = Partial<MigrationDefaults>;

/** The settings that are looked up the same way in all three. */
export interface Settings
  extends Pick<MigrationDefaults, "policy" | "unmeasured" | "domain" | "untracked" | "design" | "channels"> {
  /** Milliseconds. */
  readonly downtimeLimit: number;
  /** Bytes per second; Infinity: no limit. */
  readonly bandwidth: number;
  /** Milliseconds. */
  readonly runAfter: number;
}

/** What an option may say of them. */
export interface Options extends Omit<PolicyOptions, "tracker" | "granule">, Partial<MigrationOptions> {
  readonly runAfter?: number;
}

const TABLE: Settings = {
  policy: DEFAULTS.policy,
  unmeasured: DEFAULTS.unmeasured,
  domain: DEFAULTS.domain,
  untracked: DEFAULTS.untracked,
  design: DEFAULTS.design,
  channels: DEFAULTS.channels,
  downtimeLimit: DEFAULTS.downtimeLimitMs,
  bandwidth: DEFAULTS.bandwidth,
  runAfter: DEFAULTS.runAfterMs,
};

/** What may be left out. */
type Layer = { readonly [Key in keyof Settings]?: Settings[Key] | undefined };

/** Looks each setting up: the option, else the scenario, else the default. */
export function settingsOf(options: Options, scenario: Said = {}, table: Settings = TABLE): Settings {
  const asked: Layer = { ...options, untracked: options.untracked?.all };
  const said: Layer = scenario;
  const find = <Key extends keyof Settings>(key: Key): Settings[Key] => asked[key] ?? said[key] ?? table[key];
  return {
    policy: find("policy"),
    unmeasured: find("unmeasured"),
    domain: find("domain"),
    untracked: find("untracked"),
    design: find("design"),
    channels: find("channels"),
    downtimeLimit: find("downtimeLimit"),
    bandwidth: find("bandwidth"),
    runAfter: find("runAfter"),
  };
}

/** The link of a migration that is only estimated: without a limit of its own, a common one. */
export function linkOf(options: LinkOptions, scenario: Said = {}): Link {
  const { bandwidth, downtimeLimit } = settingsOf(options, scenario, { ...TABLE, bandwidth: DEFAULTS.linkBandwidth });
  return {
    bandwidth: Number.isFinite(bandwidth) ? bandwidth : UNLIMITED_BANDWIDTH,
    downtimeLimitMs: downtimeLimit,
  };
}
