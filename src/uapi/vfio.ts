/** Numbers of include/uapi/linux/vfio.h, with the header's names. */

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

/** The name of a device state, without the header's prefix. */
export type MigState = keyof typeof VFIO_DEVICE_STATE;

/** Flags of struct vfio_device_feature_migration. */
export const VFIO_MIGRATION_STOP_COPY = 1 << 0;
export const VFIO_MIGRATION_P2P = 1 << 1;
export const VFIO_MIGRATION_PRE_COPY = 1 << 2;

/** Flags of struct vfio_precopy_info. */
export const VFIO_PRECOPY_INFO_REINIT = 1 << 0;

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

/** The name of a device feature. */
export type DeviceFeature = keyof typeof VFIO_DEVICE_FEATURE;

/** Operations that VFIO_DEVICE_FEATURE can be probed for. */
export const VFIO_DEVICE_FEATURE_GET = 1 << 16;
export const VFIO_DEVICE_FEATURE_SET = 1 << 17;
export const VFIO_DEVICE_FEATURE_PROBE = 1 << 18;

/** Flags of VFIO_IOMMU_DIRTY_PAGES and VFIO_IOMMU_UNMAP_DMA (the legacy type1 container). */
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1 << 0;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 1 << 1;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 1 << 2;
export const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0;
export const VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1;
