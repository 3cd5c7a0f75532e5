/*
 * What scenarios, and the options of the same names, let an operator choose from. Light, because `--help` reads it: what it
 * imports imports nothing.
 */

import { POLICY_ORDERS } from "../tracking/choice.js";

export { MAX_CHANNELS } from "../migration/data-plane.js";
export { DOWNTIME_LIMIT_MS } from "../migration/limits.js";
export { DEVICE_TRACKERS, POLICY_ORDERS, TRACKING_DESIGNS as DESIGNS, UNTRACKED } from "../tracking/choice.js";

/** Before the name of a file: the policy is what was measured. */
export const MEASURED = "measured:";
/** What happens to a device that was not measured: refuse, or an order to follow. */
export const UNMEASURED = ["refuse", ...POLICY_ORDERS] as const;

export function isMeasured(text: string): text is `${typeof MEASURED}${string}` {
  return text.startsWith(MEASURED);
}

export const DOMAINS = ["shared", "per-device"] as const;
