import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { IovaStretch } from "../bitmap/ranges.js";
import type { Owner } from "./owner.js";

/** The sources of dirty bits. */
export const TRACKER_KINDS = ["iommu", "device", "pinned", "cpu", "everything"] as const;
/** A source of dirty bits. */
export type TrackerKind = (typeof TRACKER_KINDS)[number];

/** A stretch of IOVAs; one that is mapped as a whole, where a tracker is asked about it. */
export type TrackedRange = IovaStretch;

/** One source of dirty bits. It shares nothing with other trackers: the reader iterates over all and forms the union. */
export interface DirtyTracker {
  /** `container`: a design in which the kernel merges the reports of its trackers. */
  readonly kind: TrackerKind | "container";
  readonly owner: Owner;
  /**
   * Switches tracking on. Once it has resolved, a later read reports each write inside the ranges.
   * @param ranges mapped areas, each as it was mapped, sorted, at least one
   * @param granule the bytes per bit to ask for; the session has the actual value
   * @throws UapiError or DirtmapError (`TRACKER_BUSY` if this tracker already has a reader). Nothing is left switched on then
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
  /** Bytes per bit, known once tracking runs. For `iommu` it is the largest leaf found, known after a read. */
  readonly granule: number;
  /** `quiesced`: can be read only while the owner does no DMA. */
  readonly readableWhen: "always" | "quiesced";
  /** True: it has no bits, and every read names all memory that the owner may write. */
  readonly namesAll: boolean;
  /**
   * Returns the ranges to read while `areas` are mapped, each as it was mapped. Reading other ranges loses bits: an IOMMU cleans
   * whole leaves and stops at holes, and a device cleans whole granules.
   */
  plan(areas: readonly TrackedRange[]): ReadPlan;
  /**
   * Returns the bits of one range of {@link plan}, and clears them at the source. Resolves when all DMA whose bits were cleared
   * has landed.
   * @throws UapiError or DirtmapError. All memory that the session covers is dirty then, and it answers no further read
   */
  readAndClear(range: TrackedRange): Promise<DirtyBitmap>;
  /** Returns the bits of a range without clearing them. Absent if the source can't do that. */
  peek?(range: TrackedRange): Promise<DirtyBitmap>;
}
