import { constants } from "node:fs";
import type { SessionDevice } from "../../host/data-session.js";
import { type DeviceInfo, type PlacedRegion, readDeviceInfo } from "../../host/device-info.js";
import { FeatureDevice } from "../../host/feature-device.js";
import type { DmaLoggingLimits, Iommufd, IrqInfo, ObjectId, VfioDevice } from "../../host/host.js";
import { type Call, refuse } from "../../host/iommufd-checks.js";
import { type DeviceShape, shapeOf } from "../../host/shape.js";
import { OpenFile } from "../../sys/open-file.js";
import { type ErrnoName, UapiError } from "../../uapi/errno.js";
import {
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_DETACH_IOMMUFD_PT,
  vfio_device_attach_iommufd_pt,
  vfio_device_bind_iommufd,
  vfio_device_detach_iommufd_pt,
} from "../../uapi/vfio.js";
import { LinuxIommufd } from "../linux-iommufd.js";
import { lockedMemoryRemedy, withRemedy } from "../remedies.js";
import { LinuxResumingStream, LinuxSavingStream } from "./data-stream.js";
import { infoByIoctls } from "./device-info.js";
import { IoctlFeatures } from "./feature.js";
import { ReleaseWatch } from "./release-watch.js";

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
 * What holds, besides what holds for a {@link FeatureDevice}: what may take long runs on a thread, and the descriptor is
 * closed when the last call on it has returned.
 *
 * An open device answers nothing before it is bound: until then all but {@link bind} is refused with EINVAL, and
 * {@link regions} and {@link irqs} are empty.
 */
export class LinuxVfioDevice extends FeatureDevice<PlacedRegion> implements VfioDevice {
  readonly id: string;
  readonly model: string;
  protected readonly features: IoctlFeatures;
  readonly #file: OpenFile;
  readonly #onClose: (() => void) | undefined;
  readonly #released = new AbortController();
  #info: DeviceInfo | null = null;
  #watch: ReleaseWatch | null = null;
  #attached = false;
  #closing: Promise<void> | undefined;

