import type { HwInfo } from "../../host/host.js";
import { GiB, KiB, MiB } from "../../memory/address.js";
import {
  IOMMU_HW_CAP_DIRTY_TRACKING,
  IOMMU_HW_INFO_TYPE,
  iommu_hw_info_amd,
  iommu_hw_info_arm_smmuv3,
  iommu_hw_info_vtd,
} from "../../uapi/iommufd.js";

/** What the kernel answered to IOMMU_GET_HW_INFO. */
export interface RawHwInfo {
  /** out_data_type */
  readonly type: number;
  /** out_capabilities */
  readonly capabilities: bigint;
  /** The type's structure, as much of it as this kernel has. */
  readonly data: Uint8Array;
}

interface Decoder {
  readonly type: HwInfo["type"];
  /** What is needed of the structure, in bytes. */
  readonly bytes: number;
  readonly pageSizes: (data: Uint8Array) => readonly number[];
}

const DECODERS: ReadonlyMap<number, Decoder> = new Map([
  [IOMMU_HW_INFO_TYPE.INTEL_VTD, { type: "intel-vtd", bytes: iommu_hw_info_vtd.size, pageSizes: vtdPageSizes }],
  [
    IOMMU_HW_INFO_TYPE.ARM_SMMUV3,
    { type: "arm-smmuv3", bytes: iommu_hw_info_arm_smmuv3.size, pageSizes: smmuPageSizes },
  ],
  [IOMMU_HW_INFO_TYPE.AMD, { type: "amd", bytes: iommu_hw_info_amd.size, pageSizes: amdPageSizes }],
]);

/** Says what the registers mean. Of a type that isn't known, or whose structure is cut short, no page sizes are told. */
export function decodeHwInfo({ type, capabilities, data }: RawHwInfo): HwInfo {
  const dirtyTracking = (capabilities & BigInt(IOMMU_HW_CAP_DIRTY_TRACKING)) !== 0n;
  if (type === IOMMU_HW_INFO_TYPE.NONE) return { dirtyTracking, type: "none", pageSizes: [], data };
  const decoder = DECODERS.get(type);
  if (decoder === undefined) return { dirtyTracking, type: "other", pageSizes: [], data };
  const pageSizes = data.length < decoder.bytes ? [] : decoder.pageSizes(data);
  return { dirtyTracking, type: decoder.type, pageSizes, data };
}

/** VT-d specification (D51397), section 11.4.2: bits 37:34 of the capability register, SSLPS. 4 KiB is always there. */
function vtdPageSizes(data: Uint8Array): readonly number[] {
  const sslps = Number((iommu_hw_info_vtd.decode(data).cap_reg >> 34n) & 0xfn);
  return [4 * KiB, ...(sslps & 0b01 ? [2 * MiB] : []), ...(sslps & 0b10 ? [1 * GiB] : [])];
}

/**
 * SMMUv3 specification (IHI 0070), section 6.3.6: SMMU_IDR5.GRAN4K, GRAN16K and GRAN64K, bits 4 to 6. Each brings its
 * pages and blocks; a table has those of one granule, which is the system's page size where that is there.
 */
function smmuPageSizes(data: Uint8Array): readonly number[] {
  const idr5 = iommu_hw_info_arm_smmuv3.decode(data).idr[5];
  return [
    ...(idr5 & (1 << 4) ? [4 * KiB, 2 * MiB, 1 * GiB] : []),
    ...(idr5 & (1 << 5) ? [16 * KiB, 32 * MiB] : []),
    ...(idr5 & (1 << 6) ? [64 * KiB, 512 * MiB] : []),
  ].sort((a, b) => a - b);
}

/**
 * AMD I/O Virtualization Technology (48882), section 2.2.3, "I/O Page Tables for Host Translations": any power of two from
 * 4 KiB up to half of what the top level's entry reaches, except 512 GiB, which Linux leaves out because of an erratum.
 * The number of levels is 4 + EFR.HATS, bits 11:10.
 */
function amdPageSizes(data: Uint8Array): readonly number[] {
  const hats = Number((iommu_hw_info_amd.decode(data).efr >> 10n) & 0x3n);
  // Leaves lie at all levels but a sixth; one entry of level n reaches 2^(12 + 9 * (n - 1)) bytes.
  const levels = Math.min(4 + hats, 5);
  const largest = Math.min(12 + 9 * levels - 1, 51);
  const sizes = Array.from({ length: largest - 12 + 1 }, (_, index) => 2 ** (12 + index));
  return sizes.filter((size) => size !== 512 * GiB);
}
