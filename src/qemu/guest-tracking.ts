import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { contains, type IovaStretch, loggingRanges } from "../bitmap/ranges.js";
import { DirtmapError, UsageError } from "../errors.js";
import { PAGE_SIZE } from "../memory/address.js";
import { type ControlledDevice, countersOf } from "./guest-devices.js";

/**
 * How the pages that a device writes become known to the QEMU that moves the memory.
 * - `messages`: the device's writes go by messages while the migration lasts, so that QEMU does each itself and tracks it.
 * - `device`: the device's log has them; while the machine is paused, QEMU is made to write each logged page over itself.
 */
export type GuestTracker = "messages" | "device";

/** What the guest pays least for, if nobody says otherwise and the device's server can. */
export const DEFAULT_TRACKER: GuestTracker = "messages";

/** Bytes per bit of a device's log: QEMU tracks by pages. */
export const GRANULE = PAGE_SIZE;

/** How a device is tracked. @param trackers that are asked for, by the devices' names */
export function trackerFor(
  { id, byMessages }: Pick<ControlledDevice, "id" | "byMessages">,
  trackers: Readonly<Record<string, GuestTracker>> = {},
): GuestTracker {
  if (Object.hasOwn(trackers, id)) return trackers[id];
  return byMessages ? DEFAULT_TRACKER : "device";
}

/** How reports call it: by messages it is QEMU that tracks. */
export function reportedTracking(tracker: GuestTracker) {
  return tracker === "messages"
    ? ({ tracker: "vmm", granule: null } as const)
    : ({ tracker, granule: GRANULE } as const);
}

/** Runs of pages that the server has been asked to rewrite, and has not. */
const REWRITES_UNDER_WAY = 32;

/** What a device has dirtied. */
export interface DeviceShare {
  readonly device: string;
  readonly tracker: GuestTracker;
  /** Pages that it wrote at least once since tracking began; null of a device without a log of its own. */
  readonly pages: number | null;
  /** Of these, written over themselves in the pause. */
  readonly pagesRewritten: number;
  /** Milliseconds of the pause that this took. */
  readonly ms: number;
}

/** The tracking of one device, from before QEMU's first look at memory until the device is stopped. */
export class DeviceTracking {
  readonly #device: ControlledDevice;
  readonly tracker: GuestTracker;
  /** What is logged; empty: nothing is. */
  #ranges: readonly IovaStretch[] = [];

  private constructor(device: ControlledDevice, tracker: GuestTracker) {
    this.#device = device;
    this.tracker = tracker;
  }

  /** @throws UsageError `NO_LOG` for `device` of one without a log, `TOO_SCATTERED` */
  static async start(device: ControlledDevice, tracker: GuestTracker): Promise<DeviceTracking> {
    const tracking = new DeviceTracking(device, tracker);
    try {
      await tracking.#start();
      return tracking;
    } catch (error) {
      await tracking.stop();
      throw error;
    }
  }

  async #start(): Promise<void> {
    const { vfio, id } = this.#device;
    const { dmaLogging } = await countersOf(vfio);
    if (this.tracker === "messages") await vfio.switchWritePath("messages");
    else if (dmaLogging === null) {
      throw new UsageError(`'${id}' has no log of its own`, {
        code: "NO_LOG",
        remedy: `track it by messages: --tracker ${id}=messages`,
      });
    }
    // By messages QEMU needs no log: it only tells what share of the dirty memory is this device's.
    const mapped = await this.#mapped();
    if (dmaLogging === null || (mapped === null && this.tracker === "messages")) return;
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
    const dirty: IovaStretch[] = [];
    let pages = 0;
    for (const { iova, length } of this.#ranges) {
      const into = new DirtyBitmap({ iova, length, granule: GRANULE });
      await vfio.reportDmaLogging({ iova, length, pageSize: GRANULE, into });
      afterRead(id, into);
      pages += into.count();
      into.forEachRun((first, count) =>
        dirty.push({ iova: iova + BigInt(first * GRANULE), length: BigInt(count * GRANULE) }),
      );
    }
    const pagesRewritten = this.tracker === "device" ? await this.#rewrite(dirty) : 0;
    const share = { device: id, tracker: this.tracker, pagesRewritten };
    return { ...share, pages: this.#ranges.length === 0 ? null : pages, ms: performance.now() - from };
  }

  /** Everything as it was. Never throws: where the server does not do it, the connection ends, and with it all of this. */
  async stop(): Promise<void> {
    const { vfio } = this.#device;
    const logged = this.#ranges.length > 0;
    this.#ranges = [];
    try {
      if (logged) await vfio.stopDmaLogging();
      if (this.tracker === "messages") await vfio.switchWritePath("direct");
    } catch {
      await vfio[Symbol.asyncDispose]();
    }
  }

  /**
   * Has QEMU write what was logged over itself; returns how many pages. Where the device's memory is not what it was when the
   * log began, addresses mean something else by now, and all of it counts as written.
   */
  async #rewrite(dirty: readonly IovaStretch[]): Promise<number> {
    const mapped = (await this.#mapped()) ?? this.#tooScattered();
    const isSame =
      mapped.every((stretch) => this.#ranges.some((range) => contains(range, stretch))) &&
      dirty.every((stretch) => mapped.some((range) => contains(range, stretch)));
    let bytes = 0;
    const runs = isSame ? dirty : mapped;
    // Several are under way, so that the server never waits for the next.
    for (let from = 0; from < runs.length; from += REWRITES_UNDER_WAY) {
      const some = runs.slice(from, from + REWRITES_UNDER_WAY);
      await Promise.all(some.map(({ iova, length }) => this.#device.vfio.rewriteClientMemory(iova, Number(length))));
      for (const { length } of some) bytes += Number(length);
    }
    return bytes / PAGE_SIZE;
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
