import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { PAGE_SIZE } from "../../memory/address.js";
import type { DirtyTracker, TrackedRange, TrackingSession } from "../tracker.js";

/** No source of dirty bits: all that the device may write counts as dirty, at every read. */
export function everythingTracker(owner: string): DirtyTracker {
  return {
    kind: "everything",
    owner,
    start: async ({ signal }) => {
      signal?.throwIfAborted();
      return new EverythingSession(owner);
    },
  };
}

class EverythingSession implements TrackingSession {
  readonly kind = "everything";
  readonly granule = PAGE_SIZE;
  readonly readableWhen = "always";
  readonly namesAll = true;
  readonly owner: string;

  constructor(owner: string) {
    this.owner = owner;
  }

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
