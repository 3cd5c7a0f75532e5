import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { type IovaStretch, contains, loggingRanges } from "../bitmap/ranges.js";
import { DirtmapError, UsageError } from "../errors.js";
import { PAGE_SIZE } from "../memory/address.js";
import { type ControlledDevice, countersOf } from "./guest-devices.js";

/**
 * How the pages that a device writes become known to the QEMU that moves the memory.
 * - `messages`: the device's writes go by messages while the migration lasts, so that QEMU does each itself and tracks it.
 * - `device`: the device's log has them; while the machine is paused, QEMU is made to write each logged page over itself.
 */
export type GuestTracker = "messages" | "device";

/** What the guest pays least for, if nobody says otherwise. */
export const DEFAULT_TRACKER: GuestTracker = "messages";

const GRANULE = PAGE_SIZE;

/** What a device has dirtied. */
export interface DeviceShare {
  readonly device: string;
  readonly tracker: GuestTracker;
  /** Pages that it wrote at least once since tracking began; null of a device without a log of its own. */
  readonly pages: number | null;
  /** Of these, written over themselves in the pause. */
  readonly pagesRewritten: number;
  /** Milliseconds of the pause that this took. */
  readonly rewriteMs: number;
}

/** The tracking of one device, from before QEMU's first look at memory until the device is stopped. */
export class DeviceTracking {
  readonly #device: ControlledDevice;
  readonly #tracker: GuestTracker;
  /** What is logged; empty: nothing is. */
  #ranges: readonly IovaStretch[] = [];

  private constructor(device: ControlledDevice, tracker: GuestTracker) {
    this.#device = device;
    this.#tracker = tracker;
  }

  /** @throws UsageError `NO_LOG` for `device` of one without a log, `TOO_SCATTERED` */
  static async start(device: ControlledDevice, tracker: GuestTracker): Promise<DeviceTracking> {
    const tracking = new DeviceTracking(device, tracker);
    try {
      await tracking.#start();
      return tracking;
    } catch (error) {
      await tracking.stop().catch(() => {});
      throw error;
    }
  }

  async #start(): Promise<void> {
    const { vfio, id } = this.#device;
    const { dmaLogging } = await countersOf(vfio);
    if (this.#tracker === "messages") await vfio.switchWritePath("messages");
    else if (dmaLogging === null) {
      throw new UsageError(`'${id}' has no log of its own`, {
        code: "NO_LOG",
        remedy: `track it by messages: --tracker ${id}=messages`,
      });
    }
    // By messages QEMU needs no log: it only tells what share of the dirty memory is this device's.
    const mapped = await this.#mapped();
    if (dmaLogging === null || (mapped === null && this.#tracker === "messages")) return;
    const ranges = loggingRanges(mapped ?? this.#tooScattered(), GRANULE, dmaLogging.maxRanges);
    if (ranges.length === 0) return;
    await vfio.startDmaLogging({ pageSize: GRANULE, ranges });
    this.#ranges = ranges;
  }

  /**
   * What the device has written, made known to QEMU. The device is stopped, and the machine is paused.
   * @param afterRead where tests reach in: a bit cleared here is a lost write
   */
  async finish(afterRead: (device: string, dirty: DirtyBitmap) => void = () => {}): Promise<DeviceShare> {
    const { vfio, id } = this.#device;
    const from = performance.now();
    let pages = 0;
    let rewritten = 0;
    for (const { iova, length } of this.#ranges) {
      const into = new DirtyBitmap({ iova, length, granule: GRANULE });
      await vfio.reportDmaLogging({ iova, length, pageSize: GRANULE, into });
      afterRead(id, into);
      pages += into.count();
      if (this.#tracker === "messages") continue;
      const runs: [number, number][] = [];
      into.forEachRun((first, count) => runs.push([first, count]));
      for (const [first, count] of runs) {
        await vfio.rewriteClientMemory(iova + BigInt(first * GRANULE), count * GRANULE);
        rewritten += count;
      }
    }
    if (this.#tracker === "device") rewritten += await this.#rewriteUnlogged();
    const share = { device: id, tracker: this.#tracker, pagesRewritten: rewritten };
    return { ...share, pages: this.#ranges.length === 0 ? null : pages, rewriteMs: performance.now() - from };
  }

  /** Everything as it was. */
  async stop(): Promise<void> {
    const { vfio } = this.#device;
    const logged = this.#ranges.length > 0;
    this.#ranges = [];
    if (logged) await vfio.stopDmaLogging();
    if (this.#tracker === "messages") await vfio.switchWritePath("direct");
  }

  /** Memory that was mapped after the log had begun counts as written. */
  async #rewriteUnlogged(): Promise<number> {
    let pages = 0;
    for (const stretch of (await this.#mapped()) ?? this.#tooScattered()) {
      if (this.#ranges.some((range) => contains(range, stretch))) continue;
      const bytes = Number(stretch.length);
      await this.#device.vfio.rewriteClientMemory(stretch.iova, bytes);
      pages += bytes / PAGE_SIZE;
    }
    return pages;
  }

  /** What the device can write; null where that is in too many places to be told. */
  async #mapped(): Promise<IovaStretch[] | null> {
    const { mapped = null } = await countersOf(this.#device.vfio);
    return mapped?.map(({ iova, bytes }) => ({ iova, length: BigInt(bytes) })) ?? null;
  }

  #tooScattered(): never {
    const { id } = this.#device;
    throw new DirtmapError(`the memory of '${id}' is in more places than its server tells`, {
      code: "TOO_SCATTERED",
      remedy: `track it by messages: --tracker ${id}=messages`,
    });
  }
}
