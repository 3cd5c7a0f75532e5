import type { QemuNeed } from "./qemu.js";

/** The kinds of machine that a guest can be. */
export const MACHINES = ["mock", "intel", "amd"] as const;
export type MachineName = (typeof MACHINES)[number];

/**
 * PCI addresses of the devices behind the IOMMU of the machines `intel` and `amd`.
 * The two `pair` devices are functions of one slot without ACS, and so share an IOMMU group.
 */
export const PCI_DEVICES = {
  edu: "0000:00:05.0",
  pair0: "0000:00:06.0",
  pair1: "0000:00:06.1",
  igb: "0000:00:07.0",
  /** The only one that the kernel has a driver of its own for. */
  nvme: "0000:00:08.0",
  /** A function of nvme's slot: the group that both are in can't be assigned while nvme has its own driver. */
  besideNvme: "0000:00:08.1",
} as const;

const ASSIGNABLE = [
  ...["-device", "edu,addr=05.0"],
  ...["-device", "edu,addr=06.0,multifunction=on"],
  ...["-device", "edu,addr=06.1"],
  ...["-device", "igb,addr=07.0"],
  ...["-device", "nvme,serial=dirtmap,addr=08.0,multifunction=on"],
  ...["-device", "edu,addr=08.1"],
];

const ASSIGNABLE_NEEDS: readonly QemuNeed[] = [{ device: "edu" }, { device: "igb" }, { device: "nvme" }];

/** What makes a machine of its kind. */
export interface MachineKind {
  /** The folder of test/kernel whose tests it runs. */
  readonly tests: "mock" | "pci";
  readonly options: readonly string[];
  readonly needs: readonly QemuNeed[];
}

export const MACHINE_KINDS: Readonly<Record<MachineName, MachineKind>> = {
  mock: { tests: "mock", options: [], needs: [] },
  intel: {
    tests: "pci",
    options: ["-device", "intel-iommu", ...ASSIGNABLE],
    needs: [{ device: "intel-iommu" }, ...ASSIGNABLE_NEEDS],
  },
  amd: {
    tests: "pci",
    options: ["-device", "amd-iommu,dma-remap=on", ...ASSIGNABLE],
    needs: [{ device: "amd-iommu", property: "dma-remap" }, ...ASSIGNABLE_NEEDS],
  },
};

/** What every machine needs: how results and output come out. */
export const COMMON_NEEDS: readonly QemuNeed[] = [{ device: "virtio-9p-pci" }, { device: "virtserialport" }];
