import { constants } from "node:fs";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type {
  BitmapQuery,
  DataStream,
  DmaLoggingLimits,
  Iommufd,
  IrqInfo,
  MigrationSupport,
  ObjectId,
  RegionInfo,
  TrackingFlags,
  VfioDevice,
} from "../../host/host.js";
import { type DeviceShape, shapeOf } from "../../host/shape.js";
import { hex, type Iova, isPowerOfTwo, PAGE_SIZE, U64_MAX } from "../../memory/address.js";
import { addressOf } from "../../sys/address.js";
import { OpenFile } from "../../sys/open-file.js";
import { populateOnThread } from "../../sys/populate.js";
import { Lock } from "../../threads/lock.js";
import { type ErrnoName, isErrno, UapiError } from "../../uapi/errno.js";
import {
  type DeviceFeature,
  type MigState,
  SAVING_GROUP,
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_DETACH_IOMMUFD_PT,
  VFIO_DEVICE_RESET,
  VFIO_DEVICE_STATE,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY,
  vfio_device_attach_iommufd_pt,
  vfio_device_bind_iommufd,
  vfio_device_detach_iommufd_pt,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_range,
  vfio_device_feature_dma_logging_report,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_device_feature_migration,
} from "../../uapi/vfio.js";
import { LinuxIommufd } from "../iommufd.js";
import { lockedMemoryRemedy } from "../remedies.js";
import { LinuxResumingStream, LinuxSavingStream } from "./data-stream.js";
import { type DeviceInfo, type LinuxRegion, readDeviceInfo } from "./device-info.js";
import { getFeature, probeFeature, setFeature, switchFeature } from "./feature.js";
import { ReleaseWatch } from "./release-watch.js";

const SET_STATE = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE";
const START = "VFIO_DEVICE_FEATURE_DMA_LOGGING_START";
const REPORT = "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT";

/** Ranges that the kernel takes in one DMA_LOGGING_START: as many as fit in a page (LOG_MAX_RANGES). */
const MAX_LOGGED_RANGES = PAGE_SIZE / vfio_device_feature_dma_logging_range.size;

/** What to do about a state change that failed, by where it left the device. */
const REMEDY_OF_STATE: Partial<Record<MigState, string>> = {
  ERROR: "reset the device: it is in ERROR",
  RESUMING: "write the whole state of a device of the same model and version, or reset the device",
};

/** Which device, as whoever looked for it knows it. */
export interface LinuxVfioDeviceOptions {
  readonly id: string;
  /** The kernel driver's name. */
  readonly model: string;
  /** Its character device: `/dev/vfio/devices/vfio0`. */
  readonly cdev: string;
  /** Called once the device is closed. */
  readonly onClose?: () => void;
}

/**
 * A VFIO device of this machine's kernel, through its character device (CONFIG_VFIO_DEVICE_CDEV).
 *
 * What holds: the kernel keeps the device's state, and this object what lives as long as its descriptor: the stream of
 * the session that is under way, and that the log is on. State changes, resets and log switches happen one at a time. What
 * may take long runs on a thread; the descriptor is closed when the last call on it has returned.
 *
 * An open device answers nothing before it is bound: until then all but {@link bind} is refused with EINVAL, and
 * {@link regions} and {@link irqs} are empty.
 */
export class LinuxVfioDevice implements VfioDevice {
  readonly id: string;
  readonly model: string;
  readonly #file: OpenFile;
  readonly #onClose: (() => void) | undefined;
  readonly #lock = new Lock();
  readonly #released = new AbortController();
  #info: DeviceInfo | null = null;
  #watch: ReleaseWatch | null = null;
  #stream: LinuxSavingStream | LinuxResumingStream | null = null;
  #attached = false;
  #logging = false;
  #precopyInfoV2 = false;
  #closing: Promise<void> | undefined;

  /** For {@link open}, and for devices that were opened another way. */
  protected constructor({ id, model, onClose }: Omit<LinuxVfioDeviceOptions, "cdev">, file: OpenFile) {
    this.id = id;
    this.model = model;
    this.#onClose = onClose;
    this.#file = file;
  }

