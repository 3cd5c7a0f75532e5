import { UsageError } from "../errors.js";
import { isPowerOfTwo, PAGE_SIZE } from "../memory/address.js";
import type { Answer, DeviceCapabilities } from "./capabilities.js";
import type { DeviceTracker, DomainChoice, MeasuredChoice, Policy, TrackerChoice, Untracked } from "./choice.js";
import { isDeviceId } from "./owner.js";

/** Trackers with bits, each with who is asked for them. */
const BITS = { iommu: "the iommu_domain", device: "the device", pinned: "the mdev" } as const;
type BitTracker = keyof typeof BITS;

/**
 * Chooses a tracker, a granule and a domain for each device. A pure function: the same devices, in any order, and the same
 * policy give each device the same choice. It never chooses a tracker that a device lacks. It chooses an `unknown` tracker only
 * if the operator or a measurement names it.
 * @throws UsageError `UNKNOWN_DEVICE`, `UNKNOWN_TRACKER`, `TRACKER_LACKING`, `BAD_GRANULE`, `UNTRACKED_DEVICE`,
 * `CANNOT_SUSPEND`; for measurements `NOT_MEASURED`, `MODEL_CHANGED`, `TRACKER_GONE`. Each says in one line what would work
 */
export function chooseTrackers(probed: readonly DeviceCapabilities[], policy: Policy): TrackerChoice[] {
  checkDevices(probed, policy);
  const choices = probed.map((device) => chooseOne(device, policy));
  return shareDomains(choices, probed, policy);
}

function checkDevices(probed: readonly DeviceCapabilities[], policy: Policy): void {
  const ids = probed.map(({ id }) => id);
  const named = [policy.trackers, policy.granules, policy.untrackedDevices].flatMap(Object.keys);
  const unknown = named.find((id) => !ids.includes(id));
  if (unknown !== undefined) {
    throw new UsageError(`there is no device '${unknown}'`, {
      code: "UNKNOWN_DEVICE",
      remedy: ids.length === 0 ? "the machine has no devices" : `there are: ${[...ids].sort().join(", ")}`,
    });
  }
  const bad = ids.find((id, index) => !isDeviceId(id) || ids.indexOf(id) !== index);
  if (bad === undefined) return;
  const why = isDeviceId(bad) ? "is taken" : "would read as the name of another owner of dirty pages";
  throw new UsageError(`the device id '${bad}' ${why}`, { code: "UNKNOWN_DEVICE", remedy: "rename the device" });
}

function chooseOne(device: DeviceCapabilities, policy: Policy): TrackerChoice {
  const override = Object.hasOwn(policy.trackers, device.id) ? policy.trackers[device.id] : undefined;
  const measured = measuredFor(device, policy);
  const order = trackersInOrder(device, policy.order);
  const tracker =
    override ?? measured?.tracker ?? order.find((kind) => device.trackers[kind].available === true) ?? null;
  if (override !== undefined) checkOverride(device, override);

  const untracked = Object.hasOwn(policy.untrackedDevices, device.id) ? policy.untrackedDevices[device.id] : undefined;
  if (tracker === null || tracker === "everything") {
    // Asking for `everything` by name is the operator's answer to what happens to an untracked device.
    const fate = untracked ?? (override === "everything" ? "everything" : policy.untracked);
    return untrackedChoice(device, policy, fate, override === "everything");
  }
  const granule = chooseGranule(device, tracker, policy);
  const passed = override === undefined && measured !== null ? `${measuredBy(policy)} found another better` : null;
  return {
    device: device.id,
    tracker,
    granule,
    domain: ownDomain(device, tracker, granule),
    suspend: false,
    reason: `${measured?.reason ?? reasonFor(device, tracker, policy, override !== undefined)}${
      untracked === undefined ? "" : `; it has a tracker, so that '${untracked}' does not apply`
    }`,
    alternatives: alternatives(device, tracker, policy, passed ?? (override === undefined ? null : ASKED)),
  };
}

