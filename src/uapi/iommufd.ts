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

/** The argument of {@link IOMMU_DESTROY}. */
export const iommu_destroy = struct("iommu_destroy", { size: "u32", id: "u32" });
/** Destroys an object. Takes {@link iommu_destroy}. */
export const IOMMU_DESTROY = request("IOMMU_DESTROY", 0x80);

/** The argument of {@link IOMMU_IOAS_ALLOC}. */
export const iommu_ioas_alloc = struct("iommu_ioas_alloc", { size: "u32", flags: "u32", out_ioas_id: "u32" });
/** Makes an IOAS. Takes {@link iommu_ioas_alloc}. */
export const IOMMU_IOAS_ALLOC = request("IOMMU_IOAS_ALLOC", 0x81);

/** A range of IOVAs; `last` is inclusive. */
export const iommu_iova_range = struct("iommu_iova_range", { start: "u64", last: "u64" });

/** The argument of {@link IOMMU_IOAS_ALLOW_IOVAS}; `allowed_iovas` points to an array of {@link iommu_iova_range}. */
export const iommu_ioas_allow_iovas = struct("iommu_ioas_allow_iovas", {
  size: "u32",
  ioas_id: "u32",
  num_iovas: "u32",
  __reserved: "u32",
  allowed_iovas: "u64",
});
/** Replaces the ranges that the IOVA allocator may use. Takes {@link iommu_ioas_allow_iovas}. */
export const IOMMU_IOAS_ALLOW_IOVAS = request("IOMMU_IOAS_ALLOW_IOVAS", 0x82);

/** The argument of {@link IOMMU_IOAS_COPY}. */
export const iommu_ioas_copy = struct("iommu_ioas_copy", {
  size: "u32",
  flags: "u32",
  dst_ioas_id: "u32",
  src_ioas_id: "u32",
  length: "u64",
  dst_iova: "u64",
  src_iova: "u64",
});
/** Maps the memory of one range at another. Takes {@link iommu_ioas_copy}. */
export const IOMMU_IOAS_COPY = request("IOMMU_IOAS_COPY", 0x83);

/** The argument of {@link IOMMU_IOAS_IOVA_RANGES}; `allowed_iovas` points to an array of {@link iommu_iova_range}. */
export const iommu_ioas_iova_ranges = struct("iommu_ioas_iova_ranges", {
  size: "u32",
  ioas_id: "u32",
  num_iovas: "u32",
  __reserved: "u32",
  allowed_iovas: "u64",
  out_iova_alignment: "u64",
});
/** Lists the ranges that can be mapped. Takes {@link iommu_ioas_iova_ranges}. */
export const IOMMU_IOAS_IOVA_RANGES = request("IOMMU_IOAS_IOVA_RANGES", 0x84);

/** The argument of {@link IOMMU_IOAS_MAP}. */
export const iommu_ioas_map = struct("iommu_ioas_map", {
  size: "u32",
  flags: "u32",
  ioas_id: "u32",
  __reserved: "u32",
  user_va: "u64",
  length: "u64",
  iova: "u64",
});
/** Maps memory of the process. Takes {@link iommu_ioas_map}. */
export const IOMMU_IOAS_MAP = request("IOMMU_IOAS_MAP", 0x85);

/** The argument of {@link IOMMU_IOAS_UNMAP}. */
export const iommu_ioas_unmap = struct("iommu_ioas_unmap", {
  size: "u32",
  ioas_id: "u32",
  iova: "u64",
  length: "u64",
});
/** Unmaps whole mappings. Takes {@link iommu_ioas_unmap}. */
export const IOMMU_IOAS_UNMAP = request("IOMMU_IOAS_UNMAP", 0x86);

/** The argument of {@link IOMMU_OPTION}. */
export const iommu_option = struct("iommu_option", {
  size: "u32",
  option_id: "u32",
  op: "u16",
  __reserved: "u16",
  object_id: "u32",
  val64: "u64",
});
/** Sets or gets an option. Takes {@link iommu_option}. */
export const IOMMU_OPTION = request("IOMMU_OPTION", 0x87);

/** The argument of {@link IOMMU_HWPT_ALLOC}. */
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
/** Makes an HWPT. Takes {@link iommu_hwpt_alloc}. */
export const IOMMU_HWPT_ALLOC = request("IOMMU_HWPT_ALLOC", 0x89);

/** The argument of {@link IOMMU_GET_HW_INFO}; `data_uptr` points to room for the structure of the IOMMU's type. */
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
/** Describes the IOMMU in front of a device. Takes {@link iommu_hw_info}. */
export const IOMMU_GET_HW_INFO = request("IOMMU_GET_HW_INFO", 0x8a);

/** The argument of {@link IOMMU_HWPT_SET_DIRTY_TRACKING}. */
export const iommu_hwpt_set_dirty_tracking = struct("iommu_hwpt_set_dirty_tracking", {
  size: "u32",
  flags: "u32",
  hwpt_id: "u32",
  __reserved: "u32",
});
/** Switches dirty tracking on or off. Takes {@link iommu_hwpt_set_dirty_tracking}. */
export const IOMMU_HWPT_SET_DIRTY_TRACKING = request("IOMMU_HWPT_SET_DIRTY_TRACKING", 0x8b);

/** The argument of {@link IOMMU_HWPT_GET_DIRTY_BITMAP}. */
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
/** Reads dirty bits. Takes {@link iommu_hwpt_get_dirty_bitmap}. */
export const IOMMU_HWPT_GET_DIRTY_BITMAP = request("IOMMU_HWPT_GET_DIRTY_BITMAP", 0x8c);

/** The argument of {@link IOMMU_IOAS_MAP_FILE}. */
export const iommu_ioas_map_file = struct("iommu_ioas_map_file", {
  size: "u32",
  flags: "u32",
  ioas_id: "u32",
  fd: "s32",
  start: "u64",
  length: "u64",
  iova: "u64",
});
/** Maps a file. Takes {@link iommu_ioas_map_file}. */
export const IOMMU_IOAS_MAP_FILE = request("IOMMU_IOAS_MAP_FILE", 0x8f);

/** The data of {@link IOMMU_GET_HW_INFO} for Intel VT-d. */
export const iommu_hw_info_vtd = struct("iommu_hw_info_vtd", {
  flags: "u32",
  __reserved: "u32",
  cap_reg: "u64",
  ecap_reg: "u64",
});

/** The data of {@link IOMMU_GET_HW_INFO} for an Arm SMMUv3. */
export const iommu_hw_info_arm_smmuv3 = struct("iommu_hw_info_arm_smmuv3", {
  flags: "u32",
  __reserved: "u32",
  idr: ["u32", 6],
  iidr: "u32",
  aidr: "u32",
});

/** The data of {@link IOMMU_GET_HW_INFO} for an AMD IOMMU. */
export const iommu_hw_info_amd = struct("iommu_hw_info_amd", { efr: "u64", efr2: "u64" });