  /** @throws UapiError ENOENT or ENODEV for a device that is gone, EACCES or EPERM without the right to open it */
  static async open(options: LinuxVfioDeviceOptions): Promise<LinuxVfioDevice> {
    const file = await OpenFile.open(options.cdev, constants.O_RDWR, {
      name: options.id,
      remedy: (code) => remedyOfOpen(code, options.cdev),
    });
    return new LinuxVfioDevice(options, file);
  }

  /** Known once bound. */
  get regions(): readonly RegionInfo[] {
    return this.#info?.regions ?? [];
  }

  /** Known once bound. */
  get irqs(): readonly IrqInfo[] {
    return this.#info?.irqs ?? [];
  }

  /**
   * Aborted when the kernel asks for the device back, since it is being unplugged or unbound from its driver. From then on
   * operations that begin something are refused with ENODEV; the removal goes on once the device is disposed. Only drivers
   * that can ask are heard (vfio-pci and those made from it; not mtty).
   */
  get released(): AbortSignal {
    return this.#released.signal;
  }

  async bind(iommufd: Iommufd): Promise<ObjectId> {
    const { name: syscall } = VFIO_DEVICE_BIND_IOMMUFD;
    const attempted = `bind '${this.id}' to an iommufd`;
    if (!(iommufd instanceof LinuxIommufd)) {
      throw new UapiError("EINVAL", { syscall, attempted, remedy: "give an iommufd of the same host" });
    }
    return this.#lock.run(async () => {
      const bind = vfio_device_bind_iommufd.encode({ argsz: vfio_device_bind_iommufd.size, iommufd: iommufd.fd });
      try {
        await this.#file.ioctlOnThread(VFIO_DEVICE_BIND_IOMMUFD, bind, () => attempted);
      } catch (error) {
        if (!(error instanceof UapiError)) throw error;
        throw withRemedy(error, remedyOfBind(error.code, this.#info !== null));
      }
      await this.begin();
      return vfio_device_bind_iommufd.decode(bind).out_devid;
    });
  }

