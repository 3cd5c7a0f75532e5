import { UsageError } from "../../../errors.js";
import type { LinuxHost } from "../../../linux/host.js";
import type { IommufdForVmm } from "../../../linux/obstacles/host.js";
import type { LinuxDevice } from "../../../linux/sysfs/device.js";
import type { DeviceCapabilities } from "../../../tracking/capabilities.js";
import type { Policy, TrackerChoice } from "../../../tracking/choice.js";
import { chooseTrackers } from "../../../tracking/policy.js";
import { type LibvirtXml, libvirtXml } from "../../../vmm-options/libvirt-xml.js";
import { type QemuOptions, qemuOptions } from "../../../vmm-options/qemu-command-line.js";
import { MDEV_MODELS, type VmmAddress, type VmmDevice, vmmAddress } from "../../../vmm-options/vmm-device.js";
import { guessCapabilities } from "./guess.js";
import { type ProbedDevice, probeHost } from "./probe.js";

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

/** A device that no guest can get as things are, or that no VMM has an option for. */
export interface LeftOut {
  readonly id: string;
  readonly why: string;
}

/** Trackers for devices of this machine, and what makes a VMM use them. */
export interface HostPlan {
  readonly devices: readonly PlannedDevice[];
  readonly leftOut: readonly LeftOut[];
  /** What the options stand on as long as this kernel runs: sentences without a full stop. */
  readonly remarks: readonly string[];
  readonly qemu: QemuOptions;
  readonly libvirt: LibvirtXml;
}

/**
 * Chooses a tracker for each device. One that can't be asked is planned by what sysfs tells of it, marked as a guess: a plan is
 * wanted before devices are taken from their drivers, not after.
 * @param policy names devices by their ids
 * @param ids which; by default those that a VFIO driver has. A device that the policy names is planned too
 * @param signal ends it before the next device is asked
 * @throws UsageError `NOT_ASSIGNABLE` for a device that the policy names and no guest can get; and what
 * {@link chooseTrackers} throws
 */
export async function planHost(
  host: LinuxHost,
  policy: Policy,
  { ids, signal }: { ids?: readonly string[] | undefined; signal?: AbortSignal | undefined } = {},
): Promise<HostPlan> {
  const found = await host.devices();
  const named = [policy.trackers, policy.granules, policy.untrackedDevices].flatMap(Object.keys);
  const meant = found.filter((device) => ids?.includes(device.id) ?? device.vfio !== null);
  const wanted = new Set([...meant.map(({ id }) => id), ...named]);
  const { devices: probed } = await probeHost(host, { ids: [...wanted], signal });

  const leftOut = probed.flatMap(({ device: { id }, missing }) => {
    const no = missing.find(({ code }) => code === "NO_IOMMU_GROUP");
    return no === undefined ? [] : [{ ...no, id, why: `${no.message}; ${no.remedy}` }];
  });
  const never = leftOut.find(({ id }) => named.includes(id));
  if (never !== undefined) {
    throw new UsageError(`nothing can be chosen for ${never.id}, which no guest can get: ${never.message}`, {
      code: "NOT_ASSIGNABLE",
      remedy: `${never.remedy}, or leave out what is asked for ${never.id}`,
    });
  }
  const iommufd = host.iommufdForVmm(found);
  const noIommufd = iommufd.possible === false ? iommufd.why : null;
  const planned = probed.filter(({ device }) => !leftOut.some(({ id }) => id === device.id));
  const capabilities = planned.map(
    (one) => one.capabilities ?? guessCapabilities(one.device, one.vfioDriver, noIommufd),
  );
  const choices = chooseTrackers(capabilities, policy);
  const devices = planned.map((one, index) => ({
    choice: choices[index],
    capabilities: capabilities[index],
    basis: one.capabilities === null ? ("guessed" as const) : ("probed" as const),
    why: whyGuessed(one),
    iommuGroup: one.device.iommuGroup,
  }));
  const notForVmm: LeftOut[] = [];
  const forVmm = planned.flatMap(({ device }, index): VmmDevice[] => {
    const address = addressForVmm(device);
    if (typeof address === "string") {
      notForVmm.push({ id: device.id, why: address });
      return [];
    }
    const iommuGroup = device.kind === "mdev" || device.iommuGroup === null ? null : String(device.iommuGroup);
    const iommuUnit = device.iommu?.name ?? null;
    return [{ choice: choices[index], capabilities: capabilities[index], address, iommuGroup, iommuUnit }];
  });
  const vmmHost = { iommufd: iommufd.possible !== false };
  return {
    devices,
    leftOut: [...leftOut.map(({ id, why }) => ({ id, why })), ...notForVmm],
    remarks: forVmm.length === 0 ? [] : remarksOn(iommufd),
    qemu: qemuOptions(forVmm, vmmHost),
    libvirt: libvirtXml(forVmm, vmmHost),
  };
}

/**
 * Where QEMU and libvirt find a device; or why there is no option for it. They have PCI functions and mdevs of three
 * kinds; QEMU's vfio-platform is gone since 10.2.
 */
function addressForVmm({ id, kind, mdev }: LinuxDevice): VmmAddress | string {
  if (kind === "platform")
    return "it is a platform device, for which QEMU has no -device: the choice is for other programs";
  if (mdev === null) return vmmAddress(id);
  const { deviceApi } = mdev;
  if (deviceApi === null) return "its type in sysfs does not tell which device of QEMU takes it (device_api)";
  const model = MDEV_MODELS.find((candidate) => candidate === deviceApi);
  if (model === undefined) return `it is an mdev for ${deviceApi}, for which QEMU has no -device`;
  return vmmAddress(id, model);
}

function remarksOn({ possible, why, remedy }: IommufdForVmm): string[] {
  if (why === null) return [];
  if (possible === false) return [`the options are for type1, without iommufd: ${why}; to have it, ${remedy}`];
  return [`the options need iommufd, and ${why}; ${remedy}`];
}

function whyGuessed({ capabilities, missing }: ProbedDevice): string | null {
  if (capabilities !== null) return null;
  return missing[0]?.message ?? "there is no /dev/iommu to ask it through";
}
