import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { Iova, PageNumber } from "../memory/address.js";
import type { Arena } from "../memory/arena.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import type { DeviceFeature, MigState } from "../uapi/vfio.js";
import type { KernelDesigns } from "./designs.js";
import type { DeviceShape } from "./shape.js";

/*
 * The interfaces that every host implements: the emulated one, this machine's Linux kernel, and devices behind a
 * vfio-user socket. One method per operation of the Linux uAPI (include/uapi/linux/iommufd.h and vfio.h), with its
 * name, rules and errors: a refusal is a UapiError whose `code` is the errno that Linux answers.
 */

/** What can be known of a device before it is opened. */
export interface DeviceSummary {
  readonly id: string;
  /** The model or driver: `mlx5`, `nic`, `vgpu`, `blk`, or a kernel driver's name. */
  readonly model: string;
  readonly kind: "pci" | "mdev" | "platform";
  readonly iommuGroup: number | null;
}

/** A place where devices, and the I/O page tables in front of them, come from. */
export interface Host extends AsyncDisposable {
  readonly name: string;
  devices(): Promise<DeviceSummary[]>;
  openIommufd(): Promise<Iommufd>;
  /** @throws UapiError ENODEV for an unknown id, EBUSY for a device that is open already */
  openDevice(id: string): Promise<VfioDevice>;
}

/** An id in iommufd's object table: of an IOAS, an HWPT, a bound device, an access or an emulated IOMMU. Above 0. */
export type ObjectId = number;

/** Memory as the caller of IOMMU_IOAS_MAP names it: a stretch of an arena, page-aligned. */
export interface MemorySpan {
  readonly arena: Arena;
  /** In bytes from the arena's start. */
  readonly offset: number;
  readonly length: number;
}

/** A file whose pages can be mapped for DMA (IOMMU_IOAS_MAP_FILE); made by the host that it is used with. */
export interface MemoryFile extends AsyncDisposable {
  readonly bytes: number;
}

/** A range of I/O addresses, in bytes; both ends belong to it. */
export interface IovaRange {
  readonly start: Iova;
  /** Inclusive, as in struct iommu_iova_range. */
  readonly last: Iova;
}

/** enum iommufd_ioas_map_flags, spelled out. */
export interface MapFlags {
  /** Set: IOMMU_IOAS_MAP_FIXED_IOVA at this address. Absent: the IOVA allocator chooses. */
  readonly iova?: Iova;
  readonly writeable: boolean;
  readonly readable: boolean;
}

/** struct iommu_hw_info, of what the system IOMMU in front of a device can do. */
export interface HwInfo {
  /** The query: IOMMU_HW_CAP_DIRTY_TRACKING. */
  readonly dirtyTracking: boolean;
  readonly type: "none" | "intel-vtd" | "arm-smmuv3" | "amd" | "other";
  /** Sizes of leaf that the I/O page table can have, in bytes, ascending; empty where the host can't tell. */
  readonly pageSizes: readonly number[];
  /** The type-specific data (struct iommu_hw_info_vtd, _arm_smmuv3, _amd), undecoded. */
  readonly data: Uint8Array;
}

/** IOMMU_OPTION_*: what can be set, and on what. */
export type IommuOption =
  | { readonly option: "RLIMIT_MODE" }
  /** Per IOAS. 0 maps everything with pages of the smallest size: the granule of the system IOMMU's tracker. */
  | { readonly option: "HUGE_PAGES"; readonly ioas: ObjectId };

/** What the owner of an access is asked to do. */
export interface AccessCallbacks {
  /** The range is about to be unmapped: release every pin in it, then resolve. */
  unmap(iova: Iova, length: bigint): Promise<void>;
}

/** An access object: how an mdev's driver reaches memory without an IOMMU (drivers/iommu/iommufd/device.c). */
export interface Access extends AsyncDisposable {
  readonly id: ObjectId;
  /** Pins whole pages; returns the memory behind each run of pages that is contiguous. @throws UapiError ENOENT, EINVAL, EPERM */
  pin(range: { iova: Iova; length: bigint; write: boolean }): Promise<MemorySpan[]>;
  unpin(range: { iova: Iova; length: bigint }): Promise<void>;
  read(iova: Iova, into: Uint8Array): Promise<void>;
  write(iova: Iova, from: Uint8Array): Promise<void>;
}