  /** Asks the device what it is, once it answers, and has it RUNNING. @throws UapiError; EPROTO for an answer that can't be */
  protected async begin(): Promise<void> {
    this.#info = readDeviceInfo(this.#file);
    if (this.#info.asksForRelease) this.#watch = ReleaseWatch.start(this.#file, () => this.#onReleaseRequest());
    await this.#beginRunning();
  }

  async attach(ioasOrHwpt: ObjectId): Promise<ObjectId> {
    const attempted = () => `attach '${this.id}' to ${ioasOrHwpt}`;
    this.#check(VFIO_DEVICE_ATTACH_IOMMUFD_PT.name, attempted);
    return this.#lock.run(async () => {
      const attach = vfio_device_attach_iommufd_pt.encode({
        argsz: vfio_device_attach_iommufd_pt.size,
        pt_id: ioasOrHwpt,
      });
      try {
        await this.#file.ioctlOnThread(VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach, attempted);
      } catch (error) {
        // The first device of an IOAS has all that is mapped in it pinned.
        throw isErrno(error, "ENOMEM") ? withRemedy(error, lockedMemoryRemedy()) : error;
      }
      this.#attached = true;
      return vfio_device_attach_iommufd_pt.decode(attach).pt_id;
    });
  }

  async detach(): Promise<void> {
    const attempted = () => `detach '${this.id}'`;
    this.#checkBound(VFIO_DEVICE_DETACH_IOMMUFD_PT.name, attempted);
    await this.#lock.run(() => this.#detach(attempted));
  }

  async reset(): Promise<void> {
    const attempted = () => `reset '${this.id}'`;
    this.#check(VFIO_DEVICE_RESET.name, attempted);
    await this.#lock.run(async () => {
      await this.#endStream("the device was reset");
      try {
        await this.#file.ioctlOnThread(VFIO_DEVICE_RESET, new Uint8Array(0), attempted);
      } catch (error) {
        if (this.#info?.resets !== false || !(error instanceof UapiError)) throw error;
        throw withRemedy(error, "it can't be reset alone: unbind it from its driver and bind it again");
      }
      // Drivers end logging in their reset, or leave it on; here it is off after it, as the interface says.
      if (this.#logging) await this.#stopLogging();
    });
  }

  async supports(feature: DeviceFeature): Promise<boolean> {
    this.#checkBound(`VFIO_DEVICE_FEATURE_${feature}`, () => `ask '${this.id}' for ${feature}`);
    return probeFeature(this.#file, feature);
  }

  async migration(): Promise<MigrationSupport> {
    const attempted = () => `ask '${this.id}' how it migrates`;
    this.#checkBound("VFIO_DEVICE_FEATURE_MIGRATION", attempted);
    const { flags } = await this.#migrating(() =>
      getFeature(this.#file, "MIGRATION", vfio_device_feature_migration, {}, attempted),
    );
    const has = (flag: number) => (flags & BigInt(flag)) !== 0n;
    return {
      stopCopy: has(VFIO_MIGRATION_STOP_COPY),
      p2p: has(VFIO_MIGRATION_P2P),
      preCopy: has(VFIO_MIGRATION_PRE_COPY),
    };
  }

  /**
   * A log of its own is what its driver offers; an mdev's may be a stub: mtty does no DMA, and its log never reports
   * anything. Tracking through a container shared with other devices is in no Linux: iommufd has no object that holds one.
   */
  async trackingFlags(): Promise<TrackingFlags> {
    return { tracksInternally: await this.supports("DMA_LOGGING_START"), tracksThroughContainer: false };
  }

  /** Null: Linux tells page size, ranges and reach of a log only by the answer to START. */
  async dmaLoggingLimits(): Promise<DmaLoggingLimits | null> {
    return null;
  }

  async state(): Promise<MigState> {
    this.#check(SET_STATE, () => `ask for the state of '${this.id}'`);
    return this.#state();
  }

  async setState(next: MigState): Promise<DataStream | null> {
    const attempted = () => `move '${this.id}' to ${next}`;
    this.#check(SET_STATE, attempted);
    return this.#lock.run(async () => {
      const values = { device_state: VFIO_DEVICE_STATE[next], data_fd: -1 };
      let fd: number;
      try {
        const answer = await this.#migrating(() =>
          setFeature(this.#file, "MIG_DEVICE_STATE", vfio_device_feature_mig_state, values, attempted),
        );
        fd = answer.data_fd;
      } catch (error) {
        throw await this.#stateError(error, next);
      }
      if (fd < 0) {
        await this.#endStreamUnlessIn(next);
        if (this.#stream?.direction === "saving") this.#stream.final = next === "STOP_COPY";
        return null;
      }
      // A new session: whatever ran before has ended on the way.
      const Session = next === "RESUMING" ? LinuxResumingStream : LinuxSavingStream;
      const stream = new Session(fd, { device: this.id, precopyInfoV2: () => this.#precopyInfoV2 });
      await this.#endStream("the device began another session");
      if (stream.direction === "saving") stream.final = next === "STOP_COPY";
      this.#stream = stream;
      return stream;
    });
  }

  async dataSize(): Promise<number> {
    const attempted = () => `ask how large the state of '${this.id}' is`;
    this.#check("VFIO_DEVICE_FEATURE_MIG_DATA_SIZE", attempted);
    const { stop_copy_length } = await this.#migrating(() =>
      getFeature(this.#file, "MIG_DATA_SIZE", vfio_device_feature_mig_data_size, {}, attempted),
    );
    return Number(stop_copy_length);
  }

  async enablePrecopyInfoV2(): Promise<void> {
    const attempted = () => `opt in on '${this.id}'`;
    this.#check("VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2", attempted);
    await switchFeature(this.#file, "MIG_PRECOPY_INFOv2", attempted);
    this.#precopyInfoV2 = true;
  }

  async startDmaLogging({
    pageSize,
    ranges,
  }: {
    pageSize: number;
    ranges: readonly { iova: Iova; length: bigint }[];
  }): Promise<number> {
    const attempted = () => `log ${ranges.length} ranges of '${this.id}' by ${pageSize} bytes`;
    this.#check(START, attempted);
    const refuse = (code: ErrnoName, remedy: string) =>
      new UapiError(code, { syscall: START, attempted: attempted(), remedy });
    this.#checkLog(START, attempted);
    if (!Number.isSafeInteger(pageSize) || !isPowerOfTwo(pageSize)) throw refuse("EINVAL", "give a power of two");
    // Before the array is made: the kernel would answer the same.
    if (ranges.length > MAX_LOGGED_RANGES) {
      throw refuse("E2BIG", `give at most ${MAX_LOGGED_RANGES} ranges: merge them, outwards`);
    }
    if (ranges.some(beyond64Bits)) throw refuse("EOVERFLOW", "end ranges below 2^64");
    return this.#lock.run(async () => {
      // "Another start is not allowed in the meantime" (vfio.h); not every driver sees to it.
      if (this.#logging) throw refuse("EINVAL", "stop it first: it is on");
      const array = new Uint8Array(Math.max(1, ranges.length) * vfio_device_feature_dma_logging_range.size);
      ranges.forEach((range, index) => {
        vfio_device_feature_dma_logging_range.encode(range, array, index * vfio_device_feature_dma_logging_range.size);
      });
      const values = { page_size: BigInt(pageSize), num_ranges: ranges.length, ranges: addressOf(array) };
      const control = vfio_device_feature_dma_logging_control;
      const { page_size } = await setFeature(this.#file, "DMA_LOGGING_START", control, values, attempted);
      this.#logging = true;
      // What the kernel was given must live until it has answered.
      array.fill(0);
      if (isPowerOfTwo(page_size) && page_size <= 1n << 40n) return Number(page_size);
      await this.#stopLogging();
      throw refuse("EPROTO", `its driver chose a page size of ${hex(page_size)}, which is none`);
    });
  }

  async reportDmaLogging({ iova, length, pageSize, into }: BitmapQuery): Promise<void> {
    const attempted = () => `read the log of ${hex(length)} bytes at ${hex(iova)} of '${this.id}' by ${pageSize}`;
    this.#check(REPORT, attempted);
    const refuse = (code: ErrnoName, remedy: string) =>
      new UapiError(code, { syscall: REPORT, attempted: attempted(), remedy });
    this.#checkLog(REPORT, attempted);
    if (!Number.isSafeInteger(pageSize) || !isPowerOfTwo(pageSize) || pageSize < PAGE_SIZE) {
      throw refuse("EINVAL", `give a power of two from ${PAGE_SIZE} on as page size`);
    }
    if (beyond64Bits({ iova, length })) throw refuse("EOVERFLOW", "end the range below 2^64");
    if (into.granule !== pageSize || into.iova > iova || into.iova + into.length < iova + length) {
      throw refuse("EINVAL", "give a bitmap of that range and page size");
    }
    if (!this.#logging) throw refuse("EINVAL", "start DMA logging first");
    if (length === 0n) return;
    // The kernel's bit 0 is the iova of the question; it writes into the caller's bitmap where that has a word beginning
    // there, which is always so for a whole one.
    const inPlace = iova === into.iova;
    const bitmap = inPlace ? into : new DirtyBitmap({ iova, length, granule: pageSize });
    const values = { iova, length, page_size: BigInt(pageSize), bitmap: BigInt(bitmap.address) };
    await populateOnThread({ address: bitmap.address, bytes: Math.ceil(Number(length) / pageSize / 8) });
    await getFeature(this.#file, "DMA_LOGGING_REPORT", vfio_device_feature_dma_logging_report, values, attempted);
    if (!inPlace) into.or(bitmap);
  }

  async stopDmaLogging(): Promise<void> {
    this.#checkBound("VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP", () => `stop the log of '${this.id}'`);
    await this.#lock.run(() => this.#stopLogging());
  }

  /** The driver knows the version of its state, and says nothing of it. */
  async shape(): Promise<DeviceShape> {
    this.#check("pread", () => `ask what '${this.id}' is`);
    return shapeOf(this, { stateVersion: null, facts: {} });
  }

  /** pread(2) of a region. @throws UapiError EINVAL outside of it */
  async regionRead(region: number, offset: number, bytes: number): Promise<Uint8Array> {
    const { offset: start } = this.#region("pread", region, offset, bytes);
    const into = new Uint8Array(bytes);
    const count = await this.#file.read(into, start + offset);
    return into.subarray(0, count);
  }

  /** pwrite(2) of a region. @throws UapiError EINVAL outside of it */
  async regionWrite(region: number, offset: number, data: Uint8Array): Promise<void> {
    const { offset: start } = this.#region("pwrite", region, offset, data.byteLength);
    await this.#file.write(data, start + offset);
  }

  /** Ends the stream, stops the log, detaches and closes, whatever of it is there, and whatever of it fails. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#lock.run(() => this.#close());
    return this.#closing;
  }

  /**
   * Drivers begin with RUNNING. mtty does not: it keeps the state in which it was closed, without the session that belongs to
   * it, and asked to leave RESUMING then, Linux 7.2 dereferences a null pointer.
   */
  async #beginRunning(): Promise<void> {
    if (!probeFeature(this.#file, "MIG_DEVICE_STATE") || (await this.#state()) === "RUNNING") return;
    const attempted = () => `reset '${this.id}', which its last user left in another state than RUNNING`;
    await this.#file.ioctlOnThread(VFIO_DEVICE_RESET, new Uint8Array(0), attempted);
  }

  async #close(): Promise<void> {
    await this.#endStream("the device is closed");
    // Closing undoes both; doing it in order lets no DMA go unlogged, or to memory that is let go.
    if (this.#attached) await this.#detach(() => `detach '${this.id}'`).catch(() => undefined);
    if (this.#logging) await this.#stopLogging().catch(() => undefined);
    this.#watch?.[Symbol.dispose]();
    await this.#file[Symbol.asyncDispose]();
    this.#onClose?.();
  }

  async #detach(attempted: () => string): Promise<void> {
    const detach = vfio_device_detach_iommufd_pt.encode({ argsz: vfio_device_detach_iommufd_pt.size });
    await this.#file.ioctlOnThread(VFIO_DEVICE_DETACH_IOMMUFD_PT, detach, attempted);
    this.#attached = false;
  }

  async #stopLogging(): Promise<void> {
    await switchFeature(this.#file, "DMA_LOGGING_STOP", () => `stop the log of '${this.id}'`);
    this.#logging = false;
  }

  async #state(): Promise<MigState> {
    const attempted = () => `ask for the state of '${this.id}'`;
    const { device_state } = await this.#migrating(() =>
      getFeature(this.#file, "MIG_DEVICE_STATE", vfio_device_feature_mig_state, { data_fd: -1 }, attempted),
    );
    const state = (Object.keys(VFIO_DEVICE_STATE) as MigState[]).find(
      (name) => VFIO_DEVICE_STATE[name] === device_state,
    );
    if (state !== undefined) return state;
    throw new UapiError("EPROTO", {
      syscall: SET_STATE,
      attempted: `${attempted()}: it is ${device_state}`,
      remedy: "this kernel has states that vfio.h of Linux 7.2 does not know",
    });
  }

  /** What a failed state change means: where the device is now decides what can be done. */
  async #stateError(error: unknown, next: MigState): Promise<unknown> {
    if (!(error instanceof UapiError) || error.code === "ENOTTY") return error;
    // Not known where the device is: then the first error says more than the second.
    const state = await this.#state().catch(() => null);
    if (state === null) return error;
    await this.#endStreamUnlessIn(state);
    // EINVAL stays: the arc doesn't exist, also because the device was in ERROR before, or the state that it was given is bad.
    return new UapiError(state === "ERROR" && error.code !== "EINVAL" ? "EIO" : error.code, {
      syscall: SET_STATE,
      attempted: `move '${this.id}' to ${next}: it is in ${state}`,
      remedy: REMEDY_OF_STATE[state] ?? "see the arcs of enum vfio_device_mig_state",
      cause: error,
    });
  }

  /** A session lives as long as the device stays in the states that it belongs to. */
  async #endStreamUnlessIn(state: MigState): Promise<void> {
    const saving = this.#stream?.direction === "saving";
    if (saving ? SAVING_GROUP.has(state) : state === "RESUMING") return;
    await this.#endStream(saving ? "the device left the saving states" : "the device left RESUMING");
  }

  async #endStream(why: string): Promise<void> {
    const stream = this.#stream;
    this.#stream = null;
    await stream?.end(why);
  }

  #onReleaseRequest(): void {
    const why = `the kernel wants '${this.id}' back: it is being unplugged, or unbound from its driver`;
    this.#released.abort(
      new UapiError("ENODEV", { syscall: "VFIO_PCI_REQ_IRQ", attempted: `use '${this.id}'`, remedy: why }),
    );
    // Whoever waits for data of a device that goes away would wait in vain.
    void this.#lock.run(() => this.#endStream(why));
  }

  /** Says what ENOTTY means of a migration feature. */
  async #migrating<T>(call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (error) {
      throw isErrno(error, "ENOTTY") ? withRemedy(error, "its driver can't migrate it") : error;
    }
  }

  #region(syscall: string, index: number, offset: number, bytes: number): LinuxRegion {
    const attempted = () => `access ${bytes} bytes at ${hex(offset)} of region ${index} of '${this.id}'`;
    this.#check(syscall, attempted);
    const regions = this.#info?.regions ?? [];
    const region = regions.find((candidate) => candidate.index === index);
    if (region !== undefined && offset >= 0 && bytes >= 0 && offset + bytes <= region.bytes) return region;
    const list = regions.map(({ index: i, name, bytes: b }) => `${i} (${name}, ${b} bytes)`).join(", ");
    throw new UapiError("EINVAL", { syscall, attempted: attempted(), remedy: `its regions are ${list || "none"}` });
  }

  /** A device without a log says so before anything is said about the arguments. */
  #checkLog(syscall: string, attempted: () => string): void {
    if (probeFeature(this.#file, "DMA_LOGGING_START")) return;
    throw new UapiError("ENOTTY", {
      syscall,
      attempted: attempted(),
      remedy: "its driver has no DMA logging: track it with its IOMMU",
    });
  }

  /** For what begins or asks something: the device must be bound, and not on its way out. */
  #check(syscall: string, attempted: () => string): void {
    if (this.released.aborted) {
      throw new UapiError("ENODEV", {
        syscall,
        attempted: attempted(),
        remedy: "close it: it is being unplugged, or unbound from its driver",
      });
    }
    this.#checkBound(syscall, attempted);
  }

  /** For what ends something, too. */
  #checkBound(syscall: string, attempted: () => string): void {
    if (this.#closing !== undefined) {
      throw new UapiError("EBADF", { syscall, attempted: attempted(), remedy: "it is closed" });
    }
    if (this.#info === null) {
      throw new UapiError("EINVAL", { syscall, attempted: attempted(), remedy: "bind it to an iommufd first" });
    }
  }
}