/** Why a tracker that a device has was not chosen. */
const ASKED = "the operator asked for another";

function measuredBy({ measured }: Policy): string {
  return `the benchmark of ${measured?.from}`;
}

/**
 * What was measured for a device that the operator asked nothing of; null: nothing was, and the order is to be followed.
 * @throws UsageError `NOT_MEASURED`, `MODEL_CHANGED`, `TRACKER_GONE`
 */
function measuredFor(device: DeviceCapabilities, { measured, trackers }: Policy): MeasuredChoice | null {
  const { id, model } = device;
  if (measured === undefined || Object.hasOwn(trackers, id)) return null;
  const choice = Object.hasOwn(measured.devices, id) ? measured.devices[id] : undefined;
  const again = `measure it with \`dirtmap bench trackers --device ${id}\` and the same --host, or name its tracker (--tracker ${id}=…)`;
  if (choice === undefined) {
    if (measured.unmeasured === "follow-order") return null;
    throw new UsageError(`${measured.from} has no benchmark of ${id}`, {
      code: "NOT_MEASURED",
      remedy: `${again}, or let what was not measured follow the order (--unmeasured iommu-first)`,
    });
  }
  if (choice.model !== model) {
    throw new UsageError(`${id} is now ${model}, and what ${measured.from} measured was ${choice.model}`, {
      code: "MODEL_CHANGED",
      remedy: again,
    });
  }
  const capability = device.trackers[choice.tracker];
  if (capability.available === false) {
    throw new UsageError(
      `${measured.from} recommends '${choice.tracker}' for ${id}, which it has no more: ${capability.why}`,
      { code: "TRACKER_GONE", remedy: again },
    );
  }
  const { granule } = choice;
  const pageSizes = pageSizesOf(device, choice.tracker);
  if (granule !== null && pageSizes.length > 0 && !pageSizes.includes(granule)) {
    throw new UsageError(
      `${measured.from} recommends a granule of ${size(granule)} for ${id}, which its tracker '${choice.tracker}' has no more`,
      { code: "TRACKER_GONE", remedy: again },
    );
  }
  return choice;
}

/** Which trackers are asked, first to last. For an mdev the shared tracker is the answer of the IOMMU's side. */
function trackersInOrder({ mdev }: DeviceCapabilities, order: Policy["order"]): BitTracker[] {
  const own = mdev ? "pinned" : "device";
  return order === "iommu-first" ? ["iommu", own] : [own, "iommu"];
}

/** The granules that a tracker can be asked for; empty where nothing tells. */
function pageSizesOf({ trackers }: DeviceCapabilities, tracker: DeviceTracker): readonly number[] {
  const capability = trackers[tracker];
  return capability.available === true ? capability.pageSizes : [];
}

/** The trackers with bits that a device has, or may have for all that is known. */
function possibleTrackers({ trackers }: DeviceCapabilities): BitTracker[] {
  return (Object.keys(BITS) as BitTracker[]).filter((kind) => trackers[kind].available !== false);
}

function checkOverride(device: DeviceCapabilities, tracker: DeviceTracker): void {
  const has = Object.entries(device.trackers).flatMap(([kind, { available }]) => (available === true ? [kind] : []));
  const may = possibleTrackers(device).filter((kind) => !has.includes(kind));
  const remedy = `${device.id} has: ${has.join(", ")}${may.length === 0 ? "" : `, and may have: ${may.join(", ")}`}`;
  if (!Object.hasOwn(device.trackers, tracker)) {
    throw new UsageError(`there is no tracker '${tracker}'`, { code: "UNKNOWN_TRACKER", remedy });
  }
  const capability = device.trackers[tracker];
  if (capability.available !== false) return;
  throw new UsageError(`${device.id} can't be tracked by '${tracker}': ${capability.why}`, {
    code: "TRACKER_LACKING",
    remedy,
  });
}

