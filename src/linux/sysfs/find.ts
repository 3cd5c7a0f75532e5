import type { Roots } from "../roots.js";
import type { LinuxDevice } from "./device.js";
import { findMdevs } from "./mdev.js";
import { findPciDevices } from "./pci.js";
import { findPlatformDevices } from "./platform.js";

/**
 * Every device that is or could be assigned to a guest: on a VFIO driver already, or behind an IOMMU, or an mdev. PCI
 * devices come first, then mdevs, then platform devices, each by name. What vanishes while it is read is left out.
 */
export function findDevices(roots: Roots): LinuxDevice[] {
  return [...findPciDevices(roots), ...findMdevs(roots), ...findPlatformDevices(roots)];
}
