import type { Roots } from "../roots.js";
import type { LinuxDevice, PciIdentity } from "./device.js";
import { entries, linkName, readNumber } from "./files.js";
import { readGroup, readNumaNode } from "./group.js";
import { readIommu } from "./iommu.js";
import { readVfioNode } from "./vfio-node.js";

/** domain:bus:device.function; domains behind Intel's VMD have more than four digits. */
export const PCI_ADDRESS = /^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]$/;

/** Base class 06h, bridges, and the subclass "other" in it (PCI Code and ID Assignment Specification 1.16, section 1). */
const CLASS_BRIDGE = 0x06;
const CLASS_OTHER_BRIDGE = 0x0680;

/**
 * Words for the classes of devices that guests get, by base class and subclass, else by base class (same
 * specification).
 */
const FUNCTIONS: ReadonlyMap<number, string> = new Map([
  [0x0100, "scsi"],
  [0x0106, "sata"],
  [0x0107, "sas"],
  [0x0108, "nvme"],
  [0x0200, "ethernet"],
  [0x0207, "infiniband"],
  [0x0300, "vga"],
  [0x0302, "3d"],
  [0x0403, "audio"],
  [0x0680, "switch"],
  [0x0c03, "usb"],
  [0x01, "storage"],
  [0x02, "network"],
  [0x03, "display"],
  [0x04, "multimedia"],
  [0x05, "memory"],
  [0x07, "serial"],
  [0x08, "peripheral"],
  [0x0b, "processor"],
  [0x0c, "bus"],
  [0x10, "crypto"],
  [0x11, "signal"],
  [0x12, "accelerator"],
]);

/** All PCI devices that are or could be assigned. */
export function findPciDevices(roots: Roots): LinuxDevice[] {
  const bus = `${roots.sys}/bus/pci/devices`;
  return entries(bus, PCI_ADDRESS).flatMap((id) => readPciDevice(roots, id) ?? []);
}

/** A PCI device, or null where it is no candidate, or gone. */
function readPciDevice(roots: Roots, id: string): LinuxDevice | null {
  const path = `${roots.sys}/bus/pci/devices/${id}`;
  const vendor = readNumber(`${path}/vendor`, { min: 0, max: 0xffff });
  const device = readNumber(`${path}/device`, { min: 0, max: 0xffff });
  const pciClass = readNumber(`${path}/class`, { min: 0, max: 0xff_ffff });
  if (vendor === null || device === null || pciClass === null) return null;
  const driver = linkName(`${path}/driver`);
  const vfio = readVfioNode(roots, path, driver);
  const group = readGroup(roots, path);
  if (vfio === null && (group === null || isBridge(pciClass))) return null;
  return {
    id,
    model: driver ?? "no driver",
    kind: "pci",
    iommuGroup: group?.id ?? null,
    path,
    driver,
    group,
    iommu: readIommu(roots, path),
    numaNode: readNumaNode(path),
    vfio,
    pci: { vendor, device, class: pciClass, function: functionOf(pciClass), sriov: readSriov(path) },
    mdev: null,
  };
}

/**
 * Bridges carry the traffic of others and are no candidates: vfio-pci refuses those with a bridge's header, and a guest
 * can do nothing with a host or ISA bridge. The exception are "other" bridges: such are NVSwitches, which guests get.
 */
export function isBridge(pciClass: number): boolean {
  return pciClass >> 16 === CLASS_BRIDGE && pciClass >> 8 !== CLASS_OTHER_BRIDGE;
}

function functionOf(pciClass: number): string {
  return FUNCTIONS.get(pciClass >> 8) ?? FUNCTIONS.get(pciClass >> 16) ?? "other";
}

function readSriov(path: string): PciIdentity["sriov"] {
  const pf = linkName(`${path}/physfn`);
  if (pf !== null && PCI_ADDRESS.test(pf)) return { role: "vf", pf };
  // A PF may have 65535 VFs at most (SR-IOV 1.1, 3.3.5).
  const vfs = readNumber(`${path}/sriov_numvfs`, { min: 0, max: 65_535 });
  return vfs === null ? null : { role: "pf", vfs };
}
