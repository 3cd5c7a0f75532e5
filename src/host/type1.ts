import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { Iova } from "../memory/address.js";
import type { MemorySpan } from "./host.js";

/**
 * The address space of a legacy VFIO container with a type1 v2 IOMMU (drivers/vfio/vfio_iommu_type1.c): one for all of
 * its devices, and dirty tracking that asks no device. Dirty is what mdevs pin or pinned; with one device that pins
 * nothing, all that is mapped is dirty at every read, and once more after that device has left.
 */
export interface Type1Iommu {
  /** True where every device writes only to pages that it has pinned: none forces everything to be dirty. */
  readonly pinnedScope: boolean;
  /**
   * VFIO_IOMMU_MAP_DMA
   * @throws UapiError EINVAL for an empty or misaligned range, no permission, IOVAs that an IOMMU lacks, or a container
   * without a device; EOVERFLOW; EEXIST; ENOSPC beyond the container's limit of mappings (65535 by default); EFAULT,
   * ENOMEM
   */
  mapDma(args: { iova: Iova; span: MemorySpan; readable: boolean; writeable: boolean }): Promise<void>;
  /**
   * VFIO_IOMMU_UNMAP_DMA; returns the bytes unmapped, 0 where nothing is mapped. With `all`, everything
   * (VFIO_DMA_UNMAP_FLAG_ALL); with `dirty`, the bits of what goes are added to that bitmap
   * (VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP). Mdevs unpin first.
   * @throws UapiError EINVAL for a misaligned or empty range, a mapping that is partly outside, `dirty` with `all`,
   * without tracking or with a page size other than the smallest; EOVERFLOW
   */
  unmapDma(args: { iova: Iova; length: bigint; all?: boolean; dirty?: DirtyBitmap }): Promise<bigint>;
  /**
   * VFIO_IOMMU_DIRTY_PAGES_FLAG_START. What is pinned now is dirty. Starting again changes nothing.
   * @throws UapiError EINVAL where a mapping has 2^31 pages or more
   */
  dirtyPagesStart(): Promise<void>;
  /** VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP. Stopping again changes nothing. */
  dirtyPagesStop(): Promise<void>;
  /**
   * VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: reads and clears, adding to `into`; unmapped stretches have no bits.
   * @throws UapiError EINVAL without tracking, for a page size other than the smallest that is supported, for a
   * misaligned or empty range or one that bisects a mapping; EOVERFLOW
   */
  dirtyPagesGetBitmap(query: { iova: Iova; length: bigint; into: DirtyBitmap }): Promise<void>;
}