function chooseGranule(device: DeviceCapabilities, tracker: BitTracker, policy: Policy): number {
  const pageSizes = pageSizesOf(device, tracker);
  const asked = Object.hasOwn(policy.granules, device.id) ? policy.granules[device.id] : undefined;
  // The smallest by default: a coarser bit names pages that nobody wrote, and those are what a migration pays for.
  if (asked === undefined) return measuredFor(device, policy)?.granule ?? pageSizes[0] ?? PAGE_SIZE;
  if (!Number.isSafeInteger(asked) || !isPowerOfTwo(asked)) {
    throw badGranule(device, `${asked} bytes is no power of two`, tracker, pageSizes);
  }
  if (pageSizes.length > 0 ? !pageSizes.includes(asked) : asked < PAGE_SIZE) {
    throw badGranule(device, `its tracker '${tracker}' has no granule of ${size(asked)}`, tracker, pageSizes);
  }
  return asked;
}

function badGranule(
  { id }: DeviceCapabilities,
  problem: string,
  tracker: BitTracker,
  pageSizes: readonly number[],
): UsageError {
  const supported = pageSizes.length === 0 ? "a power of two from 4K up" : pageSizes.map(size).join(" or ");
  return new UsageError(`no such granule for ${id}: ${problem}`, {
    code: "BAD_GRANULE",
    remedy: `the tracker '${tracker}' takes ${supported}`,
  });
}

function untrackedChoice(device: DeviceCapabilities, policy: Policy, fate: Untracked, asked: boolean): TrackerChoice {
  const { id } = device;
  const possible = possibleTrackers(device);
  if (Object.hasOwn(policy.granules, id)) {
    throw new UsageError(`no such granule for ${id}: it gets no tracker whose granule could be chosen`, {
      code: "BAD_GRANULE",
      remedy: `leave out the granule of ${id}${possible.length === 0 ? "" : `, or give it a tracker (${possible.join(" or ")})`}`,
    });
  }
  const stops = canStop(device);
  const why = asked
    ? "the operator asked for no tracker"
    : trackersInOrder(device, policy.order)
        .map((kind) => missing(device, kind))
        .join(", and ");
  if (fate === "refuse") {
    const ways = [
      "count everything that it may write as dirty (everything)",
      ...(stops === false ? [] : ["suspend it for the migration (suspend)"]),
      ...(possible.length === 0 ? [] : [`name its tracker (--tracker ${id}=${possible[0]})`]),
    ];
    const none = possible.length === 0 || asked ? "has no dirty tracker" : "has no dirty tracker that is known of";
    throw new UsageError(`${id} ${none}: ${why}`, { code: "UNTRACKED_DEVICE", remedy: ways.join(", or ") });
  }
  if (fate === "suspend" && stops === false) {
    throw new UsageError(`${id} can't be suspended: it does not support STOP`, {
      code: "CANNOT_SUSPEND",
      remedy: "count everything that it may write as dirty instead (everything)",
    });
  }
  return {
    device: id,
    tracker: "everything",
    granule: null,
    domain: null,
    suspend: fate === "suspend",
    reason:
      fate === "suspend"
        ? `untracked, since ${why}: suspended for the migration, so that it writes nothing${stops === "unknown" ? " (whether it can be stopped is not known)" : ""}`
        : `untracked, since ${why}: everything that it may write counts as dirty`,
    alternatives: alternatives(device, "everything", policy, asked ? ASKED : null),
  };
}

/** Whether a device supports STOP, and so can be suspended. */
function canStop({ migration }: DeviceCapabilities): Answer {
  return migration === "unknown" ? "unknown" : migration?.stopCopy === true;
}

function missing(device: DeviceCapabilities, kind: BitTracker): string {
  const capability = device.trackers[kind];
  return capability.available === true ? `'${kind}' was passed over` : capability.why;
}

