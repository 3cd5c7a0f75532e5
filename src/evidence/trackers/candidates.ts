import type { DeviceCapabilities } from "../../tracking/capabilities.js";
import { DEFAULT_POLICY, DEVICE_TRACKERS, type DeviceTracker, type TrackerChoice } from "../../tracking/choice.js";
import { chooseTrackers } from "../../tracking/policy.js";

/** A way in which a device can be tracked, alone in its domain. */
export interface Candidate {
  readonly device: string;
  readonly tracker: DeviceTracker;
  /** Bytes per bit that are asked for; null: it has no bits, or the host can't tell which there are. */
  readonly granule: number | null;
  readonly choice: TrackerChoice;
}

/** Every tracker that a device has, with each granule that it can be asked for. `everything` is the last. */
export function candidatesOf(device: DeviceCapabilities): Candidate[] {
  return DEVICE_TRACKERS.flatMap((tracker) => {
    const capability = device.trackers[tracker];
    if (capability.available !== true) return [];
    const granules = capability.pageSizes.length === 0 ? [null] : capability.pageSizes;
    return granules.map((granule) => ({
      device: device.id,
      tracker,
      granule,
      choice: choose(device, tracker, granule),
    }));
  });
}

function choose(device: DeviceCapabilities, tracker: DeviceTracker, granule: number | null): TrackerChoice {
  const [choice] = chooseTrackers([device], {
    ...DEFAULT_POLICY,
    trackers: { [device.id]: tracker },
    granules: granule === null ? {} : { [device.id]: granule },
  });
  // An emulated IOMMU too: devices that would share it are measured alone here, and together in sharing.ts.
  return choice.domain === null ? choice : { ...choice, domain: { ...choice.domain, key: `own:${device.id}` } };
}
