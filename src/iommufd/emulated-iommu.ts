import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { SharedLog } from "../bitmap/shared-log.js";
import type { BitmapQuery } from "../host/host.js";
import { type Call, refuse } from "../host/iommufd-checks.js";
import { iovaOf, PAGE_SIZE, type PageNumber } from "../memory/address.js";
import type { InFlight } from "../memory/in-flight.js";
import type { Ioas } from "./ioas.js";
import { IommufdObject } from "./objects.js";
import { pagesOf } from "./pin-log.js";
import type { Port } from "./system-iommu.js";

/** The shared tracker as a device thread opens it: `SharedLog.open(memory, bits)`, bit 0 for `firstPage`. */
export interface PostedTracker {
  readonly memory: WebAssembly.Memory;
  readonly bits: number;
  /** The IOVA page of bit 0. A page outside has no bit and needs none: it counts as dirty anyway. */
  readonly firstPage: PageNumber;
}

/** An mdev whose hardware can mark a tracker that it shares with others. */
export interface SharedTrackerPort {
  /**
   * From its resolution on, the device marks each page in this tracker after it has stored its data and before its DMA
   * ends (InFlight); with null it marks none.
   */
  setTracker(tracker: PostedTracker | null): Promise<void>;
}

/** What a SharedLog holds: 16 TiB of IOVAs. */
const MAX_PAGES = 2 ** 32;

/**
 * The object that holds a dirty tracker shared by the mdevs attached to it: the one place where trackers share state.
 * SET_DIRTY_TRACKING and GET_DIRTY_BITMAP work on it as on an HWPT, but for NO_CLEAR: it has one reader, and who wants
 * to look asks that reader.
 *
 * The log spans the IOAS's areas as they are when tracking is switched on. Areas mapped later outside that span count
 * as dirty as a whole, until tracking is switched on anew.
 */
export class EmulatedIommuObject extends IommufdObject {
  readonly ioas: Ioas;
  readonly #inFlight: InFlight;
  readonly #members = new Map<Port, SharedTrackerPort>();
  #log: SharedLog | null = null;
  #firstPage: PageNumber = 0;

  constructor(ioas: Ioas, inFlight: InFlight) {
    super();
    this.ioas = ioas;
    this.#inFlight = inFlight;
    ioas.users++;
  }

  /** An mdev attaches; it inherits tracking that is on. */
  async join(port: Port, member: SharedTrackerPort): Promise<void> {
    this.#members.set(port, member);
    this.users++;
    await member.setTracker(this.#posted());
  }

  /** An mdev detaches; who calls gives it another tracker, or none. What it marked stays to be read. */
  leave(port: Port): void {
    if (this.#members.delete(port)) this.users--;
  }

  /** Switching on, also where it is on, begins with an empty log that spans all areas. @throws UapiError ENOMEM */
  async setDirtyTracking(on: boolean, call: Call): Promise<void> {
    await this.ioas.lock.write(async () => {
      this.#log = on ? this.#createLog(call) : null;
      await Promise.all([...this.#members.values()].map((member) => member.setTracker(this.#posted())));
    });
  }

  /** Reads and clears up to the first hole, then waits until every DMA whose mark was taken has landed. */
  async readDirty(query: BitmapQuery, call: Call): Promise<void> {
    await this.ioas.lock.read(async () => {
      const log = this.#log;
      if (log === null) refuse("EINVAL", call, "switch dirty tracking on first");
      const { parts } = this.ioas.contiguous(query.iova, query.iova + query.length - 1n);
      for (const { start, last } of parts) this.#take(log, start, last - start + 1n, query.into);
      await this.#inFlight.drain(this.#members.keys());
    });
  }

  async destroy(): Promise<void> {
    this.#log = null;
    this.ioas.users--;
  }

  #createLog(call: Call): SharedLog {
    const areas = [...this.ioas.areas()];
    const first = areas.at(0);
    const last = areas.at(-1);
    const span =
      first === undefined || last === undefined
        ? { firstPage: 0, pages: 1 }
        : pagesOf(first.start, last.last - first.start + 1n);
    if (span.pages > MAX_PAGES)
      refuse("ENOMEM", call, "map closer together: the log spans the lowest to the highest IOVA");
    this.#firstPage = span.firstPage;
    return SharedLog.create(span.pages);
  }

  #posted(): PostedTracker | null {
    if (this.#log === null) return null;
    return { memory: this.#log.arena.memory, bits: this.#log.bits, firstPage: this.#firstPage };
  }

  /** Moves the bits of a mapped range from the log to a caller's bitmap; what the log doesn't span is dirty. */
  #take(log: SharedLog, iova: bigint, length: bigint, into: DirtyBitmap): void {
    const { firstPage, pages } = pagesOf(iova, length);
    const range = new DirtyBitmap({ iova: iovaOf(firstPage), length: BigInt(pages * PAGE_SIZE), granule: PAGE_SIZE });
    const from = Math.max(firstPage, this.#firstPage);
    const to = Math.min(firstPage + pages, this.#firstPage + log.bits);
    if (from < to) {
      log.readAndClear(from - this.#firstPage, to - from, range.words, from - firstPage);
      range.setRange(0, from - firstPage);
      range.setRange(to - firstPage, firstPage + pages - to);
    } else {
      range.setAll();
    }
    into.or(range);
  }
}