/** For an mdev, which has no iommu_domain, the emulated IOMMU stands in its place. */
function called({ mdev }: DeviceCapabilities, tracker: BitTracker): string {
  return mdev && tracker === "iommu" ? "the emulated IOMMU" : BITS[tracker];
}

function reasonFor(device: DeviceCapabilities, tracker: BitTracker, policy: Policy, asked: boolean): string {
  const capability = device.trackers[tracker];
  if (capability.available !== true) {
    return `the operator asked for '${tracker}', and whether it is there is not known: ${capability.why}`;
  }
  const { what } = capability;
  if (asked) return `the operator asked for '${tracker}': ${what}`;
  const [first] = trackersInOrder(device, policy.order);
  if (tracker === first) return `${policy.order}: ${called(device, first)} is asked first, and has ${what}`;
  return `${policy.order}: ${missing(device, first)}, so ${called(device, tracker)} is asked, and has ${what}`;
}

function alternatives(
  device: DeviceCapabilities,
  chosen: DeviceTracker,
  policy: Policy,
  passedOver: string | null,
): TrackerChoice["alternatives"] {
  const others = (Object.keys(BITS) as BitTracker[]).filter((kind) => kind !== chosen);
  return others.map((tracker) => {
    const capability = device.trackers[tracker];
    if (capability.available !== true) return { tracker, why: capability.why };
    return { tracker, why: passedOver ?? `${policy.order} asks ${chosen} before it` };
  });
}

/** Each device its own HWPT: on one that it shares, dirty bits have no owner. The tracker of mdevs is there to be shared. */
function ownDomain(device: DeviceCapabilities, tracker: BitTracker, granule: number): DomainChoice | null {
  if (device.mdev) {
    if (tracker !== "iommu") return null;
    return { key: "mdevs", type: "emulated", dirtyTracking: true, hugePages: true };
  }
  const dirtyTracking = tracker === "iommu";
  const hugePages = !dirtyTracking || !demandsSmallPages(device, granule);
  return { key: `own:${device.id}`, type: "hwpt", dirtyTracking, hugePages };
}

function demandsSmallPages(device: DeviceCapabilities, granule: number): boolean {
  const pageSizes = pageSizesOf(device, "iommu");
  return pageSizes.length !== 1 && granule === (pageSizes[0] ?? PAGE_SIZE);
}

/**
 * Puts devices that have an HWPT of their own, and are to share, into one. Its dirty tracking is on where one of them is
 * tracked by it; a device whose IOMMU can't track then stays out. One that needs small pages gives them to all.
 */
function shareDomains(
  choices: readonly TrackerChoice[],
  probed: readonly DeviceCapabilities[],
  policy: Policy,
): TrackerChoice[] {
  const shares = choices.map(({ domain }, index) => {
    if (domain?.type !== "hwpt") return null;
    const wanted = measuredFor(probed[index], policy)?.domain ?? policy.domain;
    return wanted === "shared" ? domain : null;
  });
  const members = shares.filter((domain) => domain !== null);
  const dirtyTracking = members.some((domain) => domain.dirtyTracking);
  const hugePages = members.every((domain) => domain.hugePages);
  return choices.map((choice, index) => {
    if (shares[index] === null) return choice;
    const asked = choice.tracker === "iommu";
    const tracks = dirtyTracking && (asked || probed[index].iommu?.dirtyTracking === true);
    return {
      ...choice,
      domain: tracks
        ? { key: "shared", type: "hwpt", dirtyTracking: true, hugePages }
        : { key: "shared-untracked", type: "hwpt", dirtyTracking: false, hugePages: true },
    };
  });
}

/** A size as the command line writes it: 4K, 2M, 1G. */
export function size(bytes: number): string {
  const units = ["", "K", "M", "G", "T"];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && value % 1024 === 0 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value}${units[unit]}`;
}
