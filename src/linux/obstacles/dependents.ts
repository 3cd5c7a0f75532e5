import type { Roots } from "../roots.js";
import { entries, linkName } from "../sysfs/files.js";
import { DEVICE_NAME } from "../sysfs/group.js";
import { realPath } from "../sysfs/name.js";

/*
 * Which devices are there only as long as another's driver is: what lies behind a VMD or a bridge, a PF's VFs, a
 * parent's mdevs. To take that driver away removes them.
 */

/** The ids of the devices that vanish once a device's driver is taken from it. @param device its folder in sysfs */
export function dependentsOf(roots: Roots, device: string): string[] {
  const folder = realPath(device);
  if (folder === null) return [];
  const below = ["pci", "mdev", "platform"].flatMap((bus) => {
    const all = entries(`${roots.sys}/bus/${bus}/devices`, DEVICE_NAME);
    return all.filter((id) => realPath(`${roots.sys}/bus/${bus}/devices/${id}`)?.startsWith(`${folder}/`));
  });
  return [...new Set([...below, ...vfsOf(device)])];
}

/** A PF's VFs. @param device its folder in sysfs */
export function vfsOf(device: string): string[] {
  return entries(device, /^virtfn\d{1,5}$/).flatMap((link) => linkName(`${device}/${link}`) ?? []);
}

/** True where one device is there only as long as the other's driver is. Both by their folders in sysfs. */
export function dependsOn(device: string, other: string): boolean {
  const [folder, holder] = [realPath(device), realPath(other)];
  if (folder === null || holder === null) return false;
  const pf = realPath(`${device}/physfn`);
  // What a PF lies behind, its VFs lie behind too.
  return [folder, pf].some((path) => path === holder || path?.startsWith(`${holder}/`)) && folder !== holder;
}

/** Ids as a list that stays short. */
export function someOf(ids: readonly string[]): string {
  const shown = ids.slice(0, 4).join(", ");
  return ids.length > 4 ? `${shown} and ${ids.length - 4} more` : shown;
}
