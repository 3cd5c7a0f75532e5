import { shellWord } from "../../shell-word.js";
import type { UapiError } from "../../uapi/errno.js";
import type { Roots } from "../roots.js";
import type { LinuxDevice } from "../sysfs/device.js";
import { entries, exists, readNumber, readValue } from "../sysfs/files.js";
import { realPath } from "../sysfs/name.js";
import { isBridge } from "../sysfs/pci.js";
import { dependentsOf, dependsOn, someOf, vfsOf } from "./dependents.js";
import { noIommuInUse } from "./host.js";
import { hostUses } from "./host-uses.js";
import { describeMode, mayOpen, whoAmI } from "./identity.js";
import { hasModule, isOlder, type KernelVersion, readKernelConfig, runningKernel } from "./kernel.js";
import { echo, type Obstacle, obstacle } from "./obstacle.js";
import { describeUsers, findUsers } from "./users.js";
import { chooseVfioDriver, type DriverChoice } from "./vfio-drivers.js";

/**
 * What stands between a device and opening it, as far as it can be seen without trying; in the order in which it is to
 * be cleared away. Reads files and opens nothing.
 */
export function deviceObstacles(
  roots: Roots,
  device: LinuxDevice,
  kernel: KernelVersion = runningKernel(),
): Obstacle[] {
  const found = [
    noIommu(roots, device),
    vfsAreOn(roots, device),
    notOnVfio(roots, device, kernel),
    ...heldBack(roots, device),
    noCdev(roots, device, kernel),
    notPermitted(device),
  ];
  return found.filter((one) => one !== null);
}

/** An mdev needs no IOMMU: its parent's driver does its DMA. */
function lacksIommu({ kind, group }: LinuxDevice): boolean {
  return kind !== "mdev" && (group === null || group.noIommu);
}

function noIommu(roots: Roots, device: LinuxDevice): Obstacle | null {
  if (!lacksIommu(device)) return null;
  return obstacle({
    code: "NO_IOMMU_GROUP",
    message: `no IOMMU is in front of ${device.id}: nothing would keep its DMA within a guest, and iommufd refuses it`,
    // Where an IOMMU is in use, switching it on is no remedy.
    remedy:
      noIommuInUse(roots)?.remedy ??
      "assign another device: the IOMMU that is in use leaves this one out (dmesg | grep -i iommu may tell why)",
  });
}

/** The VFIO driver that a PCI or platform device would be bound to. */
export function vfioDriverFor(
  roots: Roots,
  { kind, path }: LinuxDevice,
  kernel: KernelVersion = runningKernel(),
): DriverChoice {
  if (kind === "platform") return { driver: "vfio-platform", module: "vfio-platform" };
  return chooseVfioDriver(roots, kernel, readValue(`${path}/modalias`) ?? "");
}

/** VFIO takes no PF while its VFs are on (drivers/vfio/pci/vfio_pci_core.c). */
function vfsAreOn(roots: Roots, { id, path, driver, vfio, pci }: LinuxDevice): Obstacle | null {
  if (vfio !== null || pci?.sriov?.role !== "pf" || pci.sriov.vfs === 0) return null;
  const code = "VFS_ARE_ON";
  const message = `VFIO takes no PF while its VFs are on, and ${pci.sriov.vfs} of ${id} are`;
  // Only the PF's driver switches them.
  if (driver === null) {
    return obstacle({
      code,
      message,
      remedy: "assign the VFs, or give the PF back to its own driver and switch them off",
    });
  }
  return obstacle({
    code,
    message,
    remedy: "assign the VFs, or switch them off",
    commands: [echo("0", `${path}/sriov_numvfs`)],
    warnings: losses(
      roots,
      vfsOf(path),
      vfsOf(path).flatMap((vf) => hostUses(roots, `${roots.sys}/bus/pci/devices/${vf}`)),
    ),
  });
}

