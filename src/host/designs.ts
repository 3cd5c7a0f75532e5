import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { IovaStretch } from "../bitmap/ranges.js";
import type { Iova } from "../memory/address.js";
import type { AttachedDevice, Iommufd, ObjectId } from "./host.js";

/*
 * The designs in which the kernel, not the reader, merges what the trackers say. No Linux has them but `type1`; a host
 * may offer them so that they can be compared with separate trackers on the same workload.
 */

/**
 * The designs in which the kernel merges the dirty pages of a container's devices (docs/designs.md).
 *
 * - `type1`: the legacy container (VFIO_IOMMU_DIRTY_PAGES). No device log is consulted.
 * - `aggregated`: drivers report their dirty pages into a bitmap of the container; a device can opt out.
 * - `iterating`: one call and no shared state: the kernel iterates over all trackers. Nobody can opt out.
 */
export type ContainerDesign = "type1" | "aggregated" | "iterating";

/** A device in a container. */
export interface ContainerMember {
  readonly device: AttachedDevice;
  /** The tracker that is switched on; null: none, so all mapped memory counts as dirty. */
  readonly tracker: "iommu" | "device" | "pinned" | null;
  /** The HWPT or emulated IOMMU behind the tracker `iommu`. */
  readonly domain: { readonly iommufd: Iommufd; readonly id: ObjectId } | null;
  /** Bytes per bit of the device's own log; null: the smallest granule that it has. */
  readonly granule: number | null;
  /** True: the device has no tracker and must not count, because the operator suspends it. Only `aggregated` can honour this. */
  readonly optOut: boolean;
}

/** The dirty tracking of a whole container. The kernel merges the reports and drops their origin. Disposing closes it. */
export interface ContainerTracking extends AsyncDisposable {
  /** True: some device makes every read report all mapped memory. */
  readonly reportsEverything: boolean;
  /** `quiesced` if one of the logs can be read only then, because a call reads all logs or none. Known once started. */
  readonly readableWhen: "always" | "quiesced";
  /** Switches all trackers on. @throws UapiError or DirtmapError; no tracker is on then */
  start(): Promise<void>;
  /**
   * Reads and clears the dirty bits of one whole mapped area, and adds them to `into`. Bit 0 of `into` is `iova`, and its
   * granule is 4096 bytes, the only one that type1 takes. Resolves when all DMA whose bits were cleared has landed.
   * @param query one whole mapped area; `length` in bytes
   * @throws UapiError; it is unknown then which bits were cleared
   */
  getBitmap(query: { iova: Iova; length: bigint; into: DirtyBitmap }): Promise<void>;
  /** Switches all trackers off. */
  stop(): Promise<void>;
}

/** The container designs that a machine's kernel has. */
export interface KernelDesigns {
  /**
   * Opens the tracking of a container.
   * @param args.mapped the areas that are mapped for DMA and writeable, each as it was mapped
   * @throws UapiError EOPNOTSUPP for a design that the kernel lacks
   */
  openContainer(args: {
    design: ContainerDesign;
    members: readonly ContainerMember[];
    mapped: readonly IovaStretch[];
  }): Promise<ContainerTracking>;
}
