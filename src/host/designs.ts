import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { IovaStretch } from "../bitmap/ranges.js";
import type { Iova } from "../memory/address.js";
import type { AttachedDevice, Iommufd, ObjectId } from "./host.js";

/*
 * The designs in which the kernel, not the reader, merges what the trackers say. No Linux has them but `type1`; a host
 * may offer them so that they can be compared with separate trackers on the same workload.
 */

/**
 * - `type1`: the legacy container (VFIO_IOMMU_DIRTY_PAGES). No device log is consulted.
 * - `aggregated`: drivers report their dirty pages into a bitmap of the container; a device can opt out.
 * - `iterating`: one call and no shared state: the kernel iterates over all trackers. Nobody can opt out.
 */
export type ContainerDesign = "type1" | "aggregated" | "iterating";

/** A device in a container. */
export interface ContainerMember {
  readonly device: AttachedDevice;
  /** Which of its trackers is switched on; null: none, then all that is mapped counts as dirty. */
  readonly tracker: "iommu" | "device" | "pinned" | null;
  /** The HWPT or emulated IOMMU behind the tracker `iommu`. */
  readonly domain: { readonly iommufd: Iommufd; readonly id: ObjectId } | null;
  /** Bytes per bit of its own log; null: the smallest. */
  readonly granule: number | null;
  /** It has no tracker and must not count (the operator suspends it). Only `aggregated` can honour this. */
  readonly optOut: boolean;
}

/** The dirty tracking of a whole container: what the kernel merged, without who reported it. Disposing closes it. */
export interface ContainerTracking extends AsyncDisposable {
  /** True: some device forces all that is mapped to be reported at every read. */
  readonly reportsEverything: boolean;
  /** `quiesced` where one of the logs can be read only so: a call reads all of them, or none. Known once started. */
  readonly readableWhen: "always" | "quiesced";
  /** Switches all trackers on. @throws UapiError or DirtmapError; then none is on */
  start(): Promise<void>;
  /**
   * Reads and clears, adding to `into`, whose bit 0 is `iova` and whose granule is 4096, the smallest page size: the
   * only one that type1 takes. DMA whose bits were cleared has landed at resolution.
   * @param query one mapped area, whole
   * @throws UapiError: then nobody knows which bits were taken
   */
  getBitmap(query: { iova: Iova; length: bigint; into: DirtyBitmap }): Promise<void>;
  /** Switches all trackers off. */
  stop(): Promise<void>;
}

/** What a machine offers whose kernel has the designs. */
export interface KernelDesigns {
  /** @param mapped the areas that are mapped for DMA and writeable, each as it was mapped */
  openContainer(args: {
    design: ContainerDesign;
    members: readonly ContainerMember[];
    mapped: readonly IovaStretch[];
  }): Promise<ContainerTracking>;
}