  /** For {@link open}, and for devices that were opened another way. */
  protected constructor({ id, model, onClose }: Omit<LinuxVfioDeviceOptions, "cdev">, file: OpenFile) {
    super();
    this.id = id;
    this.model = model;
    this.#onClose = onClose;
    this.#file = file;
    this.features = new IoctlFeatures(file);
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
  get regions(): readonly PlacedRegion[] {
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
    return this.lock.run(async () => {
      const bind = vfio_device_bind_iommufd.encode({ argsz: vfio_device_bind_iommufd.size, iommufd: iommufd.fd });
      try {
        await this.#file.ioctlOnThread(VFIO_DEVICE_BIND_IOMMUFD, bind, () => attempted);
      } catch (error) {
        throw withRemedy(error, ({ code }) => remedyOfBind(code, this.#info !== null));
      }
      await this.begin();
      return vfio_device_bind_iommufd.decode(bind).out_devid;
    });
  }

  /** Asks the device what it is, once it answers, and has it RUNNING. @throws UapiError; EPROTO for an answer that can't be */
  protected async begin(): Promise<void> {
    this.#info = await readDeviceInfo(infoByIoctls(this.#file), this.id);
    if (this.#info.asksForRelease) this.#watch = ReleaseWatch.start(this.#file, () => this.#onReleaseRequest());
    await this.#beginRunning();
  }

  async attach(ioasOrHwpt: ObjectId): Promise<ObjectId> {
    const { name: syscall } = VFIO_DEVICE_ATTACH_IOMMUFD_PT;
    const call = { syscall, attempted: `attach '${this.id}' to ${ioasOrHwpt}` };
    this.checkUsable(call);
    return this.lock.run(async () => {
      const attach = vfio_device_attach_iommufd_pt.encode({
        argsz: vfio_device_attach_iommufd_pt.size,
        pt_id: ioasOrHwpt,
      });
      try {
        await this.#file.ioctlOnThread(VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach, () => call.attempted);
      } catch (error) {
        // The first device of an IOAS has all that is mapped in it pinned.
        throw withRemedy(error, ({ code }) => (code === "ENOMEM" ? lockedMemoryRemedy() : undefined));
      }
      this.#attached = true;
      return vfio_device_attach_iommufd_pt.decode(attach).pt_id;
    });
  }

  async detach(): Promise<void> {
    this.checkOpen(this.#detachCall);
    await this.lock.run(() => this.#detach());
  }

  override async reset(): Promise<void> {
    try {
      await super.reset();
    } catch (error) {
      const cantReset = this.#info?.resets === false;
      const remedy = "it can't be reset alone: unbind it from its driver and bind it again";
      throw withRemedy(error, () => (cantReset ? remedy : undefined));
    }
  }

  /** Null: Linux tells page size, ranges and reach of a log only by the answer to START. */
  async dmaLoggingLimits(): Promise<DmaLoggingLimits | null> {
    return null;
  }

  /** The driver knows the version of its state, and says nothing of it. */
  async shape(): Promise<DeviceShape> {
    this.checkUsable({ syscall: "pread", attempted: `ask what '${this.id}' is` });
    return shapeOf(this, { stateVersion: null, facts: {} });
  }

  /** Ends the stream, stops the log, detaches and closes, whatever of it is there, and whatever of it fails. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.lock.run(() => this.#close());
    return this.#closing;
  }

  /** For what ends something, too: it must be bound. */
  protected override checkOpen(call: Call): void {
    if (this.#closing !== undefined) refuse("EBADF", call, "it is closed");
    if (this.#info === null) refuse("EINVAL", call, "bind it to an iommufd first");
  }

  protected override checkUsable(call: Call): void {
    if (this.released.aborted) refuse("ENODEV", call, "close it: it is being unplugged, or unbound from its driver");
    this.checkOpen(call);
  }

  protected openSession(direction: "saving" | "resuming", fd: number, device: SessionDevice) {
    return direction === "saving" ? new LinuxSavingStream(fd, device) : new LinuxResumingStream(fd, device);
  }

  protected readRegion(region: PlacedRegion, offset: number, into: Uint8Array): Promise<number> {
    return this.#file.read(into, region.offset + offset);
  }

  protected writeRegion(region: PlacedRegion, offset: number, data: Uint8Array): Promise<number> {
    return this.#file.write(data, region.offset + offset);
  }

  /**
   * Drivers begin with RUNNING. mtty does not: it keeps the state in which it was closed, without the session that belongs to
   * it, and asked to leave RESUMING then, Linux 7.2 dereferences a null pointer.
   */
  async #beginRunning(): Promise<void> {
    if (!(await this.features.probe("MIG_DEVICE_STATE")) || (await this.state()) === "RUNNING") return;
    const attempted = `reset '${this.id}', which its last user left in another state than RUNNING`;
    await this.resetToRunning({ syscall: "VFIO_DEVICE_RESET", attempted });
  }

  async #close(): Promise<void> {
    await this.endSession("the device is closed");
    // Closing undoes both; doing it in order lets no DMA go unlogged, or to memory that is let go.
    if (this.#attached) await this.#detach().catch(() => undefined);
    if (this.logging) await this.stopLog().catch(() => undefined);
    this.#watch?.[Symbol.dispose]();
    await this.#file[Symbol.asyncDispose]();
    this.#onClose?.();
  }

  get #detachCall(): Call {
    return { syscall: VFIO_DEVICE_DETACH_IOMMUFD_PT.name, attempted: `detach '${this.id}'` };
  }

  async #detach(): Promise<void> {
    const detach = vfio_device_detach_iommufd_pt.encode({ argsz: vfio_device_detach_iommufd_pt.size });
    await this.#file.ioctlOnThread(VFIO_DEVICE_DETACH_IOMMUFD_PT, detach, () => this.#detachCall.attempted);
    this.#attached = false;
  }

  #onReleaseRequest(): void {
    const why = `the kernel wants '${this.id}' back: it is being unplugged, or unbound from its driver`;
    this.#released.abort(
      new UapiError("ENODEV", { syscall: "VFIO_PCI_REQ_IRQ", attempted: `use '${this.id}'`, remedy: why }),
    );
    // Whoever waits for data of a device that goes away would wait in vain.
    void this.lock.run(() => this.endSession(why));
  }
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
