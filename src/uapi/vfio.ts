import { _IO, type IoctlRequest } from "./ioctl.js";
import { struct } from "./struct.js";

/** Numbers and structures of include/uapi/linux/vfio.h, with the header's names. */

/** VFIO_TYPE; the commands count from VFIO_BASE, 100. */
function request(name: string, number: number): IoctlRequest {
  return { name, number: _IO(";", 100 + number) };
}

/** Indices of a PCI device's regions. */
export const VFIO_PCI_REGION_INDEX = {
  BAR0: 0,
  BAR1: 1,
  BAR2: 2,
  BAR3: 3,
  BAR4: 4,
  BAR5: 5,
  ROM: 6,
  CONFIG: 7,
  VGA: 8,
} as const;

/** Indices of a PCI device's interrupts. */
export const VFIO_PCI_IRQ_INDEX = { INTX: 0, MSI: 1, MSIX: 2, ERR: 3, REQ: 4 } as const;

/** Flags of struct vfio_device_info. */
export const VFIO_DEVICE_FLAGS_RESET = 1 << 0;
export const VFIO_DEVICE_FLAGS_PCI = 1 << 1;

/** The argument of {@link VFIO_DEVICE_GET_INFO}. */
export const vfio_device_info = struct("vfio_device_info", {
  argsz: "u32",
  flags: "u32",
  num_regions: "u32",
  num_irqs: "u32",
  cap_offset: "u32",
  pad: "u32",
});
/** Describes a device. Takes {@link vfio_device_info}. */
export const VFIO_DEVICE_GET_INFO = request("VFIO_DEVICE_GET_INFO", 7);

/** Flags of struct vfio_region_info. */
export const VFIO_REGION_INFO_FLAG_READ = 1 << 0;
export const VFIO_REGION_INFO_FLAG_WRITE = 1 << 1;

/** The argument of {@link VFIO_DEVICE_GET_REGION_INFO}. */
export const vfio_region_info = struct("vfio_region_info", {
  argsz: "u32",
  flags: "u32",
  index: "u32",
  cap_offset: "u32",
  size: "u64",
  offset: "u64",
});
/** Describes a region of a device. Takes {@link vfio_region_info}. */
export const VFIO_DEVICE_GET_REGION_INFO = request("VFIO_DEVICE_GET_REGION_INFO", 8);

/** Flags of struct vfio_irq_info. */
export const VFIO_IRQ_INFO_EVENTFD = 1 << 0;

/** The argument of {@link VFIO_DEVICE_GET_IRQ_INFO}. */
export const vfio_irq_info = struct("vfio_irq_info", { argsz: "u32", flags: "u32", index: "u32", count: "u32" });
/** Describes one kind of interrupt of a device. Takes {@link vfio_irq_info}. */
export const VFIO_DEVICE_GET_IRQ_INFO = request("VFIO_DEVICE_GET_IRQ_INFO", 9);

/** Flags of struct vfio_irq_set. */
export const VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5;

/** The argument of {@link VFIO_DEVICE_SET_IRQS}. A flexible array follows: with DATA_EVENTFD, an s32 per interrupt. */
export const vfio_irq_set = struct("vfio_irq_set", {
  argsz: "u32",
  flags: "u32",
  index: "u32",
  start: "u32",
  count: "u32",
});
/** Sets up interrupts. Takes {@link vfio_irq_set}. */
export const VFIO_DEVICE_SET_IRQS = request("VFIO_DEVICE_SET_IRQS", 10);

/** Resets a device. Takes nothing. */
export const VFIO_DEVICE_RESET = request("VFIO_DEVICE_RESET", 11);

/** The argument of {@link VFIO_DEVICE_FEATURE_IOCTL}. A flexible array follows: the feature's own structure. */
export const vfio_device_feature = struct("vfio_device_feature", { argsz: "u32", flags: "u32" });
/** Probes, gets or sets a feature ({@link VFIO_DEVICE_FEATURE}). Takes {@link vfio_device_feature}. */
export const VFIO_DEVICE_FEATURE_IOCTL = request("VFIO_DEVICE_FEATURE", 17);

