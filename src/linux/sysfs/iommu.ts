import type { Roots } from "../roots.js";
import { exists, linkName, readValue } from "./files.js";

/** The system IOMMU in front of a device, as /sys/class/iommu has it. */
export interface IommuUnit {
  /** Its name there: `dmar1`, `ivhd0`, `smmu3.0x0000000009050000`. */
  readonly name: string;
  /** `intel-iommu`, `amd-iommu`, `arm-smmu-v3` …; the unit's name where the kind is not known. */
  readonly type: string;
  /** What its capability registers say of dirty tracking; null where sysfs doesn't show them. */
  readonly dirtyTracking: boolean | null;
}

/**
 * Kinds that give themselves away by their unit's name: the formats that the drivers pass to iommu_device_sysfs_add
 * (drivers/iommu).
 */
const BY_NAME: readonly (readonly [RegExp, string])[] = [
  [/^dmar\d+$/, "intel-iommu"],
  [/^ivhd\d+$/, "amd-iommu"],
  [/^smmu3\./, "arm-smmu-v3"],
  [/^smmu\./, "arm-smmu"],
  [/^riscv-iommu@/, "riscv-iommu"],
  [/^apple-dart\./, "apple-dart"],
];

/** The IOMMU that a device's `iommu` link leads to, or null where it has none. @param device its folder in sysfs */
export function readIommu(roots: Roots, device: string): IommuUnit | null {
  const name = linkName(`${device}/iommu`);
  if (name === null) return null;
  const unit = `${roots.sys}/class/iommu/${name}`;
  const type = iommuType(unit, name);
  return { name, type, dirtyTracking: dirtyTracking(unit, type) };
}

function iommuType(unit: string, name: string): string {
  for (const own of ["intel-iommu", "amd-iommu"]) if (exists(`${unit}/${own}`)) return own;
  const known = BY_NAME.find(([form]) => form.test(name));
  // virtio-iommu and others are named after the device that they are; its driver says what that is.
  return known?.[1] ?? linkName(`${unit}/device/driver`) ?? name;
}

/** SMTS, scalable mode, and SLADS (now SSADS), dirty bits of the second stage: VT-d 5.0, 11.4.3 ECAP_REG. */
const VTD_ECAP_SMTS = 1n << 43n;
const VTD_ECAP_SLADS = 1n << 45n;
/** HDSup: AMD I/O Virtualization Technology 3.10, 3.4.4 Extended Feature Register. */
const AMD_EFR_HDSUP = 1n << 52n;

function dirtyTracking(unit: string, type: string): boolean | null {
  if (type === "intel-iommu") {
    const ecap = register(readValue(`${unit}/intel-iommu/ecap`));
    // Linux tracks in scalable mode only (ssads_supported in drivers/iommu/intel/iommu.h).
    return ecap === null ? null : (ecap & VTD_ECAP_SMTS) !== 0n && (ecap & VTD_ECAP_SLADS) !== 0n;
  }
  if (type === "amd-iommu") {
    // "EFR:EFR2"; kernels before 6.6 show the first alone.
    const efr = register(readValue(`${unit}/amd-iommu/features`)?.split(":")[0] ?? null);
    return efr === null ? null : (efr & AMD_EFR_HDSUP) !== 0n;
  }
  return null;
}

/** A register as sysfs shows it: up to 64 bits in hexadecimal, without `0x`. */
function register(text: string | null): bigint | null {
  return text !== null && /^[0-9a-f]{1,16}$/i.test(text) ? BigInt(`0x${text}`) : null;
}
