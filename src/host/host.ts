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

/** The facts about a device that are known before it is opened. */
export interface DeviceSummary {
  /** The name that {@link Host.openDevice} takes. */
  readonly id: string;
  /** The model or driver: `mlx5`, `nic`, `vgpu`, `blk`, or a kernel driver's name. */
  readonly model: string;
  readonly kind: "pci" | "mdev" | "platform";
  /** The number of its IOMMU group; null: it has none. */
  readonly iommuGroup: number | null;
}

/** A source of devices and of the I/O page tables in front of them. Disposing closes all that it has opened. */
export interface Host extends AsyncDisposable {
  /** The kind of host, for messages: `emulated`, `linux` … */
  readonly name: string;
  /** Lists the host's devices, and opens none. */
  devices(): Promise<DeviceSummary[]>;
  /** Opens an iommufd, as open(2) of /dev/iommu does. @throws UapiError if the host has none */
  openIommufd(): Promise<Iommufd>;
  /** Opens a device. @throws UapiError ENODEV for an unknown id, EBUSY for a device that is already open */
  openDevice(id: string): Promise<VfioDevice>;
}

/** The id, above 0, of an IOAS, an HWPT, a bound device, an access or an emulated IOMMU in iommufd's object table. */
export type ObjectId = number;

/** Memory for IOMMU_IOAS_MAP: a page-aligned stretch of an arena. */
export interface MemorySpan {
  readonly arena: Arena;
  /** Bytes from the arena's start. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
}

/** A file whose pages can be mapped for DMA (IOMMU_IOAS_MAP_FILE). It belongs to the host that made it. */
export interface MemoryFile extends AsyncDisposable {
  /** Size in bytes. */
  readonly bytes: number;
}

/** A range of I/O addresses (struct iommu_iova_range). Both ends are inside it. */
export interface IovaRange {
  readonly start: Iova;
  /** The last address, inclusive. */
  readonly last: Iova;
}

/** The flags of a mapping (enum iommufd_ioas_map_flags). At least one of `writeable` and `readable` must be true. */
export interface MapFlags {
  /** The address to map at (IOMMU_IOAS_MAP_FIXED_IOVA). Default: the IOVA allocator chooses. */
  readonly iova?: Iova;
  readonly writeable: boolean;
  readonly readable: boolean;
}

/** The abilities of the system IOMMU in front of a device (struct iommu_hw_info). */
export interface HwInfo {
  /** True if it can track dirty pages (IOMMU_HW_CAP_DIRTY_TRACKING). */
  readonly dirtyTracking: boolean;
  readonly type: "none" | "intel-vtd" | "arm-smmuv3" | "amd" | "other";
  /** Leaf sizes that the I/O page table can have, in bytes, ascending. Empty if the host can't tell. */
  readonly pageSizes: readonly number[];
  /** The type-specific data (struct iommu_hw_info_vtd, _arm_smmuv3, _amd), undecoded. */
  readonly data: Uint8Array;
}

/** An option of iommufd (enum iommufd_option), with the object that it applies to. */
export type IommuOption =
  /** Of the whole iommufd. 0 counts pinned memory against the user, 1 against the process. */
  | { readonly option: "RLIMIT_MODE" }
  /** Of one IOAS. 0 maps everything with the smallest leaves, which are then the granule of the system IOMMU's tracker. */
  | { readonly option: "HUGE_PAGES"; readonly ioas: ObjectId };

/** The callbacks that the owner of an access provides. */
export interface AccessCallbacks {
  /** Releases every pin in the range, which is about to be unmapped. Resolves when none is left. @param length bytes */
  unmap(iova: Iova, length: bigint): Promise<void>;
}

/** An access object, by which an mdev's driver reaches memory without an IOMMU (drivers/iommu/iommufd/device.c). */
export interface Access extends AsyncDisposable {
  readonly id: ObjectId;
  /**
   * Pins the pages of a range, as iommufd_access_pin_pages does. Returns the memory behind it, one span per contiguous run.
   * @throws UapiError ENOENT for a hole in the mapping, EINVAL for a mapping that is about to go, EPERM if it does not allow
   * the access
   */
  pin(range: { iova: Iova; length: bigint; write: boolean }): Promise<MemorySpan[]>;
  /** Releases a range that was pinned. @throws UapiError EINVAL unless exactly this range is pinned */
  unpin(range: { iova: Iova; length: bigint }): Promise<void>;
  /** Reads bytes, as iommufd_access_rw does. @throws UapiError as {@link pin} */
  read(iova: Iova, into: Uint8Array): Promise<void>;
  /** Writes bytes, as iommufd_access_rw does. @throws UapiError as {@link pin} */
  write(iova: Iova, from: Uint8Array): Promise<void>;
}

/** The arguments of GET_DIRTY_BITMAP and DMA_LOGGING_REPORT. */
export interface BitmapQuery {
  readonly iova: Iova;
  /** Bytes, above 0. */
  readonly length: bigint;
  /** Bytes per bit, a power of two. */
  readonly pageSize: number;
  /** The bitmap that bits are added to. Its range must hold `iova` to `iova + length`, and its granule must be `pageSize`. */
  readonly into: DirtyBitmap;
}

/** An open /dev/iommu, with one method per ioctl (include/uapi/linux/iommufd.h). An unknown id is ENOENT everywhere. */
export interface Iommufd extends AsyncDisposable {
  /** IOMMU_IOAS_ALLOC: makes an I/O address space and returns its id. */
  allocIoas(): Promise<ObjectId>;
  /** IOMMU_IOAS_IOVA_RANGES: returns the ranges that can be mapped, and the alignment of mappings in bytes. */
  iovaRanges(ioas: ObjectId): Promise<{ ranges: IovaRange[]; alignment: number }>;
  /**
   * IOMMU_IOAS_ALLOW_IOVAS: replaces the list of ranges that the IOVA allocator may use.
   * @throws UapiError EINVAL for empty or overlapping ranges, EADDRINUSE for a range that the hardware can't use
   */
  allowIovas(ioas: ObjectId, ranges: readonly IovaRange[]): Promise<void>;
  /**
   * IOMMU_IOAS_MAP: maps memory for DMA and returns the IOVA.
   * @throws UapiError EINVAL for an address that is misaligned or reserved, EEXIST if part of the range is mapped, ENOSPC if
   * the allocator finds no room, EFAULT for memory that devices can't reach, EOVERFLOW
   */
  map(ioas: ObjectId, span: MemorySpan, flags: MapFlags): Promise<Iova>;
  /** IOMMU_IOAS_MAP_FILE: maps bytes of a file and returns the IOVA. @throws UapiError as {@link map}; EBADF for a closed file */
  mapFile(ioas: ObjectId, file: MemoryFile, range: { start: number; length: number }, flags: MapFlags): Promise<Iova>;
  /**
   * IOMMU_IOAS_COPY: maps the memory of one range in another IOAS and returns the IOVA there.
   * @throws UapiError as {@link map}; ENOENT if the source has a hole, EPERM for `writeable` on memory mapped read-only
   */
  copy(from: { ioas: ObjectId; iova: Iova; length: bigint }, to: { ioas: ObjectId } & MapFlags): Promise<Iova>;
  /**
   * IOMMU_IOAS_UNMAP: unmaps whole mappings and returns the bytes unmapped. IOVA 0 with length U64_MAX unmaps all. Resolves
   * when DMA in flight to the range has ended.
   * @throws UapiError ENOENT if nothing is mapped there or a mapping is only partly inside; EDEADLK if an access keeps its pins
   */
  unmap(ioas: ObjectId, iova: Iova, length: bigint): Promise<bigint>;
  /** IOMMU_OPTION with IOMMU_OPTION_OP_SET. @param value 0 or 1 @throws UapiError EINVAL or EBUSY if it is too late for it */
  setOption(option: IommuOption, value: number): Promise<void>;
  /** IOMMU_OPTION with IOMMU_OPTION_OP_GET: returns 0 or 1. */
  getOption(option: IommuOption): Promise<number>;
  /** IOMMU_GET_HW_INFO: returns the abilities of the IOMMU in front of a bound device. */
  hwInfo(device: ObjectId): Promise<HwInfo>;
  /**
   * IOMMU_HWPT_ALLOC: makes an I/O page table of an IOAS and returns its id. With `dirtyTracking`
   * (IOMMU_HWPT_ALLOC_DIRTY_TRACKING), only devices whose IOMMU can track may be attached to it.
   * @throws UapiError EOPNOTSUPP if the device's IOMMU can't track
   */
  allocHwpt(args: { device: ObjectId; ioas: ObjectId; dirtyTracking: boolean }): Promise<ObjectId>;
  /**
   * Makes an object that holds a dirty tracker for all mdevs attached to it, and returns its id, which
   * {@link setDirtyTracking} and {@link getDirtyBitmap} take. It is the "emulated iommu" object of the mailing-list thread
   * (docs/fidelity.md).
   * @throws UapiError EOPNOTSUPP if the host has none; Linux has none
   */
  allocEmulatedIommu(ioas: ObjectId): Promise<ObjectId>;
  /**
   * IOMMU_HWPT_SET_DIRTY_TRACKING: switches tracking on or off. Switching on first clears old bits and flushes.
   * @throws UapiError EOPNOTSUPP for an HWPT that was made without `dirtyTracking`
   */
  setDirtyTracking(hwpt: ObjectId, on: boolean): Promise<void>;
  /**
   * IOMMU_HWPT_GET_DIRTY_BITMAP: reads dirty bits, and clears them unless `clear` is false
   * (IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR). Resolves when every DMA whose bit was cleared has landed. Like Linux it stops at a
   * hole in the mapping without an error, so ask once per mapped area. Returns the leaf sizes that it found, in bytes; none if
   * the host can't tell.
   * @throws UapiError EOPNOTSUPP for an HWPT without tracking, EINVAL for a bitmap that does not fit the query
   */
  getDirtyBitmap(hwpt: ObjectId, query: BitmapQuery & { clear: boolean }): Promise<{ leafSizes: readonly number[] }>;
  /** Makes an access object, as an mdev's driver does (iommufd_access_create). @throws UapiError ENOENT for an unknown IOAS */
  createAccess(ioas: ObjectId, callbacks: AccessCallbacks): Promise<Access>;
  /** IOMMU_DESTROY: destroys an object. @throws UapiError EBUSY while something holds it, ENOENT for an unknown id */
  destroy(id: ObjectId): Promise<void>;
}

/** The migration abilities of a device (struct vfio_device_feature_migration). */
export interface MigrationSupport {
  readonly stopCopy: boolean;
  readonly p2p: boolean;
  readonly preCopy: boolean;
}

/** The bytes left in the pre-copy phase (struct vfio_precopy_info). */
export interface PrecopyInfo {
  /** Bytes left of the initial data, at most. */
  readonly initialBytes: number;
  /** Bytes left of data that changed since, at most. */
  readonly dirtyBytes: number;
  /** VFIO_PRECOPY_INFO_REINIT: there is new initial data. Set only after opting in to MIG_PRECOPY_INFOv2. */
  readonly reinit: boolean;
}

/** The data_fd of a saving state: a device's state is read from it. */
export interface SavingStream extends AsyncDisposable {
  readonly direction: "saving";
  /**
   * Reads up to `bytes` bytes, above 0. An empty array is the end of the stream.
   * @throws UapiError ENOMSG at the temporary end of the pre-copy phase, ENODEV if the device left the saving states
   */
  read(bytes: number): Promise<Uint8Array>;
  /** VFIO_MIG_GET_PRECOPY_INFO: returns the bytes left. @throws UapiError EINVAL outside the PRE_COPY states */
  precopyInfo(): Promise<PrecopyInfo>;
}

/** The data_fd of RESUMING: a device's state is written to it. */
export interface ResumingStream extends AsyncDisposable {
  readonly direction: "resuming";
  /**
   * Writes all of the data. Writes need not have the sizes of the reads.
   * @throws UapiError EINVAL if the device already knows that the data is wrong, ENODEV if the device left RESUMING
   */
  write(data: Uint8Array): Promise<void>;
}

/** The stream of a device's state. The device's migration state decides its direction. */
export type DataStream = SavingStream | ResumingStream;

/** The limits of a device's DMA log, as reported before logging starts. */
export interface DmaLoggingLimits {
  /** Page sizes that the log can have, in bytes, ascending. */
  readonly pageSizes: readonly number[];
  /** Ranges that it can log at a time. */
  readonly maxRanges: number;
  /** Width in bits of the IOVAs that the log can cover. */
  readonly addressWidth: number;
  /** `quiesced`: the log can be read only while the device does no DMA. */
  readonly readableWhen: "always" | "quiesced";
}

/** A region of a device (VFIO_DEVICE_GET_REGION_INFO). `index` is the header's, and `bytes` is the region's size. */
export interface RegionInfo {
  readonly index: number;
  readonly name: string;
  readonly bytes: number;
  readonly readable: boolean;
  readonly writeable: boolean;
}

/** One kind of interrupt of a device (VFIO_DEVICE_GET_IRQ_INFO). `count` is the number of such interrupts. */
export interface IrqInfo {
  readonly index: number;
  readonly name: string;
  readonly count: number;
}

/** The two capability flags that the mailing-list thread asks for (docs/fidelity.md). */
export interface TrackingFlags {
  /** "internal dirty track supported": the device has VFIO_DEVICE_FEATURE_DMA_LOGGING_*. */
  readonly tracksInternally: boolean;
  /** "real dirty track through attached container supported": only an mdev can have this. */
  readonly tracksThroughContainer: boolean;
}

/** An open VFIO device (a cdev of /dev/vfio/devices, an mdev, or a vfio-user server's). */
export interface VfioDevice extends AsyncDisposable {
  readonly id: string;
  readonly model: string;
  readonly regions: readonly RegionInfo[];
  readonly irqs: readonly IrqInfo[];
  /**
   * Aborted, with the reason, when the host wants the device back because it is being unplugged. Its removal goes on once the
   * device is disposed. Absent if the host doesn't tell.
   */
  readonly released?: AbortSignal;
  /**
   * Reads all of `bytes` bytes of a region, as pread(2) does.
   * @throws UapiError EINVAL outside the region or if it can't be read; EIO if the device stops short
   */
  regionRead(region: number, offset: number, bytes: number): Promise<Uint8Array>;
  /**
   * Writes all of the data to a region, as pwrite(2) does.
   * @throws UapiError EINVAL outside the region or if it can't be written; EIO if the device stops short
   */
  regionWrite(region: number, offset: number, data: Uint8Array): Promise<void>;
  /**
   * Returns the features by which a guest recognises the device, which must be bound. They are compared before its state goes
   * to another device. @throws UapiError
   */
  shape(): Promise<DeviceShape>;
  /** VFIO_DEVICE_BIND_IOMMUFD: returns the device's id in that iommufd. @throws UapiError EINVAL if it is already bound */
  bind(iommufd: Iommufd): Promise<ObjectId>;
  /**
   * VFIO_DEVICE_ATTACH_IOMMUFD_PT: returns the HWPT attached to. For an IOAS this is an HWPT that the kernel made. On an
   * attached device this replaces the HWPT, and DMA is never blocked meanwhile.
   * @throws UapiError EINVAL for an HWPT with dirty tracking if the device's IOMMU can't track
   */
  attach(ioasOrHwpt: ObjectId): Promise<ObjectId>;
  /** VFIO_DEVICE_DETACH_IOMMUFD_PT: blocks the device's DMA from then on. */
  detach(): Promise<void>;
  /** VFIO_DEVICE_RESET: takes the device to RUNNING, from ERROR too. Ends data streams and DMA logging. */
  reset(): Promise<void>;
  /** VFIO_DEVICE_FEATURE with PROBE: true if the device has the feature. */
  supports(feature: DeviceFeature): Promise<boolean>;
  /** VFIO_DEVICE_FEATURE_MIGRATION. @throws UapiError ENOTTY for a device that can't migrate */
  migration(): Promise<MigrationSupport>;
  /** Returns the two capability flags of the mailing-list thread. */
  trackingFlags(): Promise<TrackingFlags>;
  /** Returns the limits of the device's log; null if it has none, and on Linux, where only the answer to START tells. */
  dmaLoggingLimits(): Promise<DmaLoggingLimits | null>;
  /** VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, GET: returns the migration state. */
  state(): Promise<MigState>;
  /**
   * VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET: changes the migration state. Combination arcs take the shortest path. Resolves
   * when the device is in that state, with the DMA that it forbids drained. Returns the stream of a data transfer session
   * that an arc begins; null if none begins.
   * @throws UapiError EINVAL for an arc that does not exist, EIO if the device went to ERROR
   */
  setState(next: MigState): Promise<DataStream | null>;
  /** VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: returns the bytes that stop-copy is expected to need, in any state; 0 if unknown. */
  dataSize(): Promise<number>;
  /** VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: opts in to the REINIT flag. @throws UapiError EINVAL without pre-copy */
  enablePrecopyInfoV2(): Promise<void>;
  /**
   * VFIO_DEVICE_FEATURE_DMA_LOGGING_START: starts the log and returns the page size that the device chose, in bytes.
   * @param args.pageSize bytes, a power of two @param args.ranges begin and end at multiples of it
   * @throws UapiError EINVAL for no range, overlapping ranges or a second start; E2BIG for more ranges than it takes; ENOTTY
   * if it has no log
   */
  startDmaLogging(args: { pageSize: number; ranges: readonly { iova: Iova; length: bigint }[] }): Promise<number>;
  /**
   * VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: reads and clears the log. Resolves when every DMA whose bit was cleared has landed.
   * @throws UapiError EINVAL while not logging or for a page size below the minimum; EBUSY if the log is readable only when
   * quiesced, and the device isn't
   */
  reportDmaLogging(query: BitmapQuery): Promise<void>;
  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: stops the log. */
  stopDmaLogging(): Promise<void>;
  /**
   * Tells the process that serves the device how far the handover is. Absent if the device ends with this process, because
   * then nobody else has to decide about it.
   * @param migration the migration's name, for an operator
   * @throws UapiError if the notice did not arrive: the migration must not go on as if it had
   */
  announceHandover?(notice: HandoverNotice, migration: string): Promise<void>;
}

/**
 * A notice about a device that a migration has stopped. `committing`: from now on the machine may run at either side, so only
 * this process or an operator may decide about the device. `gone`: the machine is the other side's for good.
 */
export type HandoverNotice = "committing" | "gone";

/** The unit that migrates: guest memory, vCPUs, and devices of a host. */
export interface Machine extends AsyncDisposable {
  readonly memory: GuestMemory;
  readonly devices: readonly AttachedDevice[];
  readonly vcpus: Vcpus;
  /**
   * The ranges that the devices' IOASes map besides RAM, each as it was mapped: the BARs that peers may reach. Default: none.
   * `length` is in bytes. IOMMU_IOAS_COPY needs exactly these ranges, and those of {@link memory}'s regions.
   */
  readonly peerMappings?: readonly { readonly iova: Iova; readonly length: bigint }[];
  /** The designs in which the kernel merges dirty pages; absent if the kernel has none. */
  readonly designs?: KernelDesigns;
  /** The "P2P allowed" query: true if the initiator may write into the target's BARs. It is directed. */
  mayP2p(initiator: string, target: string): boolean;
  /** Forbids or again allows P2P to a device, while it is suspended. */
  setP2pReachable(device: string, reachable: boolean): Promise<void>;
}

/** A device bound to an iommufd. It can be queried and attached. */
export interface BoundDevice {
  /** Its name in the machine. */
  readonly id: string;
  /** The model or kernel driver. */
  readonly model: string;
  readonly vfio: VfioDevice;
  readonly iommufd: Iommufd;
  /** The device's id in the iommufd. */
  readonly deviceId: ObjectId;
  /** True for an mdev, which has no hardware page table: it pins pages, or marks a shared tracker. */
  readonly mdev: boolean;
}

/** A device of a machine, bound and attached. */
export interface AttachedDevice extends BoundDevice {
  /** The IOAS that its memory was mapped in. */
  readonly ioas: ObjectId;
}

/** All vCPUs of a machine. */
export interface Vcpus {
  readonly count: number;
  /** Resolves when no vCPU writes memory any more. */
  pause(): Promise<void>;
  /** Lets the vCPUs run. */
  resume(): Promise<void>;
  /** Returns the registers and all that must move with them. The vCPUs must be paused. */
  saveState(): Promise<Uint8Array>;
  /** Loads what {@link saveState} returned. The vCPUs must be paused. */
  loadState(state: Uint8Array): Promise<void>;
  /** Starts KVM's dirty log of the 4 KiB pages that vCPUs write. @throws UapiError EINVAL for a second start */
  startDirtyLog(): Promise<void>;
  /** Reads and clears the log of guest pages, adding to `into`. */
  readAndClearDirtyLog(query: { firstPage: PageNumber; pages: number; into: DirtyBitmap }): Promise<void>;
  /** Stops the log. */
  stopDirtyLog(): Promise<void>;
}