/** The argument of {@link VFIO_DEVICE_BIND_IOMMUFD}. */
export const vfio_device_bind_iommufd = struct("vfio_device_bind_iommufd", {
  argsz: "u32",
  flags: "u32",
  iommufd: "s32",
  out_devid: "u32",
  token_uuid_ptr: "u64",
});
/** Binds a device to an iommufd. Takes {@link vfio_device_bind_iommufd}. */
export const VFIO_DEVICE_BIND_IOMMUFD = request("VFIO_DEVICE_BIND_IOMMUFD", 18);

/** The argument of {@link VFIO_DEVICE_ATTACH_IOMMUFD_PT}. */
export const vfio_device_attach_iommufd_pt = struct("vfio_device_attach_iommufd_pt", {
  argsz: "u32",
  flags: "u32",
  pt_id: "u32",
  pasid: "u32",
});
/** Attaches a device to an IOAS or HWPT. Takes {@link vfio_device_attach_iommufd_pt}. */
export const VFIO_DEVICE_ATTACH_IOMMUFD_PT = request("VFIO_DEVICE_ATTACH_IOMMUFD_PT", 19);

/** The argument of {@link VFIO_DEVICE_DETACH_IOMMUFD_PT}. */
export const vfio_device_detach_iommufd_pt = struct("vfio_device_detach_iommufd_pt", {
  argsz: "u32",
  flags: "u32",
  pasid: "u32",
});
/** Detaches a device. Takes {@link vfio_device_detach_iommufd_pt}. */
export const VFIO_DEVICE_DETACH_IOMMUFD_PT = request("VFIO_DEVICE_DETACH_IOMMUFD_PT", 20);

/** enum vfio_device_mig_state */
export const VFIO_DEVICE_STATE = {
  ERROR: 0,
  STOP: 1,
  RUNNING: 2,
  STOP_COPY: 3,
  RESUMING: 4,
  RUNNING_P2P: 5,
  PRE_COPY: 6,
  PRE_COPY_P2P: 7,
} as const;

/** The name of a migration state (enum vfio_device_mig_state), without the header's prefix. */
export type MigState = keyof typeof VFIO_DEVICE_STATE;

/**
 * States of one saving session: they share its data_fd, which lives as long as the device stays among them (the header,
 * on the arc RUNNING to PRE_COPY).
 */
export const SAVING_GROUP: ReadonlySet<MigState> = new Set(["PRE_COPY", "PRE_COPY_P2P", "STOP_COPY"]);

/** Flags of struct vfio_device_feature_migration. */
export const VFIO_MIGRATION_STOP_COPY = 1 << 0;
export const VFIO_MIGRATION_P2P = 1 << 1;
export const VFIO_MIGRATION_PRE_COPY = 1 << 2;

/** The structure of {@link VFIO_DEVICE_FEATURE}.MIGRATION. */
export const vfio_device_feature_migration = struct("vfio_device_feature_migration", { flags: "u64" });

/** The structure of {@link VFIO_DEVICE_FEATURE}.MIG_DEVICE_STATE. */
export const vfio_device_feature_mig_state = struct("vfio_device_feature_mig_state", {
  device_state: "u32",
  data_fd: "s32",
});

/** The structure of {@link VFIO_DEVICE_FEATURE}.MIG_DATA_SIZE. */
export const vfio_device_feature_mig_data_size = struct("vfio_device_feature_mig_data_size", {
  stop_copy_length: "u64",
});

/**
 * The structure of {@link VFIO_DEVICE_FEATURE}.DMA_LOGGING_START. `ranges` points to an array of
 * {@link vfio_device_feature_dma_logging_range}.
 */
export const vfio_device_feature_dma_logging_control = struct("vfio_device_feature_dma_logging_control", {
  page_size: "u64",
  num_ranges: "u32",
  __reserved: "u32",
  ranges: "u64",
});
/** A range of {@link vfio_device_feature_dma_logging_control}. */
export const vfio_device_feature_dma_logging_range = struct("vfio_device_feature_dma_logging_range", {
  iova: "u64",
  length: "u64",
});
/** The structure of {@link VFIO_DEVICE_FEATURE}.DMA_LOGGING_REPORT. */
export const vfio_device_feature_dma_logging_report = struct("vfio_device_feature_dma_logging_report", {
  iova: "u64",
  length: "u64",
  page_size: "u64",
  bitmap: "u64",
});

