import { _IO } from "../../../src/uapi/ioctl.js";
import { type Fields, type Struct, struct } from "../../../src/uapi/struct.js";

/** Numbers and structures of drivers/iommu/iommufd/iommufd_test.h, the interface of the kernel's mock IOMMU. */

/** What the default page tables have; those of MOCK_IOMMUPT_HUGE have pages of 4 KiB and 1 MiB, and no aperture. */
export const MOCK_APERTURE_START = 1n << 24n;
export const MOCK_APERTURE_LAST = (1n << 31n) - 1n;
export const MOCK_PAGE_SIZE = 2048;
export const MOCK_HUGE_PAGE_SIZE = 512 * MOCK_PAGE_SIZE;

export const MOCK_FLAGS_DEVICE_NO_DIRTY = 1 << 0;

export const IOMMU_HW_INFO_TYPE_SELFTEST = 0xfeedbeef;
export const IOMMU_HW_INFO_SELFTEST_REGVAL = 0xdeadbeef;
export const iommu_test_hw_info = struct("iommu_test_hw_info", { flags: "u32", test_reg: "u32" });

export const IOMMU_HWPT_DATA_SELFTEST = 0xdead;
export const MOCK_IOMMUPT_HUGE = 1;
export const iommu_hwpt_selftest = struct("iommu_hwpt_selftest", { iotlb: "u32", pagetable_type: "u32" });

/** IOMMUFD_CMD_BASE + 32 */
export const IOMMU_TEST_CMD = { name: "IOMMU_TEST_CMD", number: _IO(";", 0x80 + 32) };

export const iommu_test_cmd = struct("iommu_test_cmd", {
  size: "u32",
  op: "u32",
  id: "u32",
  __reserved: "u32",
  /** Without a name in the header; as large as its largest member, `dirty`. */
  union: ["u64", 6],
  last: "u32",
});

/** An operation: its number, and its member of the union. */
export interface TestOperation<Of extends Fields> {
  readonly op: number;
  readonly member: Struct<Of>;
}

function operation<const Of extends Fields>(op: number, name: string, fields: Of): TestOperation<Of> {
  return { op, member: struct(`iommu_test_cmd.${name}`, fields) };
}

/** Counted as in the header's enum, from IOMMU_TEST_OP_ADD_RESERVED = 1. */
export const IOMMU_TEST_OP = {
  ADD_RESERVED: operation(1, "add_reserved", { start: "u64", length: "u64" }),
  MD_CHECK_MAP: operation(3, "check_map", { iova: "u64", length: "u64", uptr: "u64" }),
  MD_CHECK_REFS: operation(4, "check_refs", { length: "u64", uptr: "u64", refs: "u32" }),
  SET_TEMP_MEMORY_LIMIT: operation(9, "memory_limit", { limit: "u32" }),
  MOCK_DOMAIN_REPLACE: operation(10, "mock_domain_replace", { pt_id: "u32" }),
  MOCK_DOMAIN_FLAGS: operation(12, "mock_domain_flags", {
    out_stdev_id: "u32",
    out_hwpt_id: "u32",
    out_idev_id: "u32",
    dev_flags: "u32",
  }),
  DIRTY: operation(13, "dirty", {
    flags: "u32",
    iova: "u64",
    length: "u64",
    page_size: "u64",
    uptr: "u64",
    out_nr_dirty: "u64",
  }),
} as const;
