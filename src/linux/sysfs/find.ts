import type { Roots } from "../roots.js";
import type { LinuxDevice } from "./device.js";
import { linkName } from "./files.js";
import { DEVICE_NAME } from "./group.js";
import { findMdevs } from "./mdev.js";
import { pciId } from "./name.js";
import { findPciDevices } from "./pci.js";
import { findPlatformDevices } from "./platform.js";

/**
 * Every device that is or could be assigned to a guest: on a VFIO driver already, or behind an IOMMU, or an mdev. PCI
 * devices come first, then mdevs, then platform devices, each by name. What vanishes while it is read is left out.
 */
export function findDevices(roots: Roots): LinuxDevice[] {
  return [...findPciDevices(roots), ...findMdevs(roots), ...findPlatformDevices(roots)];
}

/** True for a device that is on one of these buses, whether or not it could be assigned. @param name its id, or address */
export function isPresent(roots: Roots, name: string): boolean {
  const id = pciId(name) ?? name;
  return (
    DEVICE_NAME.test(id) &&
    ["pci", "mdev", "platform"].some((bus) => linkName(`${roots.sys}/bus/${bus}/devices/${id}`) !== null)
  );
}
