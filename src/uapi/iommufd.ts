import { _IO, type IoctlRequest } from "./ioctl.js";
import { struct } from "./struct.js";

/** Numbers and structures of include/uapi/linux/iommufd.h, with the header's names. */

/** enum iommufd_ioas_map_flags */
export const IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0;
export const IOMMU_IOAS_MAP_WRITEABLE = 1 << 1;
export const IOMMU_IOAS_MAP_READABLE = 1 << 2;

/** enum iommufd_option */
export const IOMMU_OPTION_RLIMIT_MODE = 0;
export const IOMMU_OPTION_HUGE_PAGES = 1;

/** enum iommufd_option_ops */
export const IOMMU_OPTION_OP_SET = 0;
export const IOMMU_OPTION_OP_GET = 1;

/** enum iommufd_hwpt_alloc_flags */
export const IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0;
export const IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 1 << 1;

/** enum iommufd_hw_capabilities */
export const IOMMU_HW_CAP_DIRTY_TRACKING = 1 << 0;

/** enum iommufd_hwpt_set_dirty_tracking_flags */
export const IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 1;

/** enum iommufd_hwpt_get_dirty_bitmap_flags */
export const IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 1;

/** enum iommu_hw_info_type */
export const IOMMU_HW_INFO_TYPE = { NONE: 0, INTEL_VTD: 1, ARM_SMMUV3: 2, TEGRA241_CMDQV: 3, AMD: 4 } as const;

/** IOMMUFD_TYPE; the commands count from IOMMUFD_CMD_BASE, 0x80. */
function request(name: string, number: number): IoctlRequest {
  return { name, number: _IO(";", number) };
}

export const iommu_destroy = struct("iommu_destroy", { size: "u32", id: "u32" });
export const IOMMU_DESTROY = request("IOMMU_DESTROY", 0x80);

export const iommu_ioas_alloc = struct("iommu_ioas_alloc", { size: "u32", flags: "u32", out_ioas_id: "u32" });
export const IOMMU_IOAS_ALLOC = request("IOMMU_IOAS_ALLOC", 0x81);

export const iommu_iova_range = struct("iommu_iova_range", { start: "u64", last: "u64" });

export const iommu_ioas_allow_iovas = struct("iommu_ioas_allow_iovas", {
  size: "u32",
  ioas_id: "u32",
  num_iovas: "u32",
  __reserved: "u32",
  allowed_iovas: "u64",
});
export const IOMMU_IOAS_ALLOW_IOVAS = request("IOMMU_IOAS_ALLOW_IOVAS", 0x82);

export const iommu_ioas_copy = struct("iommu_ioas_copy", {
  size: "u32",
  flags: "u32",
  dst_ioas_id: "u32",
  src_ioas_id: "u32",
  length: "u64",
  dst_iova: "u64",
  src_iova: "u64",
});
export const IOMMU_IOAS_COPY = request("IOMMU_IOAS_COPY", 0x83);

export const iommu_ioas_iova_ranges = struct("iommu_ioas_iova_ranges", {
  size: "u32",
  ioas_id: "u32",
  num_iovas: "u32",
  __reserved: "u32",
  allowed_iovas: "u64",
  out_iova_alignment: "u64",
});
export const IOMMU_IOAS_IOVA_RANGES = request("IOMMU_IOAS_IOVA_RANGES", 0x84);

export const iommu_ioas_map = struct("iommu_ioas_map", {
  size: "u32",
  flags: "u32",
  ioas_id: "u32",
  __reserved: "u32",
  user_va: "u64",
  length: "u64",
  iova: "u64",
});
export const IOMMU_IOAS_MAP = request("IOMMU_IOAS_MAP", 0x85);

export const iommu_ioas_unmap = struct("iommu_ioas_unmap", {
  size: "u32",
  ioas_id: "u32",
  iova: "u64",
  length: "u64",
});
export const IOMMU_IOAS_UNMAP = request("IOMMU_IOAS_UNMAP", 0x86);

export const iommu_option = struct("iommu_option", {
  size: "u32",
  option_id: "u32",
  op: "u16",
  __reserved: "u16",
  object_id: "u32",
  val64: "u64",
});
export const IOMMU_OPTION = request("IOMMU_OPTION", 0x87);

export const iommu_hwpt_alloc = struct("iommu_hwpt_alloc", {
  size: "u32",
  flags: "u32",
  dev_id: "u32",
  pt_id: "u32",
  out_hwpt_id: "u32",
  __reserved: "u32",
  data_type: "u32",
  data_len: "u32",
  data_uptr: "u64",
  fault_id: "u32",
  __reserved2: "u32",
});
export const IOMMU_HWPT_ALLOC = request("IOMMU_HWPT_ALLOC", 0x89);

export const iommu_hw_info = struct("iommu_hw_info", {
  size: "u32",
  flags: "u32",
  dev_id: "u32",
  data_len: "u32",
  data_uptr: "u64",
  /** A union with in_data_type. */
  out_data_type: "u32",
  out_max_pasid_log2: "u8",
  out_capabilities: "u64",
});
export const IOMMU_GET_HW_INFO = request("IOMMU_GET_HW_INFO", 0x8a);

export const iommu_hwpt_set_dirty_tracking = struct("iommu_hwpt_set_dirty_tracking", {
  size: "u32",
  flags: "u32",
  hwpt_id: "u32",
  __reserved: "u32",
});
export const IOMMU_HWPT_SET_DIRTY_TRACKING = request("IOMMU_HWPT_SET_DIRTY_TRACKING", 0x8b);

export const iommu_hwpt_get_dirty_bitmap = struct("iommu_hwpt_get_dirty_bitmap", {
  size: "u32",
  hwpt_id: "u32",
  flags: "u32",
  __reserved: "u32",
  iova: "u64",
  length: "u64",
  page_size: "u64",
  data: "u64",
});
export const IOMMU_HWPT_GET_DIRTY_BITMAP = request("IOMMU_HWPT_GET_DIRTY_BITMAP", 0x8c);

export const iommu_ioas_map_file = struct("iommu_ioas_map_file", {
  size: "u32",
  flags: "u32",
  ioas_id: "u32",
  fd: "s32",
  start: "u64",
  length: "u64",
  iova: "u64",
});
export const IOMMU_IOAS_MAP_FILE = request("IOMMU_IOAS_MAP_FILE", 0x8f);

export const iommu_hw_info_vtd = struct("iommu_hw_info_vtd", {
  flags: "u32",
  __reserved: "u32",
  cap_reg: "u64",
  ecap_reg: "u64",
});

export const iommu_hw_info_arm_smmuv3 = struct("iommu_hw_info_arm_smmuv3", {
  flags: "u32",
  __reserved: "u32",
  idr: ["u32", 6],
  iidr: "u32",
  aidr: "u32",
});

export const iommu_hw_info_amd = struct("iommu_hw_info_amd", { efr: "u64", efr2: "u64" });
