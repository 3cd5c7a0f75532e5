import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { IovaStretch } from "../bitmap/ranges.js";
import type { Owner } from "./owner.js";

/** The sources of dirty bits. */
export const TRACKER_KINDS = ["iommu", "device", "pinned", "cpu", "everything"] as const;
/** A source of dirty bits. */
export type TrackerKind = (typeof TRACKER_KINDS)[number];

/** A stretch of IOVAs; one that is mapped as a whole, where a tracker is asked about it. */
export type TrackedRange = IovaStretch;

/** One source of dirty bits. It shares nothing with others: only the reader iterates over all and forms the union. */
export interface DirtyTracker {
  /** `container`: one of the rival designs, in which the kernel merges what its trackers say. */
  readonly kind: TrackerKind | "container";
  readonly owner: Owner;
  /**
   * Switches tracking on. From its resolution on, each write inside the ranges is reported by a later read.
   * @param ranges mapped areas, each as it was mapped, sorted, at least one
   * @param granule bytes per bit that is asked for; the session tells which it became
   * @throws UapiError or DirtmapError (`TRACKER_BUSY` where somebody reads this tracker already); then nothing is left
   * switched on
   */
  start(args: { ranges: readonly TrackedRange[]; granule?: number; signal?: AbortSignal }): Promise<TrackingSession>;
}

/** Which stretches a reader asks a session for, to learn of every write to what is mapped. */
export interface ReadPlan {
  /** Each is asked for whole. They may reach beyond what is mapped; what lies there is filtered when merged. */
  readonly reads: readonly TrackedRange[];
  /** Mapped areas that the session can't speak of: all of them counts as dirty until tracking is restarted. */
  readonly uncovered: readonly TrackedRange[];
}

/** Tracking that is on. Disposing switches it off. */
export interface TrackingSession extends AsyncDisposable {
  readonly kind: TrackerKind | "container";
  /** Bytes per bit, known once tracking runs; for `iommu`, the largest leaf found, once it was read. */
  readonly granule: number;
  /** `quiesced`: read only when the owner does no DMA. */
  readonly readableWhen: "always" | "quiesced";
  /** True: there are no bits behind it, every read names all that the owner may write. */
  readonly namesAll: boolean;
  /**
   * What to read while `areas` are mapped (each as it was mapped). Reading other stretches loses bits: an IOMMU cleans
   * whole leaves and stops at holes, a device cleans whole granules.
   */
  plan(areas: readonly TrackedRange[]): ReadPlan;
  /**
   * The bits of one stretch of {@link plan}, cleared at the source. DMA whose bits were cleared has landed at resolution.
   * @throws UapiError or DirtmapError: then all that the session covers is dirty, and it answers no further read
   */
  readAndClear(range: TrackedRange): Promise<DirtyBitmap>;
  /** Looks without clearing; absent where the source can't. */
  peek?(range: TrackedRange): Promise<DirtyBitmap>;
}
