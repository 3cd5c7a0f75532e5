import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { Iova } from "../memory/address.js";

/** The sources of dirty bits. */
export const TRACKER_KINDS = ["iommu", "device", "pinned", "cpu", "everything"] as const;
export type TrackerKind = (typeof TRACKER_KINDS)[number];

/** A stretch of IOVAs; one that is mapped as a whole, where a tracker is asked about it. */
export interface TrackedRange {
  readonly iova: Iova;
  readonly length: bigint;
}

/** One source of dirty bits. It shares nothing with others: only the reader iterates over all and forms the union. */
export interface DirtyTracker {
  readonly kind: TrackerKind;
  /** What it tracks, for messages and the ledger: a device's id, several joined by '+', or `cpu`. */
  readonly owner: string;
  /**
   * Switches tracking on. From its resolution on, each write inside the ranges is reported by a later read.
   * @param granule bytes per bit that is asked for; the session tells which it became
   * @throws UapiError or DirtmapError; then nothing is left switched on
   */
  start(args: { ranges: readonly TrackedRange[]; granule?: number; signal?: AbortSignal }): Promise<TrackingSession>;
}

/** Tracking that is on. Disposing switches it off. */
export interface TrackingSession extends AsyncDisposable {
  readonly kind: TrackerKind;
  readonly owner: string;
  /** Bytes per bit, known once tracking runs; for `iommu`, the smallest leaf found once it was read. */
  readonly granule: number;
  /** `quiesced`: read only when the owner does no DMA. */
  readonly readableWhen: "always" | "quiesced";
  /**
   * One bitmap per area, whose bits are cleared at the source. DMA whose bits were cleared has landed at resolution.
   * @throws DirtmapError: then all that it covers is dirty
   */
  readAndClear(range: TrackedRange): Promise<DirtyBitmap>;
  /** Looks without clearing; absent where the source can't. */
  peek?(range: TrackedRange): Promise<DirtyBitmap>;
}
