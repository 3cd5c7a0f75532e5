import type { DeviceSummary } from "../../host/host.js";
import type { IommuGroup } from "./group.js";
import type { IommuUnit } from "./iommu.js";

/** A device that is assigned or could be, as sysfs shows it. */
export interface LinuxDevice extends DeviceSummary {
  /** A PCI address `0000:3b:00.1`, an mdev's UUID, a platform device's name. */
  readonly id: string;
  /** The path of its folder in sysfs, below its bus. */
  readonly path: string;
  /** null: no driver has it. */
  readonly driver: string | null;
  readonly group: IommuGroup | null;
  /** The IOMMU in front of it; null: none, as for an mdev. */
  readonly iommu: IommuUnit | null;
  /** null: the firmware doesn't say. */
  readonly numaNode: number | null;
  /** Its VFIO nodes; null if no VFIO driver has it. */
  readonly vfio: VfioNode | null;
  /** The identity of a PCI device; null for others. */
  readonly pci: PciIdentity | null;
  /** The identity of an mdev; null for others. */
  readonly mdev: MdevIdentity | null;
}

/** A device as VFIO offers it. */
export interface VfioNode {
  /** `vfio3`; null where the kernel gives VFIO devices no place in sysfs (before 6.1). */
  readonly name: string | null;
  /** True where the kernel has a character device for it (CONFIG_VFIO_DEVICE_CDEV). */
  readonly hasCdev: boolean;
  /** /dev/vfio/devices/vfio3, where that exists. */
  readonly cdev: string | null;
}

export interface PciIdentity {
  readonly vendor: number;
  readonly device: number;
  /** Base class, subclass and programming interface, 24 bits. */
  readonly class: number;
  /** What the class means, in a word or two: "ethernet", "nvme". */
  readonly function: string;
  /** Its part in SR-IOV: a VF names its PF, a PF has as many VFs as are on. null for neither. */
  readonly sriov: { readonly role: "vf"; readonly pf: string } | { readonly role: "pf"; readonly vfs: number } | null;
}

export interface MdevIdentity {
  /** The device that it is a part of. */
  readonly parent: string;
  /** `mtty-1`, `nvidia-471`; null where the link to it is gone. */
  readonly type: string | null;
  /** What a VMM drives it with: `vfio-pci`, `vfio-ap` …; null where its type doesn't say. */
  readonly deviceApi: string | null;
}