/** Flags of struct vfio_precopy_info. */
export const VFIO_PRECOPY_INFO_REINIT = 1 << 0;

/** The argument of {@link VFIO_MIG_GET_PRECOPY_INFO}. */
export const vfio_precopy_info = struct("vfio_precopy_info", {
  argsz: "u32",
  flags: "u32",
  initial_bytes: "u64",
  dirty_bytes: "u64",
});
/** Returns the bytes left of the pre-copy phase, on a data_fd. Takes {@link vfio_precopy_info}. */
export const VFIO_MIG_GET_PRECOPY_INFO = request("VFIO_MIG_GET_PRECOPY_INFO", 21);

/** Feature indices of VFIO_DEVICE_FEATURE. */
export const VFIO_DEVICE_FEATURE = {
  MIGRATION: 1,
  MIG_DEVICE_STATE: 2,
  DMA_LOGGING_START: 6,
  DMA_LOGGING_STOP: 7,
  DMA_LOGGING_REPORT: 8,
  MIG_DATA_SIZE: 9,
  MIG_PRECOPY_INFOv2: 12,
} as const;

/** The name of a device feature (VFIO_DEVICE_FEATURE_*), without the header's prefix. */
export type DeviceFeature = keyof typeof VFIO_DEVICE_FEATURE;

/** Operations that VFIO_DEVICE_FEATURE can be probed for. */
export const VFIO_DEVICE_FEATURE_GET = 1 << 16;
export const VFIO_DEVICE_FEATURE_SET = 1 << 17;
export const VFIO_DEVICE_FEATURE_PROBE = 1 << 18;

/** The header of each capability in the answer of an INFO ioctl. `next` is an offset from the answer's start; 0: the last one. */
export const vfio_info_cap_header = struct("vfio_info_cap_header", { id: "u16", version: "u16", next: "u32" });

/* -------- The legacy interface: containers (/dev/vfio/vfio) and groups (/dev/vfio/$GROUP) -------- */

/** The version of the legacy interface. */
export const VFIO_API_VERSION = 0;
/** Returns {@link VFIO_API_VERSION}. Takes nothing. */
export const VFIO_GET_API_VERSION = request("VFIO_GET_API_VERSION", 0);

/** Extensions, including the types of IOMMU. */
export const VFIO_TYPE1_IOMMU = 1;
export const VFIO_TYPE1v2_IOMMU = 3;
export const VFIO_UNMAP_ALL = 9;
/** Tells whether an extension is supported. Takes it by value. */
export const VFIO_CHECK_EXTENSION = request("VFIO_CHECK_EXTENSION", 1);
/** Sets a container's type of IOMMU. Takes it by value. */
export const VFIO_SET_IOMMU = request("VFIO_SET_IOMMU", 2);

/** Flags of {@link vfio_group_status}. */
export const VFIO_GROUP_FLAGS_VIABLE = 1 << 0;
export const VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1;
/** The argument of {@link VFIO_GROUP_GET_STATUS}. */
export const vfio_group_status = struct("vfio_group_status", { argsz: "u32", flags: "u32" });
/** Returns a group's flags. Takes {@link vfio_group_status}. */
export const VFIO_GROUP_GET_STATUS = request("VFIO_GROUP_GET_STATUS", 3);
/** Adds a group to a container. Takes a pointer to the container's descriptor, an int. */
export const VFIO_GROUP_SET_CONTAINER = request("VFIO_GROUP_SET_CONTAINER", 4);
/** Takes a group out of its container. Takes nothing. */
export const VFIO_GROUP_UNSET_CONTAINER = request("VFIO_GROUP_UNSET_CONTAINER", 5);
/** Opens a device of a group. Takes its name, zero-terminated, and returns its descriptor. */
export const VFIO_GROUP_GET_DEVICE_FD = request("VFIO_GROUP_GET_DEVICE_FD", 6);

/** Flags of {@link vfio_iommu_type1_info}. */
export const VFIO_IOMMU_INFO_PGSIZES = 1 << 0;
export const VFIO_IOMMU_INFO_CAPS = 1 << 1;
/** The argument of {@link VFIO_IOMMU_GET_INFO}. */
export const vfio_iommu_type1_info = struct("vfio_iommu_type1_info", {
  argsz: "u32",
  flags: "u32",
  iova_pgsizes: "u64",
  cap_offset: "u32",
  pad: "u32",
});
/** Describes a container. Takes {@link vfio_iommu_type1_info}. */
export const VFIO_IOMMU_GET_INFO = request("VFIO_IOMMU_GET_INFO", 12);

