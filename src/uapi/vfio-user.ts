import { struct } from "./struct.js";
import { vfio_info_cap_header } from "./vfio.js";

/**
 * Numbers and structures of the vfio-user protocol, version 0.0 (QEMU's docs/interop/vfio-user.rst), with the
 * specification's names. All is little-endian here: both ends are on one machine, and the machines are.
 */

/** "Version": major and minor of what is spoken. */
export const VFIO_USER_MAJOR = 0;
export const VFIO_USER_MINOR = 0;

/** "Commands". */
export const VFIO_USER_COMMAND = {
  VERSION: 1,
  DMA_MAP: 2,
  DMA_UNMAP: 3,
  DEVICE_GET_INFO: 4,
  DEVICE_GET_REGION_INFO: 5,
  DEVICE_GET_REGION_IO_FDS: 6,
  DEVICE_GET_IRQ_INFO: 7,
  DEVICE_SET_IRQS: 8,
  REGION_READ: 9,
  REGION_WRITE: 10,
  DMA_READ: 11,
  DMA_WRITE: 12,
  DEVICE_RESET: 13,
  REGION_WRITE_MULTI: 15,
  DEVICE_FEATURE: 16,
  MIG_DATA_READ: 17,
  MIG_DATA_WRITE: 18,
} as const;

/** The name of a command, without the specification's prefix. */
export type VfioUserCommand = keyof typeof VFIO_USER_COMMAND;

/** "Header", before every message. */
export const vfio_user_header = struct("vfio_user_header", {
  msg_id: "u16",
  cmd: "u16",
  msg_size: "u32",
  flags: "u32",
  error: "u32",
});

/** Flags of the header: the type in bits 0 to 3, then No_reply and Error. */
export const VFIO_USER_F_TYPE = 0xf;
export const VFIO_USER_F_TYPE_COMMAND = 0;
export const VFIO_USER_F_TYPE_REPLY = 1;
export const VFIO_USER_F_NO_REPLY = 1 << 4;
export const VFIO_USER_F_ERROR = 1 << 5;

/** VFIO_USER_VERSION; JSON with a terminating NUL follows. */
export const vfio_user_version = struct("vfio_user_version", { major: "u16", minor: "u16" });

/** What holds where a peer's capabilities say nothing. */
export const VFIO_USER_DEFAULT_MAX_FDS = 1;
export const VFIO_USER_DEFAULT_DATA_XFER = 1048576;
export const VFIO_USER_DEFAULT_DMA_MAPS = 65535;

/** VFIO_USER_DMA_MAP */
export const vfio_user_dma_map = struct("vfio_user_dma_map", {
  argsz: "u32",
  flags: "u32",
  offset: "u64",
  address: "u64",
  size: "u64",
});
export const VFIO_USER_F_DMA_REGION_READ = 1 << 0;
export const VFIO_USER_F_DMA_REGION_WRITE = 1 << 1;
/**
 * How the server is to reach the file that comes along, as libvfio-user has it since its commit 5d64ebf: mapped, or by pread and
 * pwrite. The specification has neither.
 */
export const VFIO_USER_F_DMA_REGION_MMAP = 1 << 2;
export const VFIO_USER_F_DMA_REGION_FILE_IO = 1 << 3;

/** VFIO_USER_DMA_UNMAP */
export const vfio_user_dma_unmap = struct("vfio_user_dma_unmap", {
  argsz: "u32",
  flags: "u32",
  address: "u64",
  size: "u64",
});
/**
 * Flags of the unmapping, as libvfio-user and the kernel's VFIO_IOMMU_UNMAP_DMA have them; the specification's version 0.0
 * leaves the field unused.
 */
export const VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP = 1 << 0;
export const VFIO_USER_F_DMA_UNMAP_ALL = 1 << 1;

/** Follows {@link vfio_user_dma_unmap} with GET_DIRTY_BITMAP, in the request and in the reply; there the bits follow. */
export const vfio_user_bitmap = struct("vfio_user_bitmap", { pgsize: "u64", size: "u64" });

/** VFIO_USER_DEVICE_GET_INFO */
export const vfio_user_device_info = struct("vfio_user_device_info", {
  argsz: "u32",
  flags: "u32",
  num_regions: "u32",
  num_irqs: "u32",
});

/*
 * What VFIO_USER_DEVICE_GET_REGION_INFO, _GET_IRQ_INFO and _SET_IRQS take from include/uapi/linux/vfio.h: their payloads are
 * struct vfio_region_info, vfio_irq_info and vfio_irq_set.
 */

/** Further flags of struct vfio_region_info. */
export const VFIO_REGION_INFO_FLAG_MMAP = 1 << 2;
export const VFIO_REGION_INFO_FLAG_CAPS = 1 << 3;

/** A capability of a region; `nr_areas` areas come behind. */
export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1;
export const vfio_region_info_cap_sparse_mmap = struct("vfio_region_info_cap_sparse_mmap", {
  header: vfio_info_cap_header,
  nr_areas: "u32",
  reserved: "u32",
});
export const vfio_region_sparse_mmap_area = struct("vfio_region_sparse_mmap_area", { offset: "u64", size: "u64" });

/** Further flags of struct vfio_irq_info. */
export const VFIO_IRQ_INFO_MASKABLE = 1 << 1;
export const VFIO_IRQ_INFO_AUTOMASKED = 1 << 2;
export const VFIO_IRQ_INFO_NORESIZE = 1 << 3;

