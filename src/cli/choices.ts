/*
 * What options and scenarios let an operator choose from. Light, because `--help` reads it.
 */

export const POLICY_ORDERS = ["iommu-first", "device-first"] as const;
/** Trackers that an operator can ask a device for; vCPUs have theirs. */
export const DEVICE_TRACKERS = ["iommu", "device", "pinned", "everything"] as const;
export const DOMAINS = ["shared", "per-device"] as const;
export const UNTRACKED = ["everything", "suspend", "refuse"] as const;
export const DESIGNS = ["split", "type1", "aggregated", "iterating"] as const;
export const P2P = ["all", "none", "table"] as const;
/** The most page channels of a migration. */
export const MAX_CHANNELS = 16;
/** Bounds of the downtime limit, in milliseconds. */
export const DOWNTIME_LIMIT_MS = { min: 1, max: 3_600_000 } as const;
