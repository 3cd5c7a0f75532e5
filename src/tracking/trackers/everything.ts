import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { deviceOwner } from "../owner.js";
import type { DirtyTracker, TrackedRange, TrackingSession } from "../tracker.js";

/** No source of dirty bits: all that the device may write counts as dirty, at every read. */
export function everythingTracker(device: string): DirtyTracker {
  return {
    kind: "everything",
    owner: deviceOwner(device),
    start: async ({ signal }) => {
      signal?.throwIfAborted();
      return new EverythingSession();
    },
  };
}

class EverythingSession implements TrackingSession {
  readonly kind = "everything";
  readonly granule = PAGE_SIZE;
  readonly readableWhen = "always";
  readonly namesAll = true;

  plan(areas: readonly TrackedRange[]) {
    return { reads: areas, uncovered: [] };
  }

  async readAndClear(range: TrackedRange): Promise<DirtyBitmap> {
    const all = new DirtyBitmap({ ...range, granule: PAGE_SIZE });
    all.setAll();
    return all;
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