/** What GET_DIRTY_BITMAP and DMA_LOGGING_REPORT are asked. */
export interface BitmapQuery {
  readonly iova: Iova;
  readonly length: bigint;
  /** Bytes per bit, a power of two. */
  readonly pageSize: number;
  /** Bit 0 is `iova`; bits are set, never cleared. Its range must hold iova to iova + length, its granule be pageSize. */
  readonly into: DirtyBitmap;
}

/** /dev/iommu: one method per ioctl. */
export interface Iommufd extends AsyncDisposable {
  /** IOMMU_IOAS_ALLOC */
  allocIoas(): Promise<ObjectId>;
  /** IOMMU_IOAS_IOVA_RANGES */
  iovaRanges(ioas: ObjectId): Promise<{ ranges: IovaRange[]; alignment: number }>;
  /** IOMMU_IOAS_ALLOW_IOVAS: replaces the whole list. */
  allowIovas(ioas: ObjectId, ranges: readonly IovaRange[]): Promise<void>;
  /** IOMMU_IOAS_MAP; returns the IOVA. */
  map(ioas: ObjectId, span: MemorySpan, flags: MapFlags): Promise<Iova>;
  /** IOMMU_IOAS_MAP_FILE; returns the IOVA. */
  mapFile(ioas: ObjectId, file: MemoryFile, range: { start: number; length: number }, flags: MapFlags): Promise<Iova>;
  /** IOMMU_IOAS_COPY; returns the IOVA in the destination. */
  copy(from: { ioas: ObjectId; iova: Iova; length: bigint }, to: { ioas: ObjectId } & MapFlags): Promise<Iova>;
  /**
   * IOMMU_IOAS_UNMAP; returns the bytes unmapped. The range must cover whole mappings; 0 to U64_MAX unmaps all.
   * Returns when DMA in flight to the range has ended.
   */
  unmap(ioas: ObjectId, iova: Iova, length: bigint): Promise<bigint>;
  /** IOMMU_OPTION with IOMMU_OPTION_OP_SET */
  setOption(option: IommuOption, value: number): Promise<void>;
  /** IOMMU_OPTION with IOMMU_OPTION_OP_GET */
  getOption(option: IommuOption): Promise<number>;
  /** IOMMU_GET_HW_INFO of a bound device. */
  hwInfo(device: ObjectId): Promise<HwInfo>;
  /**
   * IOMMU_HWPT_ALLOC on an IOAS. With `dirtyTracking`, IOMMU_HWPT_ALLOC_DIRTY_TRACKING: only devices whose IOMMU can
   * track may be attached. @throws UapiError EOPNOTSUPP where the device's IOMMU can't
   */
  allocHwpt(args: { device: ObjectId; ioas: ObjectId; dirtyTracking: boolean }): Promise<ObjectId>;
  /**
   * An object that holds a dirty tracker shared by the mdevs attached to it (the thread's "emulated iommu" object;
   * Linux has none yet: EOPNOTSUPP there). {@link setDirtyTracking} and {@link getDirtyBitmap} take its id.
   */
  allocEmulatedIommu(ioas: ObjectId): Promise<ObjectId>;
  /** IOMMU_HWPT_SET_DIRTY_TRACKING. Switching on clears old bits first, and flushes. */
  setDirtyTracking(hwpt: ObjectId, on: boolean): Promise<void>;
  /**
   * IOMMU_HWPT_GET_DIRTY_BITMAP. With `clear` false, IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR. Returns when every DMA
   * whose bit was cleared has landed. Stops at a hole in the mapping, as Linux does: ask per mapped area.
   * Answers the leaf sizes that were met, in bytes, where the host can tell.
   */
  getDirtyBitmap(hwpt: ObjectId, query: BitmapQuery & { clear: boolean }): Promise<{ leafSizes: readonly number[] }>;
  /** What an mdev's driver opens. @throws UapiError ENOENT for an unknown IOAS */
  createAccess(ioas: ObjectId, callbacks: AccessCallbacks): Promise<Access>;
  /** IOMMU_DESTROY. @throws UapiError EBUSY while something holds the object, ENOENT for an unknown id */
  destroy(id: ObjectId): Promise<void>;
}

/** struct vfio_device_feature_migration, spelled out. */
export interface MigrationSupport {
  readonly stopCopy: boolean;
  readonly p2p: boolean;
  readonly preCopy: boolean;
}

/** struct vfio_precopy_info. */
export interface PrecopyInfo {
  readonly initialBytes: number;
  readonly dirtyBytes: number;
  /** VFIO_PRECOPY_INFO_REINIT; only after opting in to MIG_PRECOPY_INFOv2. */
  readonly reinit: boolean;
}

