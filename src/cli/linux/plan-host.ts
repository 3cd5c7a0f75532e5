import type { LinuxHost } from "../../linux/host.js";
import type { DeviceCapabilities } from "../../tracking/capabilities.js";
import type { Policy, TrackerChoice } from "../../tracking/choice.js";
import { chooseTrackers } from "../../tracking/policy.js";
import { type LibvirtXml, libvirtText, libvirtXml } from "../../tracking/vmm/libvirt.js";
import { type QemuOptions, qemuOptions, qemuText } from "../../tracking/vmm/qemu.js";
import { type VmmDevice, vmmAddress } from "../../tracking/vmm/vmm-device.js";
import { planText } from "../plan-text.js";
import { guessCapabilities } from "./guess.js";
import { type ProbedDevice, probeHost } from "./probe-host.js";
import { checkKnown } from "./select.js";

/** A device's choice, and what it stands on. */
export interface PlannedDevice {
  readonly choice: TrackerChoice;
  readonly capabilities: DeviceCapabilities;
  /** `probed`: the device said what it can do; `guessed`: it could not be asked. */
  readonly basis: "probed" | "guessed";
  /** Why it is a guess: a clause; null for what was probed. */
  readonly why: string | null;
  readonly iommuGroup: number | null;
}

/** A device that no guest can get as things are. */
export interface LeftOut {
  readonly id: string;
  readonly why: string;
}

/** Trackers for devices of this machine, and what makes a VMM use them. */
export interface HostPlan {
  readonly devices: readonly PlannedDevice[];
  readonly leftOut: readonly LeftOut[];
  readonly qemu: QemuOptions;
  readonly libvirt: LibvirtXml;
}

/**
 * Chooses a tracker for each device. One that can't be asked is planned by what sysfs tells of it, marked as a guess: a plan is
 * wanted before devices are taken from their drivers, not after.
 * @param ids which; by default those that a VFIO driver has. A device that the policy names is planned too
 * @param signal ends it before the next device is asked
 * @throws UsageError for a device that this machine doesn't have, and what {@link chooseTrackers} throws
 */
export async function planHost(
  host: LinuxHost,
  policy: Policy,
  { ids, signal }: { ids?: readonly string[] | undefined; signal?: AbortSignal | undefined } = {},
): Promise<HostPlan> {
  const found = await host.devices();
  const named = [policy.trackers, policy.granules, policy.untrackedDevices].flatMap(Object.keys);
  checkKnown([...(ids ?? []), ...named], found);
  const meant = found.filter((device) => ids?.includes(device.id) ?? device.vfio !== null);
  const wanted = new Set([...meant.map(({ id }) => id), ...named]);
  const { devices: probed } = await probeHost(host, { ids: [...wanted], signal });

  const leftOut = probed.flatMap(({ device: { id }, missing }) => {
    const never = missing.find(({ code }) => code === "NO_IOMMU_GROUP");
    return never === undefined ? [] : [{ id, why: `${never.message}; ${never.remedy}` }];
  });
  const planned = probed.filter(({ device }) => !leftOut.some(({ id }) => id === device.id));
  const capabilities = planned.map((one) => one.capabilities ?? guessCapabilities(one.device, one.vfioDriver));
  const choices = chooseTrackers(capabilities, policy);
  const devices = planned.map((one, index) => ({
    choice: choices[index],
    capabilities: capabilities[index],
    basis: one.capabilities === null ? ("guessed" as const) : ("probed" as const),
    why: whyGuessed(one),
    iommuGroup: one.device.iommuGroup,
  }));
  // QEMU and libvirt have PCI functions and mdevs; QEMU's vfio-platform is gone since 10.2.
  const forVmm = planned.flatMap(({ device }, index): VmmDevice[] => {
    if (device.kind === "platform") return [];
    const iommuGroup = device.kind === "mdev" || device.iommuGroup === null ? null : String(device.iommuGroup);
    return [{ choice: choices[index], capabilities: capabilities[index], address: vmmAddress(device.id), iommuGroup }];
  });
  const unknownToVmm = planned.flatMap(({ device: { id, kind } }) =>
    kind === "platform"
      ? [{ id, why: "it is a platform device, for which QEMU has no -device: the choice is for other programs" }]
      : [],
  );
  return {
    devices,
    leftOut: [...leftOut, ...unknownToVmm],
    qemu: qemuOptions(forVmm),
    libvirt: libvirtXml(forVmm),
  };
}

function whyGuessed({ capabilities, missing }: ProbedDevice): string | null {
  if (capabilities !== null) return null;
  return missing[0]?.message ?? "there is no /dev/iommu to ask it through";
}

const NOTHING =
  "no device of this machine is on a VFIO driver: name one with --device to plan what it would get (see `dirtmap probe --host linux`)";

function guessed(why: string): string {
  return `a guess from sysfs, since it could not be asked: ${why}`;
}

/** What `dirtmap plan --host linux` prints. Ends without a newline. */
export function hostPlanText({ devices, leftOut, qemu, libvirt }: HostPlan, policy: Policy): string {
  if (devices.length === 0 && leftOut.length === 0) return NOTHING;
  const remarks = new Map(
    devices.flatMap(({ choice, why }) => (why === null ? [] : [[choice.device, guessed(why)] as const])),
  );
  const choices = devices.map(({ choice }) => choice);
  return [
    ...(devices.length === 0 ? [] : [planText(choices, policy, remarks)]),
    ...(leftOut.length === 0 ? [] : [leftOut.map(({ id, why }) => `${id}: ${why}`).join("\n")]),
    ...(qemu.arguments.length === 0 ? [] : [`QEMU\n\n${qemuText(qemu)}`, `libvirt\n\n${libvirtText(libvirt)}`]),
  ].join("\n\n");
}

/** What has to be known of a plan whose options alone are printed: a line for each guess, and each device left out. */
export function hostPlanWarnings({ devices, leftOut }: HostPlan): string[] {
  if (devices.length === 0 && leftOut.length === 0) return [NOTHING];
  return [
    ...devices.flatMap(({ choice, why }) => (why === null ? [] : [`${choice.device}: ${guessed(why)}`])),
    ...leftOut.map(({ id, why }) => `${id}: ${why}`),
  ];
}
