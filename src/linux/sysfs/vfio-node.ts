import type { Roots } from "../roots.js";
import type { VfioNode } from "./device.js";
import { entries, exists } from "./files.js";
import { isVfioDriver } from "./group.js";

/** What VFIO offers of a device, or null where no VFIO driver has it. @param device its folder in sysfs */
export function readVfioNode(roots: Roots, device: string, driver: string | null): VfioNode | null {
  // drivers/vfio/vfio_main.c: the class is "vfio-dev", the device in it vfioN, its node vfio/devices/vfioN.
  const [name] = entries(`${device}/vfio-dev`, /^vfio\d{1,10}$/);
  if (name === undefined) {
    return driver !== null && isVfioDriver(driver) ? { name: null, hasCdev: false, cdev: null } : null;
  }
  const node = `${roots.dev}/vfio/devices/${name}`;
  return {
    name,
    hasCdev: exists(`${device}/vfio-dev/${name}/dev`),
    cdev: exists(node) ? node : null,
  };
}
