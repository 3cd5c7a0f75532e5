import { SAVED_PAGE_BYTES } from "../../devices/device-memory.js";
import { REGION } from "../../devices/pci-model.js";
import type { StampTrail } from "../../devices/stamp.js";
import { DmaLogging, deviceLogSource } from "../../devices/variant-driver/dma-logging.js";
import type { Arc } from "../../devices/variant-driver/mig-state.js";
import { MigrationDriver } from "../../devices/variant-driver/migration-driver.js";
import type { WorkloadDevice } from "../../devices/workload.js";
import { checkRegionAccess } from "../../host/device-checks.js";
import { type LoggedRange, noDmaLogging } from "../../host/dma-logging-checks.js";
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
} from "../../host/host.js";
import { refuse } from "../../host/iommufd-checks.js";
import { type DeviceShape, shapeOf } from "../../host/shape.js";
import type { IommufdAccess } from "../../iommufd/access.js";
import type { Port, SystemIommu } from "../../iommufd/system-iommu.js";
import { type Iova, MiB, PAGE_SIZE } from "../../memory/address.js";
import type { InFlight } from "../../memory/in-flight.js";
import type { DeviceFeature, MigState } from "../../uapi/vfio.js";
import { EmulatedIommufd } from "../iommufd.js";
import type { PhysicalMemory } from "../physical-memory.js";
import type { DeviceSide } from "../threads/device-threads.js";
import { MdevPins, pinLogSource } from "./mdev-pins.js";

/** Bytes that the state of this much device memory takes at most. */
function memoryStateBytes(bytes: number): number {
  return (bytes / PAGE_SIZE) * SAVED_PAGE_BYTES;
}

/** What a device's state has besides its memory: configuration, registers, queue contexts, DMA progress. */
const MAX_STATE_BESIDES_MEMORY = 2 * MiB;

export interface EmulatedVfioDeviceOptions {
  /** The device on its thread. */
  readonly client: DeviceSide;
  readonly port: Port;
  /** The IOMMU in front of it; null for an mdev. */
  readonly iommu: SystemIommu | null;
  readonly inFlight: InFlight;
  readonly physical: PhysicalMemory;
  /** Called when the device is closed. */
  readonly onClose?: () => void;
}

/**
 * An open VFIO device of the emulated host: the driver between the uAPI and the model on its thread.
 */
