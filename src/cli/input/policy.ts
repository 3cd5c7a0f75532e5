import { DEFAULTS } from "../../defaults.js";
import { readMeasured } from "../../evidence/recommend/recommendation.js";
import { isMeasured, MEASURED } from "../../scenario/choices.js";
import { DEFAULT_POLICY, type Policy } from "../../tracking/choice.js";
import { linkOf } from "./link.js";
import type { LinkOptions, PolicyOptions } from "./options.js";

/**
 * The part of a policy that says who decides: an order, or measurements with the order that devices without any follow.
 * @param defaults what a scenario says
 * @throws UsageError for a file that can't be read, is damaged, or newer than this program
 */
export function whoDecides(
  options: PolicyOptions & LinkOptions,
  defaults: Pick<PolicyOptions, "policy" | "unmeasured"> & LinkOptions = {},
): Pick<Policy, "order" | "measured"> {
  const policy = options.policy ?? defaults.policy ?? DEFAULT_POLICY.order;
  if (!isMeasured(policy)) return { order: policy };
  const unmeasured = options.unmeasured ?? defaults.unmeasured ?? DEFAULTS.unmeasured;
  const order = unmeasured === "refuse" ? DEFAULT_POLICY.order : unmeasured;
  const measured = readMeasured(policy.slice(MEASURED.length), {
    link: linkOf(options, defaults),
    order,
    unmeasured: unmeasured === "refuse" ? "refuse" : "follow-order",
  });
  // The operator's word on domains goes before what was measured.
  const devices = Object.entries(measured.devices).map(([id, choice]) => {
    return [id, { ...choice, domain: options.domain ?? choice.domain }] as const;
  });
  return { order, measured: { ...measured, devices: Object.fromEntries(devices) } };
}
