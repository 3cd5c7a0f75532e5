import { struct } from "./struct.js";

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

/** VFIO_USER_DEVICE_GET_INFO */
export const vfio_user_device_info = struct("vfio_user_device_info", {
  argsz: "u32",
  flags: "u32",
  num_regions: "u32",
  num_irqs: "u32",
});

/** VFIO_USER_DEVICE_SET_IRQS; booleans follow with VFIO_IRQ_SET_DATA_BOOL. */
export const vfio_user_irq_set = struct("vfio_user_irq_set", {
  argsz: "u32",
  flags: "u32",
  index: "u32",
  start: "u32",
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
