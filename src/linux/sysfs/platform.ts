import type { Roots } from "../roots.js";
import type { LinuxDevice } from "./device.js";
import { entries, linkName } from "./files.js";
import { DEVICE_NAME, readGroup, readNumaNode } from "./group.js";
import { readIommu } from "./iommu.js";
import { readVfioNode } from "./vfio-node.js";

/**
 * All platform devices that an IOMMU is in front of, or that a VFIO driver has. Those without an IOMMU are most of the
 * bus, and none of them can be assigned.
 */
export function findPlatformDevices(roots: Roots): LinuxDevice[] {
  const bus = `${roots.sys}/bus/platform/devices`;
  return entries(bus, DEVICE_NAME).flatMap((id) => {
    const path = `${bus}/${id}`;
    const driver = linkName(`${path}/driver`);
    const group = readGroup(roots, path);
    const vfio = readVfioNode(roots, path, driver);
    if (group === null && vfio === null) return [];
    return {
      id,
      model: driver ?? "no driver",
      kind: "platform",
      iommuGroup: group?.id ?? null,
      path,
      driver,
      group,
      iommu: readIommu(roots, path),
      numaNode: readNumaNode(path),
      vfio,
      pci: null,
      mdev: null,
    } satisfies LinuxDevice;
  });
}
