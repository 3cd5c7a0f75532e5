import type { UapiError } from "../../uapi/errno.js";
import type { Roots } from "../roots.js";
import type { LinuxDevice } from "../sysfs/device.js";
import { entries, exists, readValue } from "../sysfs/files.js";
import { describeMode, mayOpen, whoAmI } from "./identity.js";
import { isOlder, type KernelVersion, readKernelConfig, runningKernel } from "./kernel.js";
import type { Obstacle } from "./obstacle.js";
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
    noIommu(device),
    notOnVfio(roots, device, kernel),
    ...heldBack(roots, device),
    noCdev(roots, device, kernel),
    notPermitted(device),
  ];
  return found.filter((obstacle) => obstacle !== null);
}

/** An mdev needs no IOMMU: its parent's driver does its DMA. */
function lacksIommu({ kind, group }: LinuxDevice): boolean {
  return kind !== "mdev" && (group === null || group.noIommu);
}

function noIommu(device: LinuxDevice): Obstacle | null {
  if (!lacksIommu(device)) return null;
  return {
    code: "NO_IOMMU_GROUP",
    message: `no IOMMU is in front of ${device.id}: nothing would keep its DMA within a guest, and iommufd refuses it`,
    remedy: "switch the IOMMU on in the firmware's settings and in the kernel (intel_iommu=on on Intel)",
    commands: [],
  };
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

function notOnVfio(roots: Roots, device: LinuxDevice, kernel: KernelVersion): Obstacle | null {
  const { id, kind, driver, vfio, pci } = device;
  if (vfio !== null) return null;
  const has = driver === null ? "no driver has it" : `its driver is ${driver}, no VFIO driver`;
  if (kind === "mdev") {
    return {
      code: "NOT_A_VFIO_DRIVER",
      message: has,
      remedy: "remove the mdev and make it anew: its parent's driver attaches itself to it then",
      commands: [`echo 1 > ${device.path}/remove`],
    };
  }
  if (pci?.sriov?.role === "pf" && pci.sriov.vfs > 0) {
    return {
      code: "VFS_ARE_ON",
      message: `${has}, and VFIO takes no PF while its VFs are on (${pci.sriov.vfs} are)`,
      remedy: "assign the VFs, or switch them off first",
      commands: [`echo 0 > ${device.path}/sriov_numvfs`],
    };
  }
  const { driver: wanted, module } = vfioDriverFor(roots, device, kernel);
  const bus = `${roots.sys}/bus/${kind}`;
  return {
    code: "NOT_A_VFIO_DRIVER",
    message: has,
    remedy: driver === null ? `bind it to ${wanted}` : `bind it to ${wanted}; ${driver}, and the host, lose it then`,
    commands: [
      ...(exists(`${bus}/drivers/${wanted}`) ? [] : [`modprobe ${module}`]),
      `echo ${wanted} > ${device.path}/driver_override`,
      ...(driver === null ? [] : [`echo ${id} > ${device.path}/driver/unbind`]),
      `echo ${id} > ${bus}/drivers_probe`,
    ],
  };
}

function heldBack(roots: Roots, { id, group }: LinuxDevice): Obstacle[] {
  const others = group?.members.filter((member) => member.id !== id && member.holdsBack) ?? [];
  return others.map((member) => ({
    code: "GROUP_HELD_BACK",
    message: `${member.id} shares IOMMU group ${group?.id} with it and is driven by ${member.driver}`,
    remedy: `take ${member.id} from ${member.driver}, or assign it too`,
    commands: [`echo ${member.id} > ${roots.sys}/kernel/iommu_groups/${group?.id}/devices/${member.id}/driver/unbind`],
  }));
}

function noCdev(roots: Roots, device: LinuxDevice, kernel: KernelVersion): Obstacle | null {
  const { id, vfio } = device;
  // Without an IOMMU VFIO makes no cdev; that there is none has been said.
  if (vfio === null || vfio.cdev !== null || lacksIommu(device)) return null;
  const none = (message: string, remedy: string): Obstacle => ({ code: "NO_CDEV", message, remedy, commands: [] });
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
  return {
    code: "CDEV_NOT_PERMITTED",
    message: `${cdev} has ${describeMode(cdev) ?? "vanished"}, and this is ${whoAmI()}`,
    remedy: "run as root, or give this user the node (until the device is bound anew; a udev rule gives it for good)",
    commands: [`chown ${user} ${cdev}`],
  };
}

/**
 * What it means that the kernel refused to open a device, or to bind it to an iommufd: the errno alone tells little.
 * (drivers/vfio/device_cdev.c and vfio_main.c, drivers/iommu/iommufd/device.c, drivers/iommu/iommu.c)
 */
export function explainRefusal(roots: Roots, device: LinuxDevice, error: UapiError): Obstacle {
  const { id, vfio, group } = device;
  const refused = (code: string, message: string, remedy: string, commands: string[] = []): Obstacle => ({
    code,
    message: `${message} (${error.syscall}: ${error.code})`,
    remedy,
    commands,
  });
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
      return refused(
        "NOT_OWNED",
        `its IOMMU group (${group?.id ?? "none"}) is another's, or interrupts are not remapped, so that it could raise any`,
        "switch interrupt remapping on in the firmware's settings; where there is none and all guests are trusted, allow it",
        ["echo 1 > /sys/module/iommufd/parameters/allow_unsafe_interrupts"],
      );
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

/** The nodes of all devices of its group: who has one of them open holds the group. */
function groupCdevs(roots: Roots, { group }: LinuxDevice): string[] {
  return (group?.members ?? []).flatMap(({ id }) =>
    entries(`${roots.sys}/kernel/iommu_groups/${group?.id}/devices/${id}/vfio-dev`, /^vfio\d{1,10}$/).map(
      (name) => `${roots.dev}/vfio/devices/${name}`,
    ),
  );
}
