import { realpathSync } from "node:fs";
import { basename, dirname, isAbsolute } from "node:path";
import type { Roots } from "../roots.js";
import type { LinuxDevice } from "./device.js";

/** `[domain:]bus:slot[.function]` in hexadecimal, as lspci and QEMU take it: leading zeros and case are free. */
const PCI = /^(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])(?:\.([0-7]))?$/i;
/** What libvirt calls a PCI device: `pci_0000_3b_00_1`. */
const LIBVIRT_PCI = /^pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([01][0-9a-f])_([0-7])$/i;
const HEX_UUID = "[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}";
/** A UUID, or what libvirt calls an mdev: `mdev_UUID`, with the parent's address behind it since 7.3. */
const MDEV = new RegExp(`^(?:mdev_(${HEX_UUID})(?:_.{1,64})?|(${HEX_UUID}))$`, "i");
/** Names in /sys/class/net and /sys/class/block; a `!` there stands for a `/` in /dev. */
const CLASS_NAME = /^[\x21-\x2e\x30-\x7e]{1,64}$/;

/**
 * The devices that a name may stand for: none for an unknown one, several for an ambiguous one. A name is whatever a
 * device is called by its users: its id in any case, a PCI address with or without domain and function, libvirt's name, a
 * path in sysfs, its cdev, the name of its network interface or disk.
 *
 * An address without a domain means domain 0, as it does to lspci and QEMU, if there is such a device.
 */
export function devicesCalled(roots: Roots, name: string, devices: readonly LinuxDevice[]): LinuxDevice[] {
  const exact = devices.filter(({ id }) => id === name);
  if (exact.length > 0) return exact;
  const pci = PCI.exec(name) ?? LIBVIRT_PCI.exec(name);
  if (pci !== null) return byAddress(pci, devices);
  const uuid = MDEV.exec(name);
  if (uuid !== null) {
    const id = (uuid[1] ?? uuid[2]).toLowerCase().replaceAll("_", "-");
    return devices.filter((device) => device.kind === "mdev" && device.id === id);
  }
  if (isAbsolute(name)) return byPath(roots, name, devices);
  const sameButCase = devices.filter(({ id }) => id.toLowerCase() === name.toLowerCase());
  return sameButCase.length > 0 ? sameButCase : byClass(roots, ["net", "block"], name, devices);
}

/** The id of the PCI device at an address, whose function must be said; null for what is no address. */
export function pciId(name: string): string | null {
  const [, domain = "0", bus, slot, fn] = PCI.exec(name) ?? LIBVIRT_PCI.exec(name) ?? [];
  if (fn === undefined) return null;
  const hex = (text: string, digits: number) => Number.parseInt(text, 16).toString(16).padStart(digits, "0");
  return `${hex(domain, 4)}:${hex(bus, 2)}:${hex(slot, 2)}.${fn}`;
}

function byAddress([, domain, bus, slot, fn]: RegExpExecArray, devices: readonly LinuxDevice[]): LinuxDevice[] {
  const hex = (text: string) => Number.parseInt(text, 16);
  const found = devices.filter(({ kind, id }) => {
    if (kind !== "pci") return false;
    const [, ownDomain, ownBus, ownSlot, ownFn] = PCI.exec(id) ?? [];
    if (hex(ownBus) !== hex(bus) || hex(ownSlot) !== hex(slot)) return false;
    return (domain === undefined || hex(ownDomain) === hex(domain)) && (fn === undefined || fn === ownFn);
  });
  const inDomain0 = domain === undefined ? found.filter(({ id }) => hex(id.split(":")[0]) === 0) : [];
  return inDomain0.length > 0 ? inDomain0 : found;
}

function byPath(roots: Roots, path: string, devices: readonly LinuxDevice[]): LinuxDevice[] {
  const cdev = devices.filter(({ vfio }) => vfio?.cdev === path);
  if (cdev.length > 0) return cdev;
  // A node of a disk; one that is a link, as in /dev/disk/by-id, leads to it.
  const real = realPath(path);
  if (real === null) return [];
  if (real.startsWith(`${realPath(roots.dev)}/`)) return byClass(roots, ["block"], basename(real), devices);
  return real.startsWith(`${realPath(roots.sys)}/`) ? nearest(real, devices) : [];
}

function byClass(
  roots: Roots,
  classes: readonly string[],
  name: string,
  devices: readonly LinuxDevice[],
): LinuxDevice[] {
  if (!CLASS_NAME.test(name)) return [];
  const found = classes.flatMap((kind) => {
    const path = realPath(`${roots.sys}/class/${kind}/${name}`);
    return path === null ? [] : nearest(path, devices);
  });
  return [...new Set(found)];
}

/** The device that a folder of sysfs belongs to: the first one on the way up. */
function nearest(path: string, devices: readonly LinuxDevice[]): LinuxDevice[] {
  for (let folder = path; folder !== dirname(folder); folder = dirname(folder)) {
    const name = basename(folder);
    const found = devices.filter(({ id, path: own }) => id === name && realPath(own) === folder);
    if (found.length > 0) return found;
  }
  return [];
}

/** A path without links, or null where it leads nowhere. */
export function realPath(path: string): string | null {
  try {
    return realpathSync.native(path);
  } catch {
    return null;
  }
}
