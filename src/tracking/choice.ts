import { DEFAULTS } from "../defaults.js";
import type { TrackerKind } from "./tracker.js";

/** The trackers that a device can be given. (vCPUs have a tracker of their own.) */
export const DEVICE_TRACKERS = ["iommu", "device", "pinned", "everything"] as const satisfies readonly TrackerKind[];
/** A tracker that a device can be given. */
export type DeviceTracker = (typeof DEVICE_TRACKERS)[number];

/** Treatments of a device without a tracker: all that it may write counts as dirty; it is suspended; the policy refuses. */
export const UNTRACKED = ["everything", "suspend", "refuse"] as const;
/** The treatment of a device without a tracker. */
export type Untracked = (typeof UNTRACKED)[number];

/**
 * The designs by which dirty pages get from the trackers to the migration. `split` is Dirtmap's: trackers share no state, and the
 * reader iterates over them. The others merge in the kernel, and exist for comparison (docs/designs.md).
 */
export const TRACKING_DESIGNS = ["split", "type1", "aggregated", "iterating"] as const;
/** The name of a design by which dirty pages get from the trackers to the migration. */
export type TrackingDesign = (typeof TRACKING_DESIGNS)[number];

/** Whom to ask first. */
export const POLICY_ORDERS = ["iommu-first", "device-first"] as const;
/** Whom to ask first. */
export type PolicyOrder = (typeof POLICY_ORDERS)[number];

/** What was measured to be best for a device. */
export interface MeasuredChoice {
  /** The model that was measured. */
  readonly model: string;
  readonly tracker: DeviceTracker;
  /** Bytes per dirty bit; null: the tracker's own choice, or there are no bits. */
  readonly granule: number | null;
  /** null: the tracker needs no domain. */
  readonly domain: "per-device" | "shared" | null;
  /** One sentence: which figures decided. */
  readonly reason: string;
}

/** Choices that a recommendation made from measurements. */
export interface MeasuredChoices {
  /** Where it comes from, for messages: a file's name. */
  readonly from: string;
  readonly devices: Readonly<Record<string, MeasuredChoice>>;
  /** What happens to a device that was not measured: refuse, or follow the policy's order. */
  readonly unmeasured: "refuse" | "follow-order";
}

/** The operator's wishes for the choice of trackers. */
export interface Policy {
  /** `iommu-first`: ask the iommu_domain, else the device, else there is no tracker. `device-first`: the device comes first. */
  readonly order: PolicyOrder;
  /** Measurements, which take precedence over the order. Default: none. */
  readonly measured?: MeasuredChoices;
  /** Per device, the tracker that it must get. Takes precedence over measurements and order. */
  readonly trackers: Readonly<Record<string, DeviceTracker>>;
  /** Per device, bytes per dirty bit. */
  readonly granules: Readonly<Record<string, number>>;
  /** `shared`: one HWPT for all devices that can share it. `per-device`: one each, which shows each device's dirty pages. */
  readonly domain: "per-device" | "shared";
  /** The treatment of a device without a tracker. */
  readonly untracked: Untracked;
  /** Per device, the treatment if it has no tracker. Takes precedence over {@link untracked}. */
  readonly untrackedDevices: Readonly<Record<string, Untracked>>;
}

/** How reports call a policy. */
export function policyName({ order, measured }: Policy): string {
  return measured === undefined ? order : "measured";
}

/** The policy of an operator without wishes. Spread it to override single fields. */
export const DEFAULT_POLICY: Policy = {
  order: DEFAULTS.policy,
  trackers: {},
  granules: {},
  domain: DEFAULTS.domain,
  untracked: DEFAULTS.untracked,
  untrackedDevices: {},
};

/** The HWPT, or for mdevs the emulated-IOMMU object, that a device is attached to while it is tracked. */
export interface DomainChoice {
  /** Devices with the same key are attached to the same object, if their IOMMUs allow that. */
  readonly key: string;
  /** `emulated`: the object that holds the tracker of several mdevs. */
  readonly type: "hwpt" | "emulated";
  readonly dirtyTracking: boolean;
  /** false: IOMMU_OPTION_HUGE_PAGES = 0, so that a bit stands for a page of the smallest size. */
  readonly hugePages: boolean;
}

/** The decision for one device, with its reason. */
export interface TrackerChoice {
  readonly device: string;
  readonly tracker: DeviceTracker;
  /** Bytes per bit to ask for; null for `everything`, which has no bits. */
  readonly granule: number | null;
  /** The object to attach the device to; null: its attachment stays. */
  readonly domain: DomainChoice | null;
  /** The device has no tracker and is stopped before copying starts, so that it writes nothing. */
  readonly suspend: boolean;
  /** The reason, as one sentence that quotes the rule. */
  readonly reason: string;
  /** The trackers that were not chosen, each with the reason. */
  readonly alternatives: readonly { readonly tracker: DeviceTracker; readonly why: string }[];
}