/** A range of IOVAs; `end` is inclusive. */
export const vfio_iova_range = struct("vfio_iova_range", { start: "u64", end: "u64" });

/** The id of {@link vfio_iommu_type1_info_cap_iova_range}. */
export const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1;
/** The capability {@link VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE}. It ends in `nr_iovas` of {@link vfio_iova_range}. */
export const vfio_iommu_type1_info_cap_iova_range = struct(
  "vfio_iommu_type1_info_cap_iova_range",
  {
    header: vfio_info_cap_header,
    nr_iovas: "u32",
    reserved: "u32",
  },
  vfio_iova_range,
);

/** The id of {@link vfio_iommu_type1_info_cap_migration}. */
export const VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2;
/** The capability {@link VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION}. */
export const vfio_iommu_type1_info_cap_migration = struct("vfio_iommu_type1_info_cap_migration", {
  header: vfio_info_cap_header,
  flags: "u32",
  pgsize_bitmap: "u64",
  max_dirty_bitmap_size: "u64",
});

/** The id of {@link vfio_iommu_type1_info_dma_avail}. */
export const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3;
/** The capability {@link VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL}. */
export const vfio_iommu_type1_info_dma_avail = struct("vfio_iommu_type1_info_dma_avail", {
  header: vfio_info_cap_header,
  avail: "u32",
});

/** Flags of {@link vfio_iommu_type1_dma_map}. */
export const VFIO_DMA_MAP_FLAG_READ = 1 << 0;
export const VFIO_DMA_MAP_FLAG_WRITE = 1 << 1;
/** The argument of {@link VFIO_IOMMU_MAP_DMA}. */
export const vfio_iommu_type1_dma_map = struct("vfio_iommu_type1_dma_map", {
  argsz: "u32",
  flags: "u32",
  vaddr: "u64",
  iova: "u64",
  size: "u64",
});
/** Maps memory. Takes {@link vfio_iommu_type1_dma_map}. */
export const VFIO_IOMMU_MAP_DMA = request("VFIO_IOMMU_MAP_DMA", 13);

/** A bitmap with `pgsize` bytes per bit, in `size` bytes at `data`. */
export const vfio_bitmap = struct("vfio_bitmap", { pgsize: "u64", size: "u64", data: "u64" });

/** Flags of {@link vfio_iommu_type1_dma_unmap}. */
export const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0;
export const VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1;
/** The argument of {@link VFIO_IOMMU_UNMAP_DMA}. A {@link vfio_bitmap} follows if the flag asks for one. */
export const vfio_iommu_type1_dma_unmap = struct("vfio_iommu_type1_dma_unmap", {
  argsz: "u32",
  flags: "u32",
  iova: "u64",
  size: "u64",
});
/** Unmaps memory. Takes {@link vfio_iommu_type1_dma_unmap}. */
export const VFIO_IOMMU_UNMAP_DMA = request("VFIO_IOMMU_UNMAP_DMA", 14);

/** Flags of {@link vfio_iommu_type1_dirty_bitmap}. */
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1 << 0;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 1 << 1;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 1 << 2;
/** The argument of {@link VFIO_IOMMU_DIRTY_PAGES}. With GET_BITMAP a {@link vfio_iommu_type1_dirty_bitmap_get} follows. */
export const vfio_iommu_type1_dirty_bitmap = struct("vfio_iommu_type1_dirty_bitmap", { argsz: "u32", flags: "u32" });
/** The data of {@link VFIO_IOMMU_DIRTY_PAGES} with GET_BITMAP. */
export const vfio_iommu_type1_dirty_bitmap_get = struct("vfio_iommu_type1_dirty_bitmap_get", {
  iova: "u64",
  size: "u64",
  bitmap: vfio_bitmap,
});
/** Starts, stops or reads dirty tracking. Takes {@link vfio_iommu_type1_dirty_bitmap}. */
export const VFIO_IOMMU_DIRTY_PAGES = request("VFIO_IOMMU_DIRTY_PAGES", 17);
