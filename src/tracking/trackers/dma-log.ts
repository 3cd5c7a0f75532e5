import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { contains, overlap } from "../../bitmap/ranges.js";
import type { VfioDevice } from "../../host/host.js";
import { type RunningDmaLog, startDmaLog } from "../../host/running-dma-log.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { claimTracker } from "../claims.js";
import { deviceOwner } from "../owner.js";
import type { DirtyTracker, ReadPlan, TrackedRange, TrackingSession } from "../tracker.js";
import { SessionState, startSession } from "./session.js";

/*
 * VFIO_DEVICE_FEATURE_DMA_LOGGING_START, _REPORT and _STOP: what the trackers `device` and `pinned` have in common.
 *
 * The device cleans whole granules, so a granule is read once, as part of the logged range that holds it, however many
 * mapped areas it touches.
 */

export function dmaLogTracker(vfio: VfioDevice, kind: "device" | "pinned", id: string): DirtyTracker {
  return {
    kind,
    owner: deviceOwner(id),
    start: async ({ ranges, granule, signal }) => {
      const claim = claimTracker(vfio, "DMA log", id);
      return startSession(claim, signal, async () => {
        const log = await startDmaLog(vfio, ranges, granule);
        const state = new SessionState(id, claim, () => vfio.stopDmaLogging());
        return new DmaLogSession({ vfio, kind, log, state });
      });
    },
  };
}

interface DmaLogSessionOptions {
  readonly vfio: VfioDevice;
  readonly kind: "device" | "pinned";
  readonly log: RunningDmaLog;
  readonly state: SessionState;
}

class DmaLogSession implements TrackingSession {
  readonly kind: "device" | "pinned";
  readonly namesAll = false;
  readonly #vfio: VfioDevice;
  readonly #log: RunningDmaLog;
  readonly #state: SessionState;

  constructor({ vfio, kind, log, state }: DmaLogSessionOptions) {
    this.kind = kind;
    this.#vfio = vfio;
    this.#log = log;
    this.#state = state;
  }

  get granule(): number {
    return this.#log.granule;
  }

  get readableWhen(): "always" | "quiesced" {
    return this.#log.readableWhen;
  }

  plan(areas: readonly TrackedRange[]): ReadPlan {
    const { logged } = this.#log;
    return {
      reads: logged.filter((range) => areas.some((area) => overlap(range, area))),
      uncovered: areas.filter((area) => !logged.some((range) => contains(range, area))),
    };
  }

  readAndClear(range: TrackedRange): Promise<DirtyBitmap> {
    return this.#state.reading(range, async () => {
      // REPORT takes no page size below 4 KiB.
      const pageSize = Math.max(this.granule, PAGE_SIZE);
      const into = new DirtyBitmap({ ...range, granule: pageSize });
      await this.#vfio.reportDmaLogging({ ...range, pageSize, into });
      return into;
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#state.close();
  }
}
