import { UsageError } from "../../errors.js";
import { readMeasured } from "../../evidence/recommend/recommendation.js";
import { suggest } from "../../nearest.js";
import { isMeasured, MEASURED } from "../../scenario/choices.js";
import { DEFAULT_POLICY, type Policy } from "../../tracking/choice.js";
import { linkOf, type Said, settingsOf } from "./option-scenario-default.js";
import type { LinkOptions } from "./options/migration.js";
import type { PolicyOptions } from "./options/policy.js";

/** What was named device by device, with the names that the host has for them. */
export type ByDevice = <T>(named: Readonly<Record<string, T>> | undefined) => Record<string, T>;

/**
 * The policy: each part by the option, else the scenario, else the default.
 * @param byDevice turns the operator's names of devices into ids of the host
 * @throws UsageError for measurements that can't be read, or not be followed
 */
export function policyOf(
  options: PolicyOptions & LinkOptions,
  scenario: Said = {},
  byDevice: ByDevice = (named = {}) => ({ ...named }),
): Policy {
  const { domain, untracked } = settingsOf(options, scenario);
  // Measurements that the operator names are meant to be followed, also where the scenario names a tracker.
  const measured = options.policy !== undefined && isMeasured(options.policy);
  return {
    ...orderOf(options, scenario),
    trackers: { ...(measured ? {} : scenario.trackers), ...byDevice(options.tracker) },
    granules: { ...(measured ? {} : scenario.granules), ...byDevice(options.granule) },
    domain,
    untracked,
    // A mode for all devices is meant for those too that the scenario names.
    untrackedDevices: {
      ...(options.untracked?.all === undefined ? scenario.untrackedDevices : {}),
      ...byDevice(options.untracked?.devices),
    },
  };
}

/** The order in which trackers are chosen, or the measurements with the order that devices without any follow. */
function orderOf(options: PolicyOptions & LinkOptions, scenario: Said): Pick<Policy, "order" | "measured"> {
  const { policy, unmeasured } = settingsOf(options, scenario);
  if (!isMeasured(policy)) return { order: policy };
  const order = unmeasured === "refuse" ? DEFAULT_POLICY.order : unmeasured;
  const measured = readMeasured(policy.slice(MEASURED.length), {
    link: linkOf(options, scenario),
    order,
    unmeasured: unmeasured === "refuse" ? "refuse" : "follow-order",
  });
  // The operator's word on domains goes before what was measured.
  const devices = Object.entries(measured.devices).map(([id, choice]) => {
    return [id, { ...choice, domain: options.domain ?? choice.domain }] as const;
  });
  return { order, measured: { ...measured, devices: Object.fromEntries(devices) } };
}

/**
 * Refuses options that name a device which isn't there.
 * @throws UsageError `UNKNOWN_DEVICE`
 */
export function checkNamedDevices(ids: readonly string[], { tracker, granule, untracked }: PolicyOptions): void {
  const named = [tracker, granule, untracked?.devices].flatMap((option) => Object.keys(option ?? {}));
  checkDevices(ids, named);
}

/** Refuses a device that isn't there. @throws UsageError `UNKNOWN_DEVICE` */
export function checkDevices(ids: readonly string[], named: readonly string[] = []): void {
  const unknown = named.find((id) => !ids.includes(id));
  if (unknown === undefined) return;
  throw new UsageError(`there is no device '${unknown}'`, { code: "UNKNOWN_DEVICE", remedy: suggest(unknown, ids) });
}
