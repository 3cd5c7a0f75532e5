import type { RamBitmap } from "../bitmap/ram-bitmap.js";
import type { TrackerChoice } from "./choice.js";
import type { Ledger, OwnerCounts } from "./ledger.js";

/** The result of one read of all trackers. The bitmaps are valid until the next read, which uses them again. */
export interface DirtyRead {
  /** The union of all trackers. */
  readonly dirty: RamBitmap;
  /**
   * The part of {@link dirty} that every read names again, because the devices that may write it have no tracker; null: none.
   * A migration may leave it out of a round if it sends the pages after a later read, at the latest the last one.
   */
  readonly always: RamBitmap | null;
  /** Counts per owner, by the ledger's keys. Owners whose log can't be read yet are absent. */
  readonly byOwner: Readonly<Record<string, OwnerCounts>>;
  /** The pages behind {@link byOwner}'s counts, by the same keys. */
  readonly pagesByOwner: ReadonlyMap<string, RamBitmap>;
  /** Owners whose log can be read only once they are quiesced. It was not read, and {@link dirty} lacks their writes. */
  readonly unread: readonly string[];
  /** Trackers that failed in this read. All memory that they cover counts as dirty, and their tracking was restarted. */
  readonly failures: readonly { readonly owner: string; readonly error: Error }[];
  /** Milliseconds that the read took as a whole. */
  readonly ms: number;
}

/** The dirty pages of a machine, from any design. A migration and `watch` read from it. */
export interface DirtySource extends AsyncDisposable {
  /** The choices in force, per device. If the design overrules a choice, the reason says so. */
  readonly choices: readonly TrackerChoice[];
  readonly ledger: Ledger;
  /** Returns a device's bytes per dirty bit, as found while tracking ran; null: no bits, or tracking never started. */
  granuleOf(device: string): number | null;
  /**
   * Switches all trackers on. Once it has resolved, copying may begin.
   * @throws DirtmapError; no tracker is on then
   */
  start(signal?: AbortSignal): Promise<void>;
  /**
   * Reads and clears all trackers. Resolves when all DMA whose bits were cleared has landed, so that copying may begin.
   * @param quiesced true if every device and every vCPU is stopped (STOP or STOP_COPY; RUNNING_P2P is not enough, because a
   * device may have stopped only its P2P DMA there)
   * @param final true if no read follows: a tracker that fails is not restarted
   * @throws DirtmapError `TRACKER_LOST` if a failed tracker could not be restarted. The migration must end then, with the source
   * running
   */
  read(args: { quiesced: boolean; final?: boolean }): Promise<DirtyRead>;
}
