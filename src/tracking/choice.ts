import { DEFAULTS } from "../defaults.js";
import type { TrackerKind } from "./tracker.js";

/** Trackers that a device can be given; vCPUs have theirs. */
export const DEVICE_TRACKERS = ["iommu", "device", "pinned", "everything"] as const satisfies readonly TrackerKind[];
/** A tracker that a device can be given. */
export type DeviceTracker = (typeof DEVICE_TRACKERS)[number];

/** What happens to a device that no tracker follows. */
export const UNTRACKED = ["everything", "suspend", "refuse"] as const;
/** What happens to a device that no tracker follows. */
export type Untracked = (typeof UNTRACKED)[number];

/**
 * How dirty pages get from the trackers to the migration. `split` is this project's: trackers share no state, and the
 * reader iterates over them. The others merge in the kernel, and are there to be compared with it.
 */
export const TRACKING_DESIGNS = ["split", "type1", "aggregated", "iterating"] as const;
/** How dirty pages get from the trackers to the migration. */
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

/** What the operator wants. */
export interface Policy {
  /** `iommu-first`: ask the iommu_domain; where it can't, the device; where that can't either, no tracker. */
  readonly order: PolicyOrder;
  /** Measurements, which go before the order. Absent: there are none. */
  readonly measured?: MeasuredChoices;
  /** Per device: the tracker that it gets, whatever the order says. */
  readonly trackers: Readonly<Record<string, DeviceTracker>>;
  /** Per device: bytes per dirty bit. */
  readonly granules: Readonly<Record<string, number>>;
  /** One HWPT for all devices that can share it, or one each, so that each one's share of the dirty pages is seen. */
  readonly domain: "per-device" | "shared";
  /** What happens to a device without a tracker: all that it may write counts as dirty; it is suspended; refuse. */
  readonly untracked: Untracked;
  /** Per device: what happens to it if it has no tracker. */
  readonly untrackedDevices: Readonly<Record<string, Untracked>>;
}

/** How reports call a policy. */
export function policyName({ order, measured }: Policy): string {
  return measured === undefined ? order : "measured";
}

/** What applies where the operator says nothing; spread it, and override. */
export const DEFAULT_POLICY: Policy = {
  order: DEFAULTS.policy,
  trackers: {},
  granules: {},
  domain: DEFAULTS.domain,
  untracked: DEFAULTS.untracked,
  untrackedDevices: {},
};

/** The HWPT (for mdevs: the emulated-IOMMU object) that a device is to be attached to while it is tracked. */
export interface DomainChoice {
  /** Devices with the same key are attached to the same one, where their IOMMUs allow. */
  readonly key: string;
  /** `emulated`: the object that holds the tracker which mdevs share. */
  readonly type: "hwpt" | "emulated";
  readonly dirtyTracking: boolean;
  /** false: IOMMU_OPTION_HUGE_PAGES = 0, so that a bit stands for a page of the smallest size. */
  readonly hugePages: boolean;
}

/** What was decided for one device, and why. */
export interface TrackerChoice {
  readonly device: string;
  readonly tracker: DeviceTracker;
  /** Bytes per bit to ask for; null for `everything`, which has no bits. */
  readonly granule: number | null;
  /** null: the device stays attached to what it is. */
  readonly domain: DomainChoice | null;
  /** The device has no tracker and is stopped before copying starts, so that it writes nothing. */
  readonly suspend: boolean;
  /** One sentence that quotes the rule. */
  readonly reason: string;
  /** The trackers that were passed over, each with why. */
  readonly alternatives: readonly { readonly tracker: DeviceTracker; readonly why: string }[];
}