/** The data_fd of a saving state. */
export interface SavingStream extends AsyncDisposable {
  readonly direction: "saving";
  /**
   * Up to `bytes` more. An empty array is the end of the stream.
   * @throws UapiError ENOMSG at the temporary end of the pre-copy phase
   */
  read(bytes: number): Promise<Uint8Array>;
  /** VFIO_MIG_GET_PRECOPY_INFO. @throws UapiError EINVAL outside the PRE_COPY states */
  precopyInfo(): Promise<PrecopyInfo>;
}

/** The data_fd of RESUMING. */
export interface ResumingStream extends AsyncDisposable {
  readonly direction: "resuming";
  /** Segmentation need not be that of the reads. @throws UapiError EINVAL where the device knows already that the data is wrong */
  write(data: Uint8Array): Promise<void>;
}

/** The stream of a device's state, in the direction that its migration state asks for. */
export type DataStream = SavingStream | ResumingStream;

/** What a device says of its own DMA logging, before it is started. */
export interface DmaLoggingLimits {
  /** Page sizes that the log can have, in bytes, ascending. */
  readonly pageSizes: readonly number[];
  readonly maxRanges: number;
  /** Bits of IOVA that the log covers. */
  readonly addressWidth: number;
  /** `quiesced`: the log may be read only where the device does no DMA. */
  readonly readableWhen: "always" | "quiesced";
}

/** A region of a device (VFIO_DEVICE_GET_REGION_INFO). `index` is the header's, `bytes` its size. */
export interface RegionInfo {
  readonly index: number;
  readonly name: string;
  readonly bytes: number;
  readonly readable: boolean;
  readonly writeable: boolean;
}

/** A kind of interrupts of a device (VFIO_DEVICE_GET_IRQ_INFO). `count` is how many of them it has. */
export interface IrqInfo {
  readonly index: number;
  readonly name: string;
  readonly count: number;
}

/** The two capability flags that the thread asks for. */
export interface TrackingFlags {
  /** "internal dirty track supported": VFIO_DEVICE_FEATURE_DMA_LOGGING_*. */
  readonly tracksInternally: boolean;
  /** "real dirty track through attached container supported": only an mdev can say so. */
  readonly tracksThroughContainer: boolean;
}

/** An open VFIO device (a cdev of /dev/vfio/devices, an mdev, or a vfio-user server's). */
export interface VfioDevice extends AsyncDisposable {
  readonly id: string;
  readonly model: string;
  readonly regions: readonly RegionInfo[];
  readonly irqs: readonly IrqInfo[];
  /**
   * Aborted, with the reason, when the host wants the device back, since it is being unplugged: its removal goes on once the
   * device is disposed. Absent where the host doesn't say.
   */
  readonly released?: AbortSignal;
  /**
   * pread(2) of a region: all of the bytes, as registers of any size.
   * @throws UapiError EINVAL outside of the region, or where it can't be read; EIO where it ends before
   */
  regionRead(region: number, offset: number, bytes: number): Promise<Uint8Array>;
  /**
   * pwrite(2) of a region: all of the data.
   * @throws UapiError EINVAL outside of the region, or where it can't be written; EIO where it ends before
   */
  regionWrite(region: number, offset: number, data: Uint8Array): Promise<void>;
  /** What a guest can tell the device by, of a bound device; it is compared before the device's state goes to another. @throws UapiError */
  shape(): Promise<DeviceShape>;
  /** VFIO_DEVICE_BIND_IOMMUFD; returns the device's id in that iommufd. @throws UapiError EINVAL when bound already */
  bind(iommufd: Iommufd): Promise<ObjectId>;
  /**
   * VFIO_DEVICE_ATTACH_IOMMUFD_PT; returns the HWPT attached to, which for an IOAS is one made by the kernel. On an
   * attached device this replaces the HWPT, without a moment in which DMA is blocked.
   * @throws UapiError EINVAL for an HWPT with dirty tracking that the device's IOMMU can't do
   */
  attach(ioasOrHwpt: ObjectId): Promise<ObjectId>;
  /** VFIO_DEVICE_DETACH_IOMMUFD_PT: DMA is blocked from then on. */
  detach(): Promise<void>;
  /** VFIO_DEVICE_RESET: to RUNNING, also out of ERROR. Ends data streams and DMA logging. */
  reset(): Promise<void>;
  /** VFIO_DEVICE_FEATURE with PROBE. */
  supports(feature: DeviceFeature): Promise<boolean>;
  /** VFIO_DEVICE_FEATURE_MIGRATION. @throws UapiError ENOTTY for a device that can't migrate */
  migration(): Promise<MigrationSupport>;
  trackingFlags(): Promise<TrackingFlags>;
  /** What the device says of its log; null where it has none, and on Linux, where only the answer to START tells. */
  dmaLoggingLimits(): Promise<DmaLoggingLimits | null>;
  /** VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, GET. */
  state(): Promise<MigState>;
  /**
   * VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET. Combination arcs are walked by the shortest-path rule. Resolves when the
   * device is in that state with its DMA drained; an arc that begins a data transfer session returns its stream.
   * @throws UapiError EINVAL for an arc that does not exist, EIO where the device went to ERROR
   */
  setState(next: MigState): Promise<DataStream | null>;
  /** VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: bytes that stop-copy is expected to need, in any state; 0 where it can't be told. */
  dataSize(): Promise<number>;
  /** VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: opts in to the REINIT flag. @throws UapiError EINVAL without pre-copy */
  enablePrecopyInfoV2(): Promise<void>;
  /**
   * VFIO_DEVICE_FEATURE_DMA_LOGGING_START; returns the page size that the device chose.
   * @throws UapiError EINVAL for no range, overlapping ranges or a second start; E2BIG for more than it takes; ENOTTY
   */
  startDmaLogging(args: { pageSize: number; ranges: readonly { iova: Iova; length: bigint }[] }): Promise<number>;
  /**
   * VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: reads and clears. Returns when every DMA whose bit was cleared has landed.
   * @throws UapiError EINVAL while not logging or for a page size below the minimum; EBUSY for a log readable only when
   * quiesced, of a device that isn't
   */
  reportDmaLogging(query: BitmapQuery): Promise<void>;
  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP. */
  stopDmaLogging(): Promise<void>;
  /**
   * Tells who serves the device how far the handover is; `migration` names the migration for an operator. Absent where the
   * device ends with this process, so that nobody else has to decide about it.
   * @throws UapiError where that could not be told: the migration must not go on as if it had been
   */
  announceHandover?(notice: HandoverNotice, migration: string): Promise<void>;
}

