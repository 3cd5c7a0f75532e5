import { DEFAULT_POLICY, type Policy } from "../tracking/choice.js";
import { device, type Parts } from "../tracking/fake-capabilities.test.helper.js";
import { chooseTrackers } from "../tracking/policy.js";
import type { VmmDevice } from "./vmm-device.js";

/** A device's parts, and where it is; by default a PCI function, or an mdev, alone in its IOMMU group. */
export interface VmmParts extends Parts {
  group?: string;
  /** The IOMMU that it is behind; by default it isn't known. */
  unit?: string;
}

/** Devices for a VMM, in the order given, with what the policy chooses for them. */
export function vmmDevices(parts: Readonly<Record<string, VmmParts>>, policy: Partial<Policy> = {}): VmmDevice[] {
  const probed = Object.entries(parts).map(([id, part]) => device(id, part));
  return chooseTrackers(probed, { ...DEFAULT_POLICY, ...policy }).map((choice, index) => {
    const capabilities = probed[index];
    const digit = index.toString(16);
    return {
      choice,
      capabilities,
      address: capabilities.mdev
        ? { bus: "mdev", uuid: `83b8f4f2-509f-382f-3c1e-e6bfe0fa100${digit}`, model: "vfio-pci" }
        : { bus: "pci", address: `0000:3b:0${digit}.0` },
      iommuUnit: parts[choice.device].unit ?? null,
      iommuGroup: capabilities.mdev ? null : (parts[choice.device].group ?? `of-${choice.device}`),
    };
  });
}
