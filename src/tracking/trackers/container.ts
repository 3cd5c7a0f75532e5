import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { ContainerTracking } from "../../host/designs.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { claimTracker } from "../claims.js";
import { CONTAINER_OWNER } from "../owner.js";
import type { DirtyTracker, TrackedRange, TrackingSession } from "../tracker.js";
import { SessionState, startSession } from "./session.js";

/** A container whose kernel merges the trackers of its devices: one owner, whoever wrote. */
export function containerTracker(container: ContainerTracking): DirtyTracker {
  return {
    kind: "container",
    owner: CONTAINER_OWNER,
    start: async ({ signal }) => {
      const claim = claimTracker(container, "dirty pages", "container");
      return startSession(claim, signal, async () => {
        await container.start();
        return new ContainerSession(container, new SessionState("container", claim, () => container.stop()));
      });
    },
  };
}

class ContainerSession implements TrackingSession {
  readonly kind = "container";
  readonly granule = PAGE_SIZE;
  readonly readableWhen: "always" | "quiesced";
  readonly namesAll: boolean;
  readonly #container: ContainerTracking;
  readonly #state: SessionState;

  constructor(container: ContainerTracking, state: SessionState) {
    this.namesAll = container.reportsEverything;
    this.readableWhen = container.readableWhen;
    this.#container = container;
    this.#state = state;
  }

  plan(areas: readonly TrackedRange[]) {
    return { reads: areas, uncovered: [] };
  }

  readAndClear(range: TrackedRange): Promise<DirtyBitmap> {
    return this.#state.reading(range, async () => {
      const into = new DirtyBitmap({ ...range, granule: PAGE_SIZE });
      await this.#container.getBitmap({ ...range, into });
      return into;
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#state.close();
  }
}
