import { shellWord } from "../../shell-word.js";
import type { Roots } from "../roots.js";
import type { LinuxDevice } from "../sysfs/device.js";
import { entries, exists, readBytes, readValue } from "../sysfs/files.js";
import { describeMode, lockableMemory, mayOpen, whoAmI } from "./identity.js";
import { hasModule, isOlder, type KernelVersion, readKernelConfig, runningKernel } from "./kernel.js";
import { type Obstacle, obstacle } from "./obstacle.js";

/** What this machine lacks for assigning devices through iommufd, and how to get it. */
export interface HostState {
  readonly kernel: string;
  /** /dev/iommu can be opened. */
  readonly iommufd: boolean;
  /** What the kernel says of the IOMMUs that it uses: their names in /sys/class/iommu. */
  readonly iommus: readonly string[];
  readonly missing: readonly Obstacle[];
}

/** Looks at the host as a whole. Reads files and opens nothing. */
export function readHostState(roots: Roots, kernel: KernelVersion = runningKernel()): HostState {
  const iommus = iommusInUse(roots);
  const device = iommufdObstacle(roots, kernel);
  const found = [device, noIommuInUse(roots), dirtyTrackingObstacle(kernel, device), memlockObstacle(roots)];
  return {
    kernel: kernel.release,
    iommufd: device === null,
    iommus,
    missing: found.filter((one) => one !== null),
  };
}

/** Whether a VMM can be given devices through iommufd, which takes /dev/iommu and a character device per VFIO device. */
export interface IommufdForVmm {
  /** False: the running kernel lacks one of the two, and devices go through their groups and type1. */
  readonly possible: boolean | "unknown";
  /** What is in the way, as a clause; null: nothing is. */
  readonly why: string | null;
  /** What would help; null where nothing is in the way. */
  readonly remedy: string | null;
}

/** Obstacles that a reboot alone, into another kernel, clears away. */
const ANOTHER_KERNEL = ["IOMMUFD_KERNEL_TOO_OLD", "IOMMUFD_NOT_BUILT", "IOMMUFD_DID_NOT_START"];

/** @param devices what sysfs tells of this machine's */
export function iommufdForVmm(
  roots: Roots,
  devices: readonly LinuxDevice[],
  kernel: KernelVersion = runningKernel(),
): IommufdForVmm {
  const obstacle = iommufdObstacle(roots, kernel);
  if (obstacle !== null && obstacle.code !== "IOMMUFD_NOT_PERMITTED") {
    const { code, message: why, remedy } = obstacle;
    if (ANOTHER_KERNEL.includes(code)) return { possible: false, why, remedy };
    return { possible: code === "IOMMUFD_UNKNOWN" ? "unknown" : true, why, remedy };
  }
  if (makesCdevs(roots, devices, kernel) === false) {
    const why = `this kernel (${kernel.release}) makes no nodes in ${roots.dev}/vfio/devices`;
    return { possible: false, why, remedy: "boot a kernel with CONFIG_VFIO_DEVICE_CDEV, 6.6 or later" };
  }
  return { possible: true, why: null, remedy: null };
}

/** Whether the kernel makes a character device for each VFIO device. */
export function makesCdevs(roots: Roots, devices: readonly LinuxDevice[], kernel: KernelVersion): boolean | "unknown" {
  if (devices.some(({ vfio }) => vfio?.hasCdev === true)) return true;
  const built = readKernelConfig(roots, kernel)("CONFIG_VFIO_DEVICE_CDEV");
  if (built !== null) return built !== "n";
  // Distributions bring features to older kernels: what is there is asked before the version.
  if (devices.some(({ vfio, group }) => vfio !== null && group !== null && !group.noIommu)) return false;
  return isOlder(kernel, [6, 6]) ? false : "unknown";
}

/** Why /dev/iommu can't be opened; null where it can. */
function iommufdObstacle(roots: Roots, kernel: KernelVersion): Obstacle | null {
  const node = `${roots.dev}/iommu`;
  if (exists(node)) {
    if (mayOpen(node)) return null;
    const group = process.getegid?.() ?? 0;
    return obstacle({
      code: "IOMMUFD_NOT_PERMITTED",
      message: `${node} has ${describeMode(node) ?? "vanished"}, and this is ${whoAmI()}`,
      remedy: `run as root, or let a group that this user is in have it (here: ${group}; a udev rule gives it for good)`,
      commands: [`chgrp ${group} ${shellWord(node)}`, `chmod 0660 ${shellWord(node)}`],
    });
  }
  const missing = (code: string, why: string, remedy: string, commands: string[] = []): Obstacle =>
    obstacle({ code, message: `there is no ${node}: ${why}`, remedy, commands });
  const dev = readValue(`${roots.sys}/class/misc/iommu/dev`);
  if (dev !== null) {
    const numbers = /^(\d{1,8}):(\d{1,8})$/.exec(dev);
    return missing(
      "IOMMUFD_NO_NODE",
      "the kernel has iommufd, but this file system has no node for it, as in a container",
      "hand the node to the container (docker run --device /dev/iommu), or make it",
      numbers === null ? [] : [`mknod -m 0660 ${node} c ${numbers[1]} ${numbers[2]}`],
    );
  }
  const config = readKernelConfig(roots, kernel)("CONFIG_IOMMUFD");
  const upgrade = "boot a kernel that has CONFIG_IOMMUFD; 6.7 or later for dirty tracking, 6.6 for /dev/vfio/devices";
  const listed = hasModule(roots, kernel, "iommufd");
  if (listed === true && config !== "y") {
    return missing("IOMMUFD_NOT_LOADED", "the module iommufd is not loaded", "load it", ["modprobe iommufd"]);
  }
  if (config === "m") {
    // modprobe could not find it here.
    return listed === false
      ? missing(
          "IOMMUFD_NOT_INSTALLED",
          "this kernel has iommufd as a module, which is not installed",
          `install what has the modules of Linux ${kernel.release}, then run modprobe iommufd`,
        )
      : missing(
          "IOMMUFD_NOT_LOADED",
          `the module iommufd is not loaded, and this file system has no modules of Linux ${kernel.release}, as in a container`,
          "run modprobe iommufd where they are",
        );
  }
  // Distributions bring features to older kernels, so the configuration is asked before the version.
  if (isOlder(kernel, [6, 2])) {
    return missing("IOMMUFD_KERNEL_TOO_OLD", `this is Linux ${kernel.release}, and iommufd came with 6.2`, upgrade);
  }
  if (config === "n") {
    return missing("IOMMUFD_NOT_BUILT", `this kernel (${kernel.release}) was built without CONFIG_IOMMUFD`, upgrade);
  }
  if (config === "y") {
    return missing(
      "IOMMUFD_DID_NOT_START",
      "iommufd is built into this kernel, but did not start",
      "look for the reason in the kernel's messages (dmesg | grep -i iommu)",
    );
  }
  return missing(
    "IOMMUFD_UNKNOWN",
    `neither this kernel's configuration nor its modules (${roots.modules}/${kernel.release}) are here to say whether it has iommufd`,
    "run modprobe iommufd where they are; if that fails, boot a kernel that has CONFIG_IOMMUFD",
  );
}

