import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { Vcpus } from "../../host/host.js";
import { PAGE_SIZE, pageOf } from "../../memory/address.js";
import { claimTracker } from "../claims.js";
import { CPU_OWNER } from "../owner.js";
import type { DirtyTracker, TrackedRange, TrackingSession } from "../tracker.js";
import { SessionState, startSession } from "./session.js";

/** What the vCPUs write: KVM's dirty log. Its addresses are guest-physical. */
export function cpuTracker(vcpus: Vcpus): DirtyTracker {
  return {
    kind: "cpu",
    owner: CPU_OWNER,
    start: async ({ signal }) => {
      const claim = claimTracker(vcpus, "dirty log", "cpu");
      return startSession(claim, signal, async () => {
        await vcpus.startDirtyLog();
        return new CpuSession(vcpus, new SessionState("cpu", claim, () => vcpus.stopDirtyLog()));
      });
    },
  };
}

class CpuSession implements TrackingSession {
  readonly kind = "cpu";
  readonly granule = PAGE_SIZE;
  readonly readableWhen = "always";
  readonly namesAll = false;
  readonly #vcpus: Vcpus;
  readonly #state: SessionState;

  constructor(vcpus: Vcpus, state: SessionState) {
    this.#vcpus = vcpus;
    this.#state = state;
  }

  plan(areas: readonly TrackedRange[]) {
    return { reads: areas, uncovered: [] };
  }

  readAndClear(range: TrackedRange): Promise<DirtyBitmap> {
    return this.#state.reading(range, async () => {
      const into = new DirtyBitmap({ ...range, granule: PAGE_SIZE });
      await this.#vcpus.readAndClearDirtyLog({ firstPage: pageOf(range.iova), pages: into.bits, into });
      return into;
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#state.close();
  }
}
