import { SharedLog } from "../../bitmap/shared-log.js";
import type { DmaFault, DmaPort } from "../../devices/model.js";
import type { PostedTracker } from "../../iommufd/emulated-iommu.js";
import type { Port } from "../../iommufd/system-iommu.js";
import { PAGE_SHIFT, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { Copier } from "../../memory/copier.js";
import { InFlight } from "../../memory/in-flight.js";
import { PortCounters } from "../iommu/port-counters.js";
import { FRAMES_PER_ARENA, type PhysicalArena, PhysicalMemory } from "../physical-memory.js";

/** What a device thread is posted for an mdev's port. */
export interface PinWiring {
  readonly port: Port;
  readonly inFlight: Int32Array<SharedArrayBuffer>;
  readonly physical: readonly PhysicalArena[];
  readonly counters: Float64Array<SharedArrayBuffer>;
}

/** Pages that were pinned, and the frames behind them: page + i is frame + i. */
export interface PinnedRun {
  readonly page: PageNumber;
  readonly frame: number;
  readonly pages: number;
}

/**
 * An mdev's way to memory, on its thread: it reaches the pages that are in its table of pins, and no others. There is no
 * page table whose dirty bits could tell what it wrote: that is what its pins, or the shared tracker, are for.
 *
 * Each DMA is bracketed by the port's in-flight words, and marks the shared tracker after the store.
 */
export class PinPort implements DmaPort {
  readonly port: Port;
  readonly counters: PortCounters;
  readonly #inFlight: InFlight;
  readonly #memories: readonly Uint8Array<SharedArrayBuffer>[];
  readonly #frames = new Map<PageNumber, number>();
  readonly #copier = new Copier();
  readonly #beforeStore: ((page: PageNumber) => void) | undefined;
  #tracker: SharedLog | null = null;
  #trackerFirst: PageNumber = 0;

  /** @param beforeStore a test's place to hold a DMA up, between translation and store */
  constructor(wiring: PinWiring, beforeStore?: (page: PageNumber) => void) {
    this.port = wiring.port;
    this.counters = new PortCounters(wiring.counters);
    this.#inFlight = new InFlight(wiring.inFlight);
    this.#memories = PhysicalMemory.open(wiring.physical).arenas.map(({ u8 }) => u8);
    this.#beforeStore = beforeStore;
  }

  /** Marks this tracker from the next DMA on; null: none. */
  setTracker(tracker: PostedTracker | null): void {
    this.#tracker = tracker === null ? null : SharedLog.open(tracker.memory, tracker.bits);
    this.#trackerFirst = tracker?.firstPage ?? 0;
  }

  /** Pages were pinned. */
  add({ page, frame, pages }: PinnedRun): void {
    for (let i = 0; i < pages; i++) this.#frames.set(page + i, frame + i);
  }

  /** Pages are about to be unpinned: no DMA reaches them from here on. */
  drop(page: PageNumber, pages: number): void {
    for (let i = 0; i < pages; i++) this.#frames.delete(page + i);
  }

  write(page: PageNumber, offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    const frame = this.#frames.get(page);
    if (frame === undefined) return this.#refuse();
    this.#inFlight.begin(this.port);
    this.#beforeStore?.(page);
    this.#copier.copy(this.#memoryOf(frame), offsetOf(frame) + offset, source, from, bytes);
    const tracker = this.#tracker;
    if (tracker !== null) {
      const bit = page - this.#trackerFirst;
      if (bit >= 0 && bit < tracker.bits) tracker.mark(bit);
    }
    this.#inFlight.end(this.port);
    this.counters.countWrite(bytes);
    return null;
  }

  read(page: PageNumber, offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    const frame = this.#frames.get(page);
    if (frame === undefined) return this.#refuse();
    this.#inFlight.begin(this.port);
    this.#copier.copy(target, to, this.#memoryOf(frame), offsetOf(frame) + offset, bytes);
    this.#inFlight.end(this.port);
    this.counters.countRead(bytes);
    return null;
  }

  #refuse(): DmaFault {
    this.counters.countFault();
    return "not-pinned";
  }

  #memoryOf(frame: number): Uint8Array<SharedArrayBuffer> {
    return this.#memories[Math.floor(frame / FRAMES_PER_ARENA)];
  }
}

function offsetOf(frame: number): number {
  return (frame % FRAMES_PER_ARENA) * 2 ** PAGE_SHIFT;
}

/** The runs of frames behind a pinned stretch, from the spans that an access answered. */
export function pinnedRuns(
  page: PageNumber,
  spans: readonly { readonly frame: number; readonly bytes: number }[],
): PinnedRun[] {
  let next = page;
  return spans.map(({ frame, bytes }) => {
    const run = { page: next, frame, pages: bytes / PAGE_SIZE };
    next += run.pages;
    return run;
  });
}