/** What is lost with devices that vanish, and what the host does with a device. */
function losses(roots: Roots, vanishing: readonly string[], uses: readonly string[]): string[] {
  const users = vanishing.flatMap((id) => {
    const cdevs = cdevsOf(roots, `${roots.sys}/bus/pci/devices/${id}`);
    const seen = cdevs.length === 0 ? [] : findUsers(roots, cdevs);
    return seen.length === 0 ? [] : [`${id} is in use, ${describeUsers(seen)}`];
  });
  return [
    ...uses,
    ...(vanishing.length === 0
      ? []
      : [`${vanishing.length === 1 ? "a device vanishes" : "devices vanish"}: ${someOf(vanishing)}`]),
    ...users,
  ];
}

function notOnVfio(roots: Roots, device: LinuxDevice, kernel: KernelVersion): Obstacle | null {
  const { id, kind, driver, vfio, path, pci } = device;
  if (vfio !== null) return null;
  // Its VFs are on, and nothing but its own driver switches them off.
  if (driver === null && pci?.sriov?.role === "pf" && pci.sriov.vfs > 0) return null;
  const message = driver === null ? "no driver has it" : `its driver is ${driver}, no VFIO driver`;
  const code = "NOT_A_VFIO_DRIVER";
  if (kind === "mdev") return mdevWithoutDriver(device, message);
  const { driver: wanted, module } = vfioDriverFor(roots, device, kernel);
  const bus = `${roots.sys}/bus/${kind}`;
  const loaded = exists(`${bus}/drivers/${wanted}`);
  const available = loaded || hasModule(roots, kernel, module);
  if (available === false) {
    return obstacle({
      code: "NO_VFIO_DRIVER",
      message: `${message}; and ${wanted}, which could have it, is not among the modules of this kernel (${kernel.release})`,
      remedy: `install what has the module ${module} for this kernel, or boot a kernel that has it`,
    });
  }
  if (driver !== null && !canUnbind(path)) return obstacle({ code, message, remedy: keepsItsDriver(driver) });
  // What depends on a PF's VFs being on has been said.
  const vanishing = dependentsOf(roots, path).filter((other) => !vfsOf(path).includes(other));
  const doubt =
    available === "unknown" ? ` (if this kernel has it: no list of its modules is in ${roots.modules})` : "";
  return obstacle({
    code,
    message,
    remedy: `bind it to ${wanted}${doubt}${driver === null ? "" : `; ${driver}, and the host, lose it then`}`,
    commands: [
      ...(loaded ? [] : [`modprobe ${module}`]),
      echo(wanted, `${path}/driver_override`),
      ...(driver === null ? [] : [echo(id, `${path}/driver/unbind`)]),
      echo(id, `${bus}/drivers_probe`),
    ],
    warnings: driver === null ? [] : losses(roots, vanishing, hostUses(roots, path)),
  });
}

/** No driver of mdevs can be bound by hand: the parent's attaches itself when the mdev is made (drivers/vfio/mdev). */
function mdevWithoutDriver({ id, path }: LinuxDevice, message: string): Obstacle {
  const type = realPath(`${path}/mdev_type`);
  return obstacle({
    code: "NOT_A_VFIO_DRIVER",
    message,
    remedy: "remove the mdev and make it anew: its parent's driver attaches itself to it then",
    commands: type === null ? [] : [echo("1", `${path}/remove`), echo(id, `${type}/create`)],
    warnings: type === null ? [] : ["what was set of the mdev is lost, and has to be set again"],
  });
}

/** Some drivers can't be taken from their devices (suppress_bind_attrs). @param device its folder in sysfs */
function canUnbind(device: string): boolean {
  return exists(`${device}/driver/unbind`);
}

function keepsItsDriver(driver: string): string {
  return `keep ${driver} from taking it at boot, since it can't be taken away later`;
}

