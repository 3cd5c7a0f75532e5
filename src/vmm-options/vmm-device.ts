import { UsageError } from "../errors.js";
import type { DeviceCapabilities } from "../tracking/capabilities.js";
import type { TrackerChoice } from "../tracking/choice.js";

/** The devices of QEMU that take mdevs, each named as `device_api` of the mdev's type in sysfs is. */
export const MDEV_MODELS = ["vfio-pci", "vfio-ccw", "vfio-ap"] as const;
export type MdevModel = (typeof MDEV_MODELS)[number];

/** The address by which a VMM finds a device of this machine. */
export type VmmAddress =
  /** A PCI function, as sysfs writes it: `0000:3b:00.2`. */
  | { readonly bus: "pci"; readonly address: string }
  /** An mdev, by its UUID: /sys/bus/mdev/devices/UUID. */
  | { readonly bus: "mdev"; readonly uuid: string; readonly model: MdevModel };

/** A device to be given to a virtual machine monitor, with its abilities and the choice for it. */
export interface VmmDevice {
  readonly choice: TrackerChoice;
  readonly capabilities: DeviceCapabilities;
  readonly address: VmmAddress;
  /**
   * The name of its IOMMU group, the same for all devices in it; null if unknown, or for an mdev. The kernel allows the use of a
   * group through one iommufd only.
   */
  readonly iommuGroup: string | null;
  /** The name of its IOMMU, the same for all devices behind it. Absent: unknown. */
  readonly iommuUnit?: string | null;
}

const PCI_ADDRESS = /^([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/i;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/**
 * Returns the address of a device from the name of its folder in sysfs: `0000:3b:00.2`, or an mdev's UUID.
 * @param model of an mdev: the QEMU device that takes it (`device_api` of its type in sysfs). Default: `vfio-pci`
 * @throws UsageError `NO_VMM_ADDRESS` for anything else: a VMM can be given PCI functions and mdevs
 */
export function vmmAddress(name: string, model: MdevModel = "vfio-pci"): VmmAddress {
  if (PCI_ADDRESS.test(name)) return { bus: "pci", address: name.toLowerCase() };
  if (UUID.test(name)) return { bus: "mdev", uuid: name.toLowerCase(), model };
  throw noAddress(name);
}

/** A PCI address, checked, and its four numbers in hexadecimal. @throws UsageError `NO_VMM_ADDRESS` */
export function pciAddress(address: string): { text: string; domain: string; bus: string; slot: string; func: string } {
  const [text, domain, bus, slot, func] = PCI_ADDRESS.exec(address) ?? [];
  if (text === undefined) throw noAddress(address);
  return { text, domain, bus, slot, func };
}

type PciVmmAddress = Extract<VmmAddress, { bus: "pci" }>;

/** True for a PCI domain of more than 16 bits, such as those behind Intel's VMD. @throws UsageError `NO_VMM_ADDRESS` */
export function isLongDomain({ address }: PciVmmAddress): boolean {
  return Number.parseInt(pciAddress(address).domain, 16) > 0xffff;
}

/** The folder of a PCI function in sysfs. @throws UsageError `NO_VMM_ADDRESS` */
export function pciSysfsPath({ address }: PciVmmAddress): string {
  return `/sys/bus/pci/devices/${pciAddress(address).text}`;
}

/** The UUID of an mdev, checked. @throws UsageError `NO_VMM_ADDRESS` */
export function mdevUuid(uuid: string): string {
  if (!UUID.test(uuid)) throw noAddress(uuid);
  return uuid;
}

function noAddress(name: string): UsageError {
  return new UsageError(`'${name}' is neither the address of a PCI function nor the UUID of an mdev`, {
    code: "NO_VMM_ADDRESS",
    remedy: "a VMM takes devices like 0000:3b:00.2 or 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001",
  });
}

/**
 * A name per device in the order given, different from each other, of letters, digits and dashes only: QEMU's ids and
 * libvirt's aliases take neither the colons of a PCI address nor whatever else a device is called by.
 */
export function vmmNames(devices: readonly VmmDevice[]): string[] {
  const names: string[] = [];
  for (const { choice } of devices) {
    const name = choice.device.replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "") || "device";
    let unique = name;
    for (let copy = 2; names.includes(unique); copy++) unique = `${name}-${copy}`;
    names.push(unique);
  }
  return names;
}
