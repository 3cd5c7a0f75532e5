import type { RamBitmap } from "../bitmap/ram-bitmap.js";
import type { TrackerChoice } from "./choice.js";
import type { Ledger, OwnerCounts } from "./ledger.js";

/** What one read of all trackers found. The bitmaps are the reader's: they are valid until the next read. */
export interface DirtyRead {
  /** The union of all trackers. */
  readonly dirty: RamBitmap;
  /**
   * The part of {@link dirty} that every read will name again, because nothing tracks who may write it; null: none.
   * A source may leave it out of a round as long as a later read, at the latest the last one, names it.
   */
  readonly always: RamBitmap | null;
  /** Per owner, with the ledger's keys. Owners whose log can't be read yet are absent. */
  readonly byOwner: Readonly<Record<string, OwnerCounts>>;
  /** Per owner, with the ledger's keys, the pages behind {@link byOwner}'s counts. */
  readonly pagesByOwner: ReadonlyMap<string, RamBitmap>;
  /** Owners whose log can be read only once they are quiesced, and was not: what they wrote is not in {@link dirty}. */
  readonly unread: readonly string[];
  /** Trackers that failed in this read: all that they cover counts as dirty, and their tracking was restarted. */
  readonly failures: readonly { readonly owner: string; readonly error: Error }[];
  /** Milliseconds that the read took as a whole. */
  readonly ms: number;
}

/** Where a migration gets its dirty pages from, whatever the design behind it. */
export interface DirtySource extends AsyncDisposable {
  /** What is in force, per device: the design may overrule what was chosen, and says so in the reason. */
  readonly choices: readonly TrackerChoice[];
  readonly ledger: Ledger;
  /** Per device, bytes per dirty bit as found while tracking ran; null: no bits, or tracking never started. */
  granuleOf(device: string): number | null;
  /**
   * Switches all trackers on. When it resolves the first byte may be copied.
   * @throws DirtmapError; then none is on
   */
  start(signal?: AbortSignal): Promise<void>;
  /**
   * Reads and clears all trackers. DMA whose bits were cleared has landed at resolution: copying may start.
   * @param quiesced every device and every vCPU is stopped (STOP or STOP_COPY; RUNNING_P2P is not enough, since a
   * device may have stopped only its P2P DMA there)
   * @param final nothing will be read after this: a tracker that fails is not restarted
   * @throws DirtmapError `TRACKER_LOST` where a failed tracker could not be restarted: the migration has to end, with
   * the source running
   */
  read(args: { quiesced: boolean; final?: boolean }): Promise<DirtyRead>;
}