function heldBack(roots: Roots, device: LinuxDevice): Obstacle[] {
  const { id, group } = device;
  const others = group?.members.filter((member) => member.id !== id && member.holdsBack) ?? [];
  return others.map((member) => {
    const { driver } = member;
    const folder = `${roots.sys}/kernel/iommu_groups/${group?.id}/devices/${member.id}`;
    const shares = `${member.id} shares IOMMU group ${group?.id} with it and is driven by ${driver}`;
    const held = (message: string, remedy: string, more: Partial<Obstacle> = {}) =>
      obstacle({ ...more, code: "GROUP_HELD_BACK", message, remedy });
    if (dependsOn(device.path, folder)) {
      return held(`${shares}, without which ${id} would not be there`, insteadOf(device, member.id, folder));
    }
    if (!canUnbind(folder)) return held(shares, keepsItsDriver(driver ?? "its driver"));
    return held(shares, `take ${member.id} from ${driver}, or assign it too`, {
      commands: [echo(member.id, `${folder}/driver/unbind`)],
      warnings: losses(roots, dependentsOf(roots, folder), hostUses(roots, folder)),
    });
  });
}

/** What to do about a group member that the device is there only because of: to take its driver away is no remedy. */
function insteadOf({ id, pci }: LinuxDevice, other: string, folder: string): string {
  if (pci?.sriov?.role === "vf" && pci.sriov.pf === other) {
    return `assign the PF ${other} instead of its VFs, or put it into a slot that gives each of them a group of its own`;
  }
  const pciClass = readNumber(`${folder}/class`, { min: 0, max: 0xff_ffff });
  if (pciClass === null || isBridge(pciClass)) return `put ${id} into a slot whose group it has alone`;
  return `assign ${other} itself, with all that lies behind it, or have the firmware not put ${id} behind it`;
}

function noCdev(roots: Roots, device: LinuxDevice, kernel: KernelVersion): Obstacle | null {
  const { id, vfio } = device;
  // Without an IOMMU VFIO makes no cdev; that there is none has been said.
  if (vfio === null || vfio.cdev !== null || lacksIommu(device)) return null;
  const none = (message: string, remedy: string): Obstacle => obstacle({ code: "NO_CDEV", message, remedy });
  if (vfio.hasCdev) {
    const node = `${roots.dev}/vfio/devices/${vfio.name}`;
    return none(
      `the kernel has ${vfio.name} for it, but this file system has no ${node}, as in a container`,
      `hand the node to the container (docker run --device ${node})`,
    );
  }
  const built = readKernelConfig(roots, kernel)("CONFIG_VFIO_DEVICE_CDEV");
  // Distributions bring features to older kernels: what they built is asked before the version.
  if (built !== "y" && isOlder(kernel, [6, 6])) {
    return none(
      `${id} has no node in ${roots.dev}/vfio/devices: this is Linux ${kernel.release}, and they came with 6.6`,
      "boot a newer kernel, with CONFIG_VFIO_DEVICE_CDEV",
    );
  }
  if (built === "y") {
    return none(
      `${id} has no node in ${roots.dev}/vfio/devices, though this kernel makes them`,
      "look for the reason in the kernel's messages (dmesg | grep -i vfio)",
    );
  }
  return none(
    built === "n"
      ? `${id} has no node in ${roots.dev}/vfio/devices: this kernel was built without CONFIG_VFIO_DEVICE_CDEV`
      : `${id} has no node in ${roots.dev}/vfio/devices, which a kernel makes that has CONFIG_VFIO_DEVICE_CDEV`,
    "boot a kernel with CONFIG_VFIO_DEVICE_CDEV",
  );
}

function notPermitted({ vfio }: LinuxDevice): Obstacle | null {
  if (vfio === null || vfio.cdev === null || mayOpen(vfio.cdev)) return null;
  const { cdev } = vfio;
  const user = process.geteuid?.() ?? 0;
  return obstacle({
    code: "CDEV_NOT_PERMITTED",
    message: `${cdev} has ${describeMode(cdev) ?? "vanished"}, and this is ${whoAmI()}`,
    remedy: "run as root, or give this user the node (until the device is bound anew; a udev rule gives it for good)",
    commands: [`chown ${user} ${shellWord(cdev)}`],
  });
}

/**
 * What it means that the kernel refused to open a device, or to bind it to an iommufd: the errno alone tells little.
 * (drivers/vfio/device_cdev.c and vfio_main.c, drivers/iommu/iommufd/device.c, drivers/iommu/iommu.c)
 */