function beyond64Bits({ iova, length }: { iova: Iova; length: bigint }): boolean {
  return iova < 0n || length < 0n || iova + length > U64_MAX;
}

function withRemedy(error: UapiError, remedy: string | undefined): UapiError {
  const { syscall, attempted = "", code } = error;
  return remedy === undefined ? error : new UapiError(code, { syscall, attempted, remedy, cause: error });
}

function remedyOfOpen(code: ErrnoName, cdev: string): string | undefined {
  switch (code) {
    case "EACCES":
    case "EPERM":
      return `let this user read and write ${cdev} (a udev rule for the subsystem vfio-dev), or run as root`;
    case "ENOENT":
    case "ENODEV":
    case "ENXIO":
      return "it is gone, or no VFIO driver is bound to it any more: look at what there is with `dirtmap probe --host linux`";
    default:
      return undefined;
  }
}

function remedyOfBind(code: ErrnoName, bound: boolean): string | undefined {
  switch (code) {
    case "EINVAL":
      return bound ? "it is bound already" : "another process may have it open; or its IOMMU can't keep DMA coherent";
    case "EBUSY":
      return "its IOMMU group is in use: let go of /dev/vfio/GROUP, and unbind the group's other devices from kernel drivers";
    case "EPERM":
      return (
        "another iommufd or a kernel driver owns its IOMMU group, or interrupts can't be isolated: " +
        "bind the whole group to VFIO drivers and one iommufd; enable interrupt remapping, or allow_unsafe_interrupts of iommufd"
      );
    case "EACCES":
      return "it is a virtual function of a device that VFIO holds: it needs that device's VF token";
    case "ENODEV":
      return "it is being removed, or has no IOMMU: enable the IOMMU in firmware and kernel";
    default:
      return undefined;
  }
}
