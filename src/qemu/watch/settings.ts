import type { Qemu } from "../qmp/qemu.js";

/** What of QEMU's settings decides how a migration goes; null: QEMU does not tell, or there is no limit. */
export interface WatchedSettings {
  readonly downtimeLimitMs: number | null;
  /** Bytes per second. */
  readonly maxBandwidth: number | null;
  /** What QEMU counts with for the switchover, in place of what it measures; bytes per second. */
  readonly switchoverBandwidth: number | null;
  readonly multifdChannels: number | null;
  readonly autoConverge: boolean;
  /** QEMU tells by itself how a migration's status changes. */
  readonly events: boolean;
}

/** By QEMU's names, as a report lists their changes. */
export const SETTING_NAMES = {
  downtimeLimitMs: "downtime-limit",
  maxBandwidth: "max-bandwidth",
  switchoverBandwidth: "avail-switchover-bandwidth",
  multifdChannels: "multifd-channels",
  autoConverge: "auto-converge",
  events: "events",
} as const satisfies Record<keyof WatchedSettings, string>;

const NAMES = Object.keys(SETTING_NAMES) as (keyof WatchedSettings)[];

export async function readSettings(qemu: Qemu): Promise<WatchedSettings> {
  const [capabilities, parameters] = await Promise.all([qemu.capabilities(), qemu.parameters()]);
  const positive = (name: string) => {
    const value = parameters[name];
    return typeof value === "number" && Number.isFinite(value) && value > 0 ? value : null;
  };
  return {
    downtimeLimitMs: positive(SETTING_NAMES.downtimeLimitMs),
    maxBandwidth: positive(SETTING_NAMES.maxBandwidth),
    switchoverBandwidth: positive(SETTING_NAMES.switchoverBandwidth),
    multifdChannels: capabilities.get("multifd") === true ? positive(SETTING_NAMES.multifdChannels) : null,
    autoConverge: capabilities.get(SETTING_NAMES.autoConverge) === true,
    events: capabilities.get(SETTING_NAMES.events) === true,
  };
}

/** By QEMU's names. */
export function namedSettings(settings: WatchedSettings): Record<string, number | boolean | null> {
  return Object.fromEntries(NAMES.map((name) => [SETTING_NAMES[name], settings[name]]));
}

/** The settings that differ. */
export function changesOf(before: WatchedSettings, after: WatchedSettings): (keyof WatchedSettings)[] {
  return NAMES.filter((name) => before[name] !== after[name]);
}