export function explainRefusal(roots: Roots, device: LinuxDevice, error: UapiError): Obstacle {
  const { id, vfio, group } = device;
  const refused = (code: string, message: string, remedy: string, more: Partial<Obstacle> = {}): Obstacle =>
    obstacle({ ...more, code, message: `${message} (${error.syscall}: ${error.code})`, remedy });
  const groupNode = `${roots.dev}/vfio/${group?.id ?? ""}`;
  const users = () => findUsers(roots, vfio?.cdev == null ? [groupNode] : [vfio.cdev, groupNode]);
  if (error.syscall === "open" && (error.code === "EPERM" || error.code === "EACCES")) {
    // What the mode forbids has been said before anything was tried (CDEV_NOT_PERMITTED).
    return refused(
      "OPEN_FORBIDDEN",
      `${error.attempted}: the file's mode allows it, and something else does not`,
      "allow it where this runs: the container's list of devices (docker run --device), or the security module",
    );
  }
  switch (error.code) {
    case "ENODEV":
    case "ENOENT":
    case "ENXIO":
      return refused("GONE", `${id} went away while it was opened`, "plug it in again, or bind it to its driver again");
    case "EBUSY":
      return refused(
        "IN_USE",
        `its IOMMU group is in use through ${groupNode}, ${describeUsers(users())}`,
        "stop that first",
      );
    case "EINVAL": {
      // A second opener of a cdev is told EINVAL at bind, and so is who binds a device whose DMA is not coherent.
      const seen = users();
      if (seen.length > 0 || process.geteuid?.() !== 0) {
        return refused("IN_USE", `it is in use, ${describeUsers(seen)}`, "stop that first");
      }
      return refused(
        "REFUSED",
        "the kernel takes it for in use, or its IOMMU can't keep its DMA coherent with the caches",
        "look for the reason in the kernel's messages (dmesg | grep -i -e vfio -e iommu)",
      );
    }
    case "EPERM": {
      const inUse = findUsers(roots, [...groupCdevs(roots, device), groupNode]);
      if (inUse.length > 0) {
        return refused("GROUP_IN_USE", `its IOMMU group is in use, ${describeUsers(inUse)}`, "stop that first");
      }
      return notOwned(roots, device, refused);
    }
    case "EACCES":
      return refused(
        "TOKEN_NEEDED",
        "its PF is on vfio-pci and asks for a token that only the PF's user has",
        "leave the PF to its own driver",
      );
    default:
      return refused("REFUSED", error.message, error.remedy ?? "look for the reason in the kernel's messages (dmesg)");
  }
}

/** EPERM at bind, where nobody is seen to use the group. */
function notOwned(
  roots: Roots,
  { group }: LinuxDevice,
  refused: (code: string, message: string, remedy: string, more: Partial<Obstacle>) => Obstacle,
): Obstacle {
  const its = `its IOMMU group (${group?.id ?? "none"}) is another's`;
  const parameter = `${roots.sys}/module/iommufd/parameters/allow_unsafe_interrupts`;
  const allowed = readValue(parameter);
  // Where unsafe interrupts are allowed, their being unsafe is not why.
  if (allowed === "Y")
    return refused("NOT_OWNED", its, "stop what uses the group; the kernel's messages may tell more (dmesg)", {});
  return refused(
    "NOT_OWNED",
    `${its}, or interrupts are not remapped, so that it could raise any`,
    "switch interrupt remapping on in the firmware's settings; where there is none and all guests are trusted, allow it",
    allowed === null
      ? {}
      : { commands: [echo("1", parameter)], warnings: ["a guest can then raise any interrupt of the host"] },
  );
}

/** The nodes of all devices of its group: who has one of them open holds the group. */
function groupCdevs(roots: Roots, { group }: LinuxDevice): string[] {
  return (group?.members ?? []).flatMap(({ id }) =>
    cdevsOf(roots, `${roots.sys}/kernel/iommu_groups/${group?.id}/devices/${id}`),
  );
}

/** @param device its folder in sysfs */
function cdevsOf(roots: Roots, device: string): string[] {
  return entries(`${device}/vfio-dev`, /^vfio\d{1,10}$/).map((name) => `${roots.dev}/vfio/devices/${name}`);
}
