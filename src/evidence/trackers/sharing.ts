import type { Machine } from "../../host/host.js";
import type { DeviceCapabilities } from "../../tracking/capabilities.js";
import { DEFAULT_POLICY, type TrackerChoice } from "../../tracking/choice.js";
import { chooseTrackers } from "../../tracking/policy.js";
import { comparePairs, interleave, summarize } from "../statistics.js";
import { compareDma } from "./dma-cost.js";
import type { SharingFigures } from "./result.js";
import type { BenchDevice } from "./running.js";
import { type BenchRead, TrackedDevices } from "./tracked.js";

/*
 * One HWPT for several devices against one for each: fewer page tables, fewer reads and fewer flushes, and nobody knows any
 * more which device wrote.
 */

/** Devices that can be tracked in one HWPT, as choices of both kinds. */
interface Group {
  readonly devices: readonly BenchDevice[];
  readonly granule: number | null;
  readonly separate: readonly TrackerChoice[];
  readonly shared: readonly TrackerChoice[];
}

/** Compares both for each group of devices that can share. */
export async function measureSharing(
  machine: Machine,
  devices: readonly BenchDevice[],
  capabilities: readonly DeviceCapabilities[],
  options: { repetitions: number; pairs: number; windowMs: number; signal: AbortSignal | undefined },
): Promise<SharingFigures[]> {
  const figures: SharingFigures[] = [];
  for (const group of await groupsOf(machine, devices, capabilities)) {
    const domains = { separate: 0, shared: 0 };
    const read = (choices: readonly TrackerChoice[], way: keyof typeof domains) => async (): Promise<BenchRead> => {
      options.signal?.throwIfAborted();
      const attached = group.devices.map((device) => device.attached);
      await using tracked = await TrackedDevices.open(machine, attached, choices);
      domains[way] = tracked.domains.length;
      await tracked.start();
      return await tracked.read({ quiesced: false });
    };
    for (const device of group.devices) await device.run();
    const ways = [read(group.separate, "separate"), read(group.shared, "shared")];
    const [separate, shared] = await interleave(ways, options.repetitions);
    const counted = group.devices.every(({ witness }) => witness !== null);
    figures.push({
      devices: group.devices.map(({ id }) => id),
      granule: group.granule,
      domains,
      separateReads: group.devices.map(({ id }) => summarize(separate.map(({ byOwner }) => byOwner[id]?.readMs ?? 0))),
      sharedRead: summarize(shared.map(({ ms }) => ms)),
      read: comparePairs(separate.map(({ ms }, index) => ({ a: ms, b: shared[index].ms }))),
      dma: counted ? await compareDma(machine, group.devices, [group.separate, group.shared], options) : null,
    });
    for (const device of group.devices) await device.stop();
  }
  return figures;
}

/** Devices with the tracker `iommu` that the kernel lets share, as it shows when it is asked to. */
async function groupsOf(
  machine: Machine,
  devices: readonly BenchDevice[],
  capabilities: readonly DeviceCapabilities[],
): Promise<Group[]> {
  const able = capabilities.filter(
    ({ id, mdev, trackers }) =>
      !mdev && trackers.iommu.available === true && devices.some((device) => device.id === id),
  );
  if (able.length < 2) return [];
  const choose = (domain: "shared" | "per-device") =>
    chooseTrackers(able, {
      ...DEFAULT_POLICY,
      domain,
      trackers: Object.fromEntries(able.map(({ id }) => [id, "iommu" as const])),
    });
  const separate = choose("per-device");
  const shared = choose("shared");
  const members = devices.filter(({ id }) => able.some((device) => device.id === id));
  await using tracked = await TrackedDevices.open(
    machine,
    members.map(({ attached }) => attached),
    shared,
  );
  return tracked.domains
    .filter((domain) => domain.devices.length > 1)
    .map((domain) => {
      const ofDomain = ({ device }: TrackerChoice) => domain.devices.includes(device);
      return {
        devices: members.filter(({ id }) => domain.devices.includes(id)),
        granule: separate.find(ofDomain)?.granule ?? null,
        separate: separate.filter(ofDomain),
        shared: shared.filter(ofDomain),
      };
    });
}
