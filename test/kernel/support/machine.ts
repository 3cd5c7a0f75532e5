import type { HwInfo } from "../../../src/host/host.js";

/** The IOMMU of a machine with PCI devices, as it shows itself. QEMU's IOMMUs have no dirty bits. */
interface MachineIommu {
  /** Its unit's name in /sys/class/iommu. */
  readonly unit: string;
  /** Its kind in sysfs. */
  readonly sysfs: string;
  /** Its kind as GET_HW_INFO names it. */
  readonly hwInfoType: HwInfo["type"];
  /** Its kind as far as Dirtmap can find out. */
  readonly type: HwInfo["type"];
  /** The first of the page sizes that GET_HW_INFO tells; undefined: it tells none. */
  readonly smallestPage: number | undefined;
}

const IOMMUS: Readonly<Record<string, MachineIommu>> = {
  intel: { unit: "dmar0", sysfs: "intel-iommu", hwInfoType: "intel-vtd", type: "intel-vtd", smallestPage: 4096 },
  // The kernel under test is built without CONFIG_AMD_IOMMU_IOMMUFD: GET_HW_INFO's type is NONE, without data.
  amd: { unit: "ivhd0", sysfs: "amd-iommu", hwInfoType: "none", type: "amd", smallestPage: undefined },
};

/** @throws Error for a machine that has none: npm run test:kernel boots others */
function iommuOf(machine: string): MachineIommu {
  const iommu = IOMMUS[machine];
  if (iommu !== undefined) return iommu;
  throw new Error(`DIRTMAP_TEST_MACHINE is '${machine}': run npm run test:kernel, which boots ${Object.keys(IOMMUS)}`);
}

/** The IOMMU of the machine that this test runs on. */
export const IOMMU = iommuOf(process.env.DIRTMAP_TEST_MACHINE ?? "");