/** The IOMMUs that the kernel uses, by their names in /sys/class/iommu. */
function iommusInUse(roots: Roots): string[] {
  return entries(`${roots.sys}/class/iommu`, /^[\x21-\x7e]{1,128}$/);
}

/** Why the kernel uses no IOMMU; null where it uses one. */
export function noIommuInUse(roots: Roots): Obstacle | null {
  const iommus = iommusInUse(roots);
  const groups = entries(`${roots.sys}/kernel/iommu_groups`, /^\d{1,10}$/);
  if (iommus.length > 0 || groups.length > 0) return null;
  const commandLine = readValue(`${roots.proc}/cmdline`) ?? "";
  const off = /(^|\s)((?:intel_|amd_)?iommu=\S*\boff\b\S*)/.exec(commandLine);
  const off_ = (message: string, remedy: string): Obstacle =>
    obstacle({ code: "NO_IOMMU", message: `no IOMMU is in use, so no device can be assigned: ${message}`, remedy });
  if (off !== null) return off_(`the kernel was started with '${off[2]}'`, "start it without");
  // How the firmware tells the operating system of an IOMMU: Intel's table, AMD's, Arm's, and virtio's.
  const table = ["DMAR", "IVRS", "IORT", "VIOT"].find((name) => exists(`${roots.sys}/firmware/acpi/tables/${name}`));
  if (table === "DMAR" && !/(^|\s)intel_iommu=\S*\bon\b/.test(commandLine)) {
    return off_("the firmware has one (VT-d), and the kernel leaves it off", "start the kernel with intel_iommu=on");
  }
  if (table !== undefined) {
    return off_(
      `the firmware has one (table ${table}), but the kernel could not start it`,
      "look for the reason in the kernel's messages (dmesg | grep -i -e iommu -e dmar -e amd-vi -e smmu)",
    );
  }
  if (isVirtualMachine(roots)) {
    return off_(
      "this is a virtual machine without one",
      "give the machine one (QEMU: -device intel-iommu, amd-iommu or virtio-iommu-pci), or run on the host",
    );
  }
  return off_(
    "the firmware tells of none",
    "switch VT-d, AMD-Vi or the SMMU on in the firmware's settings (on Intel add intel_iommu=on to the kernel's command line)",
  );
}

/** /proc/cpuinfo of a machine with hundreds of processors is long; the first processor's part is enough. */
const CPUINFO_BYTES = 16_384;

function isVirtualMachine(roots: Roots): boolean {
  const cpus = readBytes(`${roots.proc}/cpuinfo`, CPUINFO_BYTES)?.toString("latin1") ?? "";
  return /^flags\s*:.*\bhypervisor\b/m.test(cpus);
}

function dirtyTrackingObstacle(kernel: KernelVersion, iommufd: Obstacle | null): Obstacle | null {
  // Without iommufd, what is said about it says this too.
  if (iommufd !== null || !isOlder(kernel, [6, 7])) return null;
  return obstacle({
    code: "NO_DIRTY_TRACKING_IN_KERNEL",
    message: `this is Linux ${kernel.release}, and dirty tracking by an iommu_domain came with 6.7`,
    remedy: "boot a newer kernel, unless the distribution has brought it to this one",
  });
}

/** What is pinned for DMA counts as locked: a guest's whole memory (drivers/iommu/iommufd/pages.c). */
function memlockObstacle(roots: Roots): Obstacle | null {
  const bytes = lockableMemory(roots);
  if (bytes === null || bytes === Number.POSITIVE_INFINITY) return null;
  return obstacle({
    code: "MEMLOCK_TOO_LOW",
    message: `this process (${whoAmI()}) may lock ${bytes / 1024} KiB of memory, and a guest's whole memory is locked while a device can reach it`,
    remedy:
      "raise the limit above the guest's memory (`ulimit -l unlimited` in a root shell, LimitMEMLOCK=infinity in a systemd unit), or give the program CAP_IPC_LOCK",
  });
}