export class EmulatedVfioDevice implements WorkloadDevice {
  readonly id: string;
  readonly model: string;
  readonly regions: readonly RegionInfo[];
  readonly irqs: readonly IrqInfo[];
  readonly port: Port;
  readonly #client: DeviceSide;
  readonly #iommu: SystemIommu | null;
  readonly #physical: PhysicalMemory;
  readonly #onClose: (() => void) | undefined;
  readonly #logging: DmaLogging | null;
  readonly #migration: MigrationDriver;
  #bound: {
    readonly iommufd: EmulatedIommufd;
    readonly id: ObjectId;
    readonly access: IommufdAccess | undefined;
  } | null = null;
  #open = true;

  private constructor({ client, port, iommu, inFlight, physical, onClose }: EmulatedVfioDeviceOptions) {
    const { info } = client;
    this.id = client.id;
    this.model = info.model;
    this.regions = info.regions;
    this.irqs = info.irqs;
    this.port = port;
    this.#client = client;
    this.#iommu = iommu;
    this.#physical = physical;
    this.#onClose = onClose;
    this.#logging =
      info.dmaLogging === null
        ? null
        : new DmaLogging(
            info.dmaLogging,
            info.mdev
              ? pinLogSource(() => this.#bound?.access?.pins)
              : deviceLogSource({
                  setLog: (log) => client.setLog(log),
                  flush: () => inFlight.invalidate([port]),
                }),
          );
    const memoryBytes = info.regions.find(({ index }) => index === REGION.BAR2)?.bytes ?? 0;
    this.#migration = new MigrationDriver({
      id: client.id,
      info,
      device: client,
      maxImage: memoryStateBytes(memoryBytes) + MAX_STATE_BESIDES_MEMORY,
    });
  }

  /** Opens a device that was placed on a thread. It is in RUNNING, and does DMA once its driver enables it. */
  static async open(options: EmulatedVfioDeviceOptions): Promise<EmulatedVfioDevice> {
    const device = new EmulatedVfioDevice(options);
    await device.#client.setMode("running");
    return device;
  }

  async shape(): Promise<DeviceShape> {
    this.#checkOpen("pread");
    const { stateVersion } = this.#client.info;
    return shapeOf(this, { stateVersion, facts: await this.#client.facts() });
  }

  async bind(iommufd: Iommufd): Promise<ObjectId> {
    const call = { syscall: "VFIO_DEVICE_BIND_IOMMUFD", attempted: `bind '${this.id}'` };
    this.#checkOpen(call.syscall);
    if (this.#bound !== null) refuse("EINVAL", call, "it is bound already");
    if (!(iommufd instanceof EmulatedIommufd)) return refuse("EINVAL", call, "give an iommufd of the same host");
    const { mdev, tracking } = this.#client.info;
    const binding = {
      callbacks: { unmap: (iova: Iova, length: bigint) => this.#unmap(iova, length) },
      ...(tracking.tracksThroughContainer
        ? { sharedTracker: { setTracker: this.#client.setTracker.bind(this.#client) } }
        : {}),
    };
    const id = iommufd.bindDevice({ port: this.port, iommu: this.#iommu, mdev: mdev ? binding : null });
    const access = mdev ? iommufd.accessOf(id) : undefined;
    this.#bound = { iommufd, id, access };
    if (access !== undefined) this.#client.pins = new MdevPins(access, this.#physical);
    return id;
  }

  async attach(ioasOrHwpt: ObjectId): Promise<ObjectId> {
    const { iommufd, id } = this.#binding("VFIO_DEVICE_ATTACH_IOMMUFD_PT", `attach '${this.id}' to ${ioasOrHwpt}`);
    return iommufd.attachDevice(id, ioasOrHwpt);
  }

  async detach(): Promise<void> {
    const { iommufd, id } = this.#binding("VFIO_DEVICE_DETACH_IOMMUFD_PT", `detach '${this.id}'`);
    await iommufd.detachDevice(id);
  }

  /** Also stops DMA until the driver enables it again: the function's command register is as after power-on. */
  async reset(): Promise<void> {
    this.#checkOpen("VFIO_DEVICE_RESET");
    await this.#migration.reset(async () => {
      await this.#logging?.stop();
      await this.#client.reset();
    });
  }

  async supports(feature: DeviceFeature): Promise<boolean> {
    this.#checkOpen(`VFIO_DEVICE_FEATURE_${feature}`);
    const { migration, dmaLogging } = this.#client.info;
    switch (feature) {
      case "DMA_LOGGING_START":
      case "DMA_LOGGING_STOP":
      case "DMA_LOGGING_REPORT":
        return dmaLogging !== null;
      case "MIG_PRECOPY_INFOv2":
        return migration?.preCopy === true;
      default:
        return migration !== null;
    }
  }

  async migration(): Promise<MigrationSupport> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_MIGRATION");
    return this.#migration.support();
  }

  async trackingFlags(): Promise<TrackingFlags> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_DMA_LOGGING_START");
    return this.#client.info.tracking;
  }

  async dmaLoggingLimits(): Promise<DmaLoggingLimits | null> {
    return this.#client.info.dmaLogging;
  }

  async state(): Promise<MigState> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE");
    return this.#migration.state;
  }

  async setState(next: MigState): Promise<DataStream | null> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE");
    return this.#migration.setState(next);
  }

  async dataSize(): Promise<number> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_MIG_DATA_SIZE");
    return this.#migration.dataSize();
  }

  async enablePrecopyInfoV2(): Promise<void> {
    this.#checkOpen("VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2");
    this.#migration.enablePrecopyInfoV2();
  }

  async startDmaLogging(args: { pageSize: number; ranges: readonly LoggedRange[] }): Promise<number> {
    const logging = this.#log("start");
    if (this.#client.info.mdev) this.#binding("VFIO_DEVICE_FEATURE_DMA_LOGGING_START", `log the pins of '${this.id}'`);
    return this.#migration.lock.run(() => logging.start(args.pageSize, args.ranges));
  }

  async reportDmaLogging(query: BitmapQuery): Promise<void> {
    // Not under the lock: a report drains, and must work while a state change waits for the same DMA.
    await this.#log("report").report(query, this.#migration.quiet);
  }

  async stopDmaLogging(): Promise<void> {
    const logging = this.#log("stop");
    await this.#migration.lock.run(() => logging.stop());
  }

  async regionRead(region: number, offset: number, bytes: number): Promise<Uint8Array> {
    this.#checkOpen("pread");
    checkRegionAccess(this, "read", { region, offset, bytes });
    return this.#client.regionRead(region, offset, bytes);
  }

  async regionWrite(region: number, offset: number, data: Uint8Array): Promise<void> {
    this.#checkOpen("pwrite");
    checkRegionAccess(this, "write", { region, offset, bytes: data.byteLength });
    await this.#client.regionWrite(region, offset, data);
  }

  stamps(): Promise<StampTrail | null> {
    return this.#client.trail();
  }

  counters(): Promise<Record<string, number>> {
    return this.#client.counters();
  }

  /** For tests: the device fails, into ERROR, when it is next asked to take this arc. */
  failNext(arc: Arc): void {
    this.#migration.failNext(arc);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await this.#migration.lock.run(async () => {
      this.#migration.endSessions();
      // A thread that has ended does no DMA.
      await this.#client.setMode("stopped").catch(() => undefined);
      await this.#logging?.stop().catch(() => undefined);
    });
    const bound = this.#bound;
    this.#bound = null;
    if (bound !== null) await bound.iommufd.unbindDevice(bound.id);
    await this.#client.remove().catch(() => undefined);
    this.#onClose?.();
  }

  async #unmap(iova: Iova, length: bigint): Promise<void> {
    const { pins } = this.#client;
    if (pins instanceof MdevPins) await pins.release(this.#client, iova, length);
  }

  #log(operation: "start" | "report" | "stop"): DmaLogging {
    this.#checkOpen(`VFIO_DEVICE_FEATURE_DMA_LOGGING_${operation.toUpperCase()}`);
    if (this.#logging === null) throw noDmaLogging(operation);
    return this.#logging;
  }

  #binding(syscall: string, attempted: string) {
    this.#checkOpen(syscall);
    return this.#bound ?? refuse("EINVAL", { syscall, attempted }, "bind it to an iommufd first");
  }

  #checkOpen(syscall: string): void {
    if (!this.#open) refuse("EBADF", { syscall, attempted: `use '${this.id}'` }, "it is closed");
  }
}
