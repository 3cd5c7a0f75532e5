import type { PostedDmaLog } from "../../devices/dma-log.js";
import type { DmaFault } from "../../devices/model.js";
import type { ModelWiring } from "../../devices/pci-model.js";
import type { StampTrail } from "../../devices/stamp.js";
import type { RunMode } from "../../devices/variant-driver/migration-driver.js";
import type { ModelledDescription } from "../../host/description.js";
import type { ShapeFacts } from "../../host/shape.js";
import type { PostedTracker } from "../../iommufd/emulated-iommu.js";
import type { PageNumber } from "../../memory/address.js";
import type { Moved } from "../../threads/rpc.js";
import type { DmaWiring } from "../iommu/dma-port.js";
import type { PinnedRun, PinWiring } from "../vfio/pin-port.js";

/*
 * What the main thread and a device thread ask of each other. A thread answers between two slices of DMA, so every
 * answer also says that the devices' DMA up to it has landed.
 */

/** A device of a thread, by a number that the main side gives. */
export type DeviceNumber = number;

export interface PostedDevice {
  readonly device: DeviceNumber;
  readonly description: ModelledDescription;
  readonly wiring: Omit<ModelWiring, "memory">;
  /** The arena behind its BAR 2, and how much of it is; null: it has none. */
  readonly memory: { readonly memory: WebAssembly.Memory; readonly bytes: number } | null;
  readonly port:
    | { readonly kind: "iommu"; readonly wiring: DmaWiring }
    | { readonly kind: "pins"; readonly wiring: PinWiring };
  /** A test's {@link DmaHold}. */
  readonly hold: Int32Array<SharedArrayBuffer> | null;
}

/** Answered by a device thread. */
export type DeviceOperations = {
  /** Makes the model and starts it, stopped. */
  create(posted: PostedDevice): Promise<void>;
  /** Closes the device's sockets and files and forgets it. It must be stopped. */
  remove(args: { device: DeviceNumber }): void;
  setMode(args: { device: DeviceNumber; mode: RunMode }): Promise<void>;
  save(args: { device: DeviceNumber }): Moved<Uint8Array>;
  load(args: { device: DeviceNumber; state: Uint8Array }): void;
  reset(args: { device: DeviceNumber }): Promise<void>;
  regionRead(args: { device: DeviceNumber; region: number; offset: number; bytes: number }): Uint8Array;
  regionWrite(args: { device: DeviceNumber; region: number; offset: number; data: Uint8Array }): void;
  /** The device's own log from here on; null: none. */
  setLog(args: { device: DeviceNumber; log: PostedDmaLog | null }): void;
  /** The tracker that mdevs share, from here on. */
  setTracker(args: { device: DeviceNumber; tracker: PostedTracker | null }): void;
  /**
   * Pages that are about to be unpinned on behalf of an unmap: the device no longer reaches them at the answer. Pins of
   * an earlier epoch that it has yet to learn of may be gone as well.
   */
  dropPins(args: { device: DeviceNumber; page: PageNumber; pages: number; epoch: number }): void;
  facts(args: { device: DeviceNumber }): ShapeFacts;
  counters(args: { device: DeviceNumber }): Record<string, number>;
  /** null: its DMA is not stamped. */
  trail(args: { device: DeviceNumber }): StampTrail | null;
};

/** Answered by the main thread. */
export type HostOperations = {
  pin(args: {
    device: DeviceNumber;
    page: PageNumber;
    pages: number;
  }): Promise<{ fault: DmaFault } | { runs: PinnedRun[]; epoch: number }>;
  unpin(args: { device: DeviceNumber; page: PageNumber; pages: number }): Promise<void>;
  raiseIrq(args: { device: DeviceNumber; index: number; vector: number }): void;
  failed(args: { device: DeviceNumber; reason: string }): void;
  revived(args: { device: DeviceNumber }): void;
};
