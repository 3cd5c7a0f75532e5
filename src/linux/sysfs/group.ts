import type { Roots } from "../roots.js";
import { entries, linkName, readNumber, readValue } from "./files.js";

/** An IOMMU group: the devices that the IOMMU can't tell apart, and which therefore are assigned together or not at all. */
export interface IommuGroup {
  readonly id: number;
  /** All of them, the device that was asked about too. */
  readonly members: readonly GroupMember[];
  /**
   * VFIO made it for a device that has no IOMMU (the parameter enable_unsafe_noiommu_mode): there is nothing that keeps
   * the device's DMA within a guest. (An mdev's group bears the same name, and needs no IOMMU.)
   */
  readonly noIommu: boolean;
}

export interface GroupMember {
  readonly id: string;
  readonly driver: string | null;
  /** Its driver does DMA of the kernel's, so that none of the group may be assigned. */
  readonly holdsBack: boolean;
}

/**
 * Drivers besides VFIO's that leave the DMA of their devices to others (driver_managed_dma in drivers/pci), so that
 * they may stay in a group that is assigned.
 */
const HARMLESS_DRIVERS = ["pcieport", "pci-stub"];

/** Group numbers come from an IDA of ints. */
const MAX_GROUP = 2 ** 31 - 1;

/** What may be a device's name in sysfs, whatever its bus. */
export const DEVICE_NAME = /^[\x21-\x2e\x30-\x7e]{1,128}$/;

/**
 * True for a driver that hands its devices to user space. All that the kernel has are named so: vfio-pci, mlx5_vfio_pci,
 * vfio-platform, xe-vfio-pci …
 */
export function isVfioDriver(driver: string): boolean {
  return /(^|[-_])vfio([-_]|$)/.test(driver);
}

/** The group of a device, or null where it is in none. @param device its folder in sysfs */
export function readGroup(roots: Roots, device: string): IommuGroup | null {
  const name = linkName(`${device}/iommu_group`);
  if (name === null || !/^\d{1,10}$/.test(name) || Number(name) > MAX_GROUP) return null;
  const folder = `${roots.sys}/kernel/iommu_groups/${name}`;
  return {
    id: Number(name),
    members: entries(`${folder}/devices`, DEVICE_NAME).map((id) => readMember(`${folder}/devices/${id}`, id)),
    noIommu: readValue(`${folder}/name`) === "vfio-noiommu",
  };
}

function readMember(device: string, id: string): GroupMember {
  const driver = linkName(`${device}/driver`);
  const bus = linkName(`${device}/subsystem`);
  // A VFIO driver from outside the kernel may be called anything; what it has made is there to be seen.
  const onVfio =
    driver !== null && (isVfioDriver(driver) || entries(`${device}/vfio-dev`, /^vfio\d{1,10}$/).length > 0);
  const free = driver === null || HARMLESS_DRIVERS.includes(driver) || onVfio || bus === "mdev";
  return { id, driver, holdsBack: !free };
}

/** The NUMA node; null where the firmware names none (-1). */
export function readNumaNode(device: string): number | null {
  return readNumber(`${device}/numa_node`, { min: 0, max: 1023 });
}