/** Further flags of struct vfio_irq_set. With DATA_BOOL a byte per interrupt follows; eventfds come as descriptors. */
export const VFIO_IRQ_SET_DATA_NONE = 1 << 0;
export const VFIO_IRQ_SET_DATA_BOOL = 1 << 1;
export const VFIO_IRQ_SET_DATA_TYPE_MASK = 0x07;
export const VFIO_IRQ_SET_ACTION_MASK = 1 << 3;
export const VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4;
export const VFIO_IRQ_SET_ACTION_TYPE_MASK = 0x38;

/** VFIO_USER_DEVICE_GET_REGION_IO_FDS; sub-regions follow in the reply. */
export const vfio_user_region_io_fds = struct("vfio_user_region_io_fds", {
  argsz: "u32",
  flags: "u32",
  index: "u32",
  count: "u32",
});

/** VFIO_USER_REGION_READ and _WRITE; the data follows. */
export const vfio_user_region_access = struct("vfio_user_region_access", {
  offset: "u64",
  region: "u32",
  count: "u32",
});

/** VFIO_USER_DMA_READ and _WRITE; the data follows. */
export const vfio_user_dma_access = struct("vfio_user_dma_access", { address: "u64", count: "u64" });

/** VFIO_USER_REGION_WRITE_MULTI; as many {@link vfio_user_write_multi_entry} follow. */
export const vfio_user_write_multi = struct("vfio_user_write_multi", { wr_cnt: "u64" });
export const vfio_user_write_multi_entry = struct("vfio_user_write_multi_entry", {
  offset: "u64",
  region: "u32",
  count: "u32",
  data: "u64",
});

/** VFIO_USER_MIG_DATA_READ and _WRITE; the data follows. */
export const vfio_user_mig_data = struct("vfio_user_mig_data", { argsz: "u32", size: "u32" });

/** Of VFIO_USER_DEVICE_FEATURE's flags: the feature's index. */
export const VFIO_DEVICE_FEATURE_MASK = 0xffff;

/**
 * VFIO_DEVICE_FEATURE_DMA_LOGGING_START; `num_ranges` of struct vfio_device_feature_dma_logging_range follow. Where the
 * kernel's structures have a pointer, the wire has the data itself.
 */
export const vfio_user_dma_logging_control = struct("vfio_user_device_feature_dma_logging_control", {
  page_size: "u64",
  num_ranges: "u32",
  reserved: "u32",
});

/** VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT; the bitmap follows in the reply, as u64s. */
export const vfio_user_dma_logging_report = struct("vfio_user_device_feature_dma_logging_report", {
  iova: "u64",
  length: "u64",
  page_size: "u64",
});

/*
 * Commands of Dirtmap's own server, beyond the specification (docs/vfio-user.md). Numbers from 0x8000 on: other servers
 * don't know them, and refuse.
 */
export const DIRTMAP_COMMAND = {
  /** What the device and the server have counted, as JSON. */
  COUNTERS: 0x8000,
  /** VFIO_MIG_GET_PRECOPY_INFO, which has no message of its own: struct vfio_precopy_info in the request and the reply. */
  PRECOPY_INFO: 0x8001,
  /** What a migration's controlling side tells before it gives the machine up, and after: {@link dirtmap_handover}. */
  HANDOVER: 0x8002,
  /** How the device's writes reach its client's memory from now on: {@link dirtmap_write_path}. */
  WRITE_PATH: 0x8003,
  /** Reads or writes memory through the device's client, as the device's DMA by messages does: {@link dirtmap_client_memory}. */
  CLIENT_READ: 0x8004,
  CLIENT_WRITE: 0x8005,
  /** Has the client write what its memory holds over itself, so that its own tracking sees it: {@link dirtmap_client_memory}. */
  CLIENT_REWRITE: 0x8006,
} as const;

/**
 * The version of {@link DIRTMAP_COMMAND}, which both sides name in the JSON of VFIO_USER_VERSION: `"capabilities":
 * {"dirtmap": {"protocol": 1, "software": …}}`. Raised when either side could misread the other.
 */
export const DIRTMAP_PROTOCOL = 1;

/** DIRTMAP_COMMAND.COUNTERS; in the reply, JSON with a terminating NUL follows. */
export const dirtmap_counters = struct("dirtmap_counters", { argsz: "u32", flags: "u32" });

/** DIRTMAP_COMMAND.HANDOVER; the migration's id follows, in ASCII. The reply is the structure alone. */
export const dirtmap_handover = struct("dirtmap_handover", { argsz: "u32", notice: "u32" });
export const DIRTMAP_HANDOVER = { committing: 1, gone: 2 } as const;

/** DIRTMAP_COMMAND.WRITE_PATH, request and reply. */
export const dirtmap_write_path = struct("dirtmap_write_path", { argsz: "u32", path: "u32" });
/** As each region of memory was given to the server, or always by asking the client. */
export const DIRTMAP_WRITE_PATH = { direct: 0, messages: 1 } as const;

/**
 * DIRTMAP_COMMAND.CLIENT_READ, CLIENT_WRITE and CLIENT_REWRITE, request and reply; the data follows in the reply to a read and in
 * the request of a write.
 */
export const dirtmap_client_memory = struct("dirtmap_client_memory", { address: "u64", count: "u64" });