/**
 * What a migration tells about a device that it has stopped. `committing`: from now on the machine may be the other side's,
 * or may run here, so that only this process or an operator may say what becomes of the device. `gone`: the machine is
 * the other side's for good.
 */
export type HandoverNotice = "committing" | "gone";

/** What migrates: memory, vCPUs, and devices of a host. */
export interface Machine extends AsyncDisposable {
  readonly memory: GuestMemory;
  readonly devices: readonly AttachedDevice[];
  readonly vcpus: Vcpus;
  /**
   * What the devices' IOASes map besides RAM, each as it was mapped: the BARs that peers may reach. Absent: none.
   * IOMMU_IOAS_COPY wants exactly these ranges, and those of {@link memory}'s regions.
   */
  readonly peerMappings?: readonly { readonly iova: Iova; readonly length: bigint }[];
  /** The designs in which the kernel merges dirty pages; absent where the kernel has none. */
  readonly designs?: KernelDesigns;
  /** The "P2P allowed" query: may the initiator write into the target's BARs? Directed. */
  mayP2p(initiator: string, target: string): boolean;
  /** Withdraws or restores what {@link mayP2p} says about a device as a target, while it is suspended. */
  setP2pReachable(device: string, reachable: boolean): Promise<void>;
}

/** A device bound to an iommufd: what can be asked, and attached. */
export interface BoundDevice {
  readonly id: string;
  readonly model: string;
  readonly vfio: VfioDevice;
  readonly iommufd: Iommufd;
  /** The device's id in the iommufd. */
  readonly deviceId: ObjectId;
  /** An mdev attaches to no hardware page table: it pins, or marks a shared tracker. */
  readonly mdev: boolean;
}

/** A device of a machine, bound and attached. */
export interface AttachedDevice extends BoundDevice {
  /** The IOAS that its memory was mapped in. */
  readonly ioas: ObjectId;
}

/** A machine's vCPUs, as one. */
export interface Vcpus {
  readonly count: number;
  /** Resolves when no vCPU writes memory any more. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** Registers and what else must move with them. Paused only. */
  saveState(): Promise<Uint8Array>;
  loadState(state: Uint8Array): Promise<void>;
  /** KVM's dirty log: pages that vCPUs wrote, 4 KiB each. A second start is refused with EINVAL. */
  startDirtyLog(): Promise<void>;
  readAndClearDirtyLog(query: { firstPage: PageNumber; pages: number; into: DirtyBitmap }): Promise<void>;
  stopDirtyLog(): Promise<void>;
}
