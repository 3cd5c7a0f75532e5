import { MiB } from "../../src/memory/address.js";

/** Which of the mock IOMMU's page tables a sequence uses. In the kernel's units. */
export interface MockKind {
  readonly name: "default" | "huge" | "pages";
  /** Size of the smallest IOMMU page that mappings are aligned to. */
  readonly ioPage: number;
  /** null: any power of two from the smallest on. */
  readonly leafSizes: readonly number[] | null;
  /** The aperture, last one inclusive. */
  readonly first: bigint;
  readonly last: bigint;
  /** HWPTs that the kernel makes for devices attached to an IOAS are of this kind. */
  readonly automatic: boolean;
}

/** MOCK_IOMMUPT_DEFAULT: contiguous leaves of all powers of two, on pages that are half as large as the CPU's. */
export const DEFAULT_KIND: MockKind = {
  name: "default",
  ioPage: 2048,
  leafSizes: null,
  first: 1n << 24n,
  last: (1n << 31n) - 1n,
  automatic: true,
};

/** MOCK_IOMMUPT_HUGE, which only IOMMU_HWPT_ALLOC gives: three levels of 512 entries on pages of 2 KiB. */
export const HUGE_KIND: MockKind = {
  name: "huge",
  ioPage: 4096,
  leafSizes: [4096, MiB],
  first: 0n,
  last: (1n << 38n) - 1n,
  automatic: false,
};

/** What the emulated host and the vfio-user host have in common, and no mock: leaves of one page in 48 bits. */
export const PAGES_KIND: MockKind = {
  name: "pages",
  ioPage: 4096,
  leafSizes: [4096],
  first: 0n,
  last: (1n << 48n) - 1n,
  automatic: true,
};

/** Memory that a sequence maps, in the kernel's bytes: one page of hugetlbfs, which is physically contiguous. */
export const MEMORY_BYTES = 2 * MiB;
