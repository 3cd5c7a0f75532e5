import { DirtmapError } from "../../errors.js";
import type { IovaRange } from "../../host/host.js";
import { isPowerOfTwo } from "../../memory/address.js";
import {
  VFIO_IOMMU_INFO_CAPS,
  VFIO_IOMMU_INFO_PGSIZES,
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
  VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
  VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
  vfio_iommu_type1_info,
  vfio_iommu_type1_info_cap_iova_range,
  vfio_iommu_type1_info_cap_migration,
  vfio_iommu_type1_info_dma_avail,
  vfio_iova_range,
} from "../../uapi/vfio.js";
import { infoCapabilities } from "../info-capabilities.js";

/** What VFIO_IOMMU_GET_INFO tells of a type1 container. It changes with the groups that are in it. */
export interface Type1Info {
  /** The smallest page that can be mapped, in bytes: addresses and lengths are multiples of it. */
  readonly pageSize: number;
  /** What can be mapped; null: everything, as with mdevs alone, which have no IOMMU that could set limits. */
  readonly iovaRanges: readonly IovaRange[] | null;
  /**
   * VFIO_IOMMU_DIRTY_PAGES is there: the page size of its bitmaps, the only one that Linux takes, and the bytes that a
   * bitmap may have. null: a kernel before 5.8, or iommufd in the container's place.
   */
  readonly dirtyPages: { readonly pageSize: number; readonly maxBitmapBytes: bigint } | null;
  /** Mappings that can be made yet; null where the kernel doesn't say (before 5.10). */
  readonly mappingsLeft: number | null;
}

/**
 * Reads the answer to VFIO_IOMMU_GET_INFO, with its capabilities.
 * @param answer as many bytes as its argsz says
 * @throws DirtmapError `MALFORMED` or `TRUNCATED` for what no kernel should answer
 */
export function decodeType1Info(answer: Uint8Array): Type1Info {
  const { flags, iova_pgsizes, cap_offset } = vfio_iommu_type1_info.decode(answer);
  // Before the flag was there, a container's pages were the processor's.
  const pageSize = (flags & VFIO_IOMMU_INFO_PGSIZES) === 0 ? 4096 : smallestOf(iova_pgsizes, "iova_pgsizes");
  let iovaRanges: IovaRange[] | null = null;
  let dirtyPages: Type1Info["dirtyPages"] = null;
  let mappingsLeft: number | null = null;
  const chain = (flags & VFIO_IOMMU_INFO_CAPS) === 0 ? 0 : cap_offset;
  for (const { id, version, offset } of infoCapabilities(answer, chain)) {
    // A new version has another layout: it is as if the capability weren't there.
    if (version !== 1) continue;
    if (id === VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) iovaRanges = decodeRanges(answer, offset);
    else if (id === VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL) {
      mappingsLeft = vfio_iommu_type1_info_dma_avail.decode(answer, offset).avail;
    } else if (id === VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION) {
      const { pgsize_bitmap, max_dirty_bitmap_size } = vfio_iommu_type1_info_cap_migration.decode(answer, offset);
      dirtyPages = { pageSize: smallestOf(pgsize_bitmap, "pgsize_bitmap"), maxBitmapBytes: max_dirty_bitmap_size };
    }
  }
  return { pageSize, iovaRanges, dirtyPages, mappingsLeft };
}

function decodeRanges(answer: Uint8Array, offset: number): IovaRange[] {
  const { nr_iovas } = vfio_iommu_type1_info_cap_iova_range.decode(answer, offset);
  const at = offset + vfio_iommu_type1_info_cap_iova_range.size;
  const room = Math.floor((answer.length - at) / vfio_iova_range.size);
  if (nr_iovas > room) malformed(`${nr_iovas} ranges, where ${room} fit`);
  return Array.from({ length: nr_iovas }, (_, index) => {
    const { start, end } = vfio_iova_range.decode(answer, at + index * vfio_iova_range.size);
    if (end < start) malformed(`a range from ${start} to ${end}`);
    return { start, last: end };
  });
}

/** The lowest bit of a bitmap of page sizes. */
function smallestOf(bitmap: bigint, name: string): number {
  const smallest = bitmap & -bitmap;
  // Above 1 GiB nothing is a page on any processor.
  if (!isPowerOfTwo(smallest) || smallest > 1n << 30n) malformed(`the page sizes ${bitmap} in ${name}`);
  return Number(smallest);
}

function malformed(what: string): never {
  throw new DirtmapError(`VFIO_IOMMU_GET_INFO answered ${what}`, { code: "MALFORMED" });
}
