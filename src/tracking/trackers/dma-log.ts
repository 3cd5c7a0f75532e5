import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { DirtmapError } from "../../errors.js";
import type { DmaLoggingLimits, VfioDevice } from "../../host/host.js";
import { hex, PAGE_SIZE } from "../../memory/address.js";
import { contains, loggingRanges, overlap } from "../areas.js";
import { claimTracker } from "../claims.js";
import type { DirtyTracker, ReadPlan, TrackedRange, TrackingSession } from "../tracker.js";
import { SessionState, startSession } from "./session.js";

/*
 * VFIO_DEVICE_FEATURE_DMA_LOGGING_START, _REPORT and _STOP: what the trackers `device` and `pinned` have in common.
 *
 * The device cleans whole granules, so a granule is read once, as part of the logged range that holds it, however many
 * mapped areas it touches.
 */

/** Ranges that the kernel takes at least: as many as fit in a page (LOG_MAX_RANGES); for a device that doesn't tell. */
const MAX_RANGES = PAGE_SIZE / 16;

export function dmaLogTracker(vfio: VfioDevice, kind: "device" | "pinned"): DirtyTracker {
  const owner = vfio.id;
  return {
    kind,
    owner,
    start: async ({ ranges, granule, signal }) => {
      const claim = claimTracker(vfio, "DMA log", owner);
      return startSession(claim, signal, async () => {
        const limits = await vfio.dmaLoggingLimits();
        const startWith = async (pageSize: number) => {
          const logged = loggingRanges(ranges, pageSize, limits?.maxRanges ?? MAX_RANGES);
          checkReach(owner, logged, limits);
          return { logged, granule: await vfio.startDmaLogging({ pageSize, ranges: logged }) };
        };
        const asked = granule ?? limits?.pageSizes[0] ?? PAGE_SIZE;
        let started = await startWith(asked);
        if (started.granule > asked) {
          // Two ranges may now lie in one of the device's granules, and reading one would clean the other's.
          await vfio.stopDmaLogging();
          started = await startWith(started.granule);
        }
        const state = new SessionState(owner, claim, () => vfio.stopDmaLogging());
        return new DmaLogSession({ vfio, kind, ...started, limits, state });
      });
    },
  };
}

function checkReach(owner: string, logged: readonly TrackedRange[], limits: DmaLoggingLimits | null): void {
  const last = logged[logged.length - 1];
  const end = last.iova + last.length;
  if (limits === null || end <= 1n << BigInt(limits.addressWidth)) return;
  throw new DirtmapError(`the log of ${owner} covers ${limits.addressWidth} bits of IOVA, memory ends at ${hex(end)}`, {
    code: "OUT_OF_REACH",
    attempted: `start the DMA log of ${owner}`,
    remedy: "give the device another tracker",
  });
}

class DmaLogSession implements TrackingSession {
  readonly kind: "device" | "pinned";
  readonly owner: string;
  readonly granule: number;
  readonly readableWhen: "always" | "quiesced";
  readonly namesAll = false;
  readonly #vfio: VfioDevice;
  readonly #logged: readonly TrackedRange[];
  readonly #state: SessionState;

  constructor(args: {
    vfio: VfioDevice;
    kind: "device" | "pinned";
    granule: number;
    logged: readonly TrackedRange[];
    limits: DmaLoggingLimits | null;
    state: SessionState;
  }) {
    this.kind = args.kind;
    this.owner = args.vfio.id;
    this.granule = args.granule;
    this.readableWhen = args.limits?.readableWhen ?? "always";
    this.#vfio = args.vfio;
    this.#logged = args.logged;
    this.#state = args.state;
  }

  plan(areas: readonly TrackedRange[]): ReadPlan {
    return {
      reads: this.#logged.filter((range) => areas.some((area) => overlap(range, area))),
      uncovered: areas.filter((area) => !this.#logged.some((range) => contains(range, area))),
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
