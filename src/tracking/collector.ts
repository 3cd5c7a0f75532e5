import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { contains, overlap } from "../bitmap/ranges.js";
import { DirtmapError, explain } from "../errors.js";
import { hex } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import { settled } from "../settled.js";
import { addArea, addDirty, type MappedArea, writeableAreas } from "./areas.js";
import type { DirtyRead } from "./dirty-source.js";
import { Ledger, type OwnerPages } from "./ledger.js";
import { ownerName } from "./owner.js";
import type { DirtyTracker, TrackedRange, TrackingSession } from "./tracker.js";
import { UndoStack } from "./undo.js";

/** A tracker with what it is to be asked for. */
export interface TrackerRequest {
  readonly tracker: DirtyTracker;
  /** Bytes per bit; null: the tracker's own choice. */
  readonly granule: number | null;
}

/** Seams for tests. */
export interface CollectorHooks {
  /** Called before a tracker is read, with the number of reads before this one. What it throws, the tracker fails with. */
  beforeRead?(owner: string, read: number): void | Promise<void>;
}

/** One tracker of the collector's. `session` is null while tracking is off. */
interface Slot extends TrackerRequest {
  session: TrackingSession | null;
  /** What the current read found. */
  readonly pages: RamBitmap;
  /** What was found between reads (before an unmap), for the next read to name. */
  readonly carried: RamBitmap;
  /** As it was when tracking last ran. */
  foundGranule: number | null;
}

/**
 * The reader: iterates over all trackers, which know nothing of each other, and forms the union.
 *
 * Calls are queued: reads, unmaps and the end never overlap. The areas of the vCPUs' log are guest RAM itself and don't
 * change; those of all others are what is mapped for DMA.
 */
export class Collector implements AsyncDisposable {
  readonly ledger: Ledger;
  readonly #slots: readonly Slot[];
  readonly #ram: readonly MappedArea[];
  readonly #hooks: CollectorHooks;
  readonly #dirty: RamBitmap;
  readonly #always: RamBitmap;
  /** Pages that count as dirty on nobody's account: what an unmap took away while DMA to it went on. */
  readonly #carried: RamBitmap;
  #areas: readonly MappedArea[];
  #queue: Promise<unknown> = Promise.resolve();
  #reads = 0;

  /**
   * @param areas what is mapped for DMA and writeable, sorted by IOVA; default: all RAM that isn't read-only, at its
   * guest-physical addresses
   */
  constructor(
    memory: GuestMemory,
    requests: readonly TrackerRequest[],
    { areas = writeableAreas(memory), hooks = {} }: { areas?: readonly MappedArea[]; hooks?: CollectorHooks } = {},
  ) {
    this.ledger = new Ledger();
    this.#slots = requests.map(({ tracker, granule }) => ({
      tracker,
      granule,
      session: null,
      pages: new RamBitmap(memory),
      carried: new RamBitmap(memory),
      foundGranule: null,
    }));
    this.#ram = writeableAreas(memory);
    this.#areas = areas;
    this.#hooks = hooks;
    this.#dirty = new RamBitmap(memory);
    this.#always = new RamBitmap(memory);
    this.#carried = new RamBitmap(memory);
  }

  /** Bytes per bit that a tracker was found to have; null for one without bits, or that never ran. */
  granuleOf(owner: string): number | null {
    return this.#slots.find(({ tracker }) => ownerName(tracker.owner) === owner)?.foundGranule ?? null;
  }

  /** Switches all trackers on. @throws what a tracker throws; then all are off again */
  start(signal?: AbortSignal): Promise<void> {
    return this.#queued(async () => {
      const undo = new UndoStack();
      for (const slot of this.#slots) {
        try {
          await this.#startSlot(slot, signal);
        } catch (error) {
          await undo.undoBecauseOf(error);
        }
        undo.add(`stop the tracker of ${ownerName(slot.tracker.owner)}`, () => stopSlot(slot));
      }
    });
  }

  /** Reads and clears all trackers; see {@link DirtySource.read}. */
  read({ quiesced, final = false }: { quiesced: boolean; final?: boolean }): Promise<DirtyRead> {
    return this.#queued(async () => {
      const started = performance.now();
      const failures: { owner: string; error: Error }[] = [];
      const entries: OwnerPages[] = [];
      const unread: string[] = [];
      const due = this.#slots.filter(({ session, tracker }) => {
        const readable = quiesced || session?.readableWhen !== "quiesced";
        if (!readable) unread.push(ownerName(tracker.owner));
        return readable;
      });
      const readOne = async (slot: Slot) => {
        const from = performance.now();
        slot.pages.clear();
        const error = await this.#collect(slot, slot.pages, { restart: !final });
        if (error !== null) failures.push({ owner: ownerName(slot.tracker.owner), error });
        slot.pages.or(slot.carried);
        slot.carried.clear();
        entries.push({ owner: slot.tracker.owner, pages: slot.pages, readMs: performance.now() - from });
      };
      // One after the other while the machine runs, so that each one's time is its own; at once where it is stopped and
      // each millisecond is downtime.
      if (quiesced) await settled(due.map(readOne));
      else for (const slot of due) await readOne(slot);
      this.#reads++;

      this.#dirty.clear();
      this.#dirty.or(this.#carried);
      this.#carried.clear();
      this.#always.clear();
      let always = false;
      for (const { session, pages } of due) {
        this.#dirty.or(pages);
        if (session?.namesAll !== true) continue;
        this.#always.or(pages);
        always = true;
      }
      const byOwner = this.ledger.record(entries);
      const pagesByOwner = new Map(entries.map(({ owner, pages }) => [ownerName(owner), pages]));
      const ms = performance.now() - started;
      return { dirty: this.#dirty, always: always ? this.#always : null, byOwner, pagesByOwner, unread, failures, ms };
    });
  }

  /**
   * Carries out an unmap (or the first half of a remap) without losing what was written through the old mapping: reads
   * the trackers against it, then unmaps. Unless DMA to the range is quiesced the whole range counts as dirty, since a
   * device may write between the two.
   * @param range covers whole mapped areas
   * @param unmap takes the mapping away, in every IOAS that has it; resolves when DMA in flight to it has ended
   * @throws DirtmapError `SPLITS_A_MAPPING`; or what `unmap` throws, then the areas count as mapped still
   */
  collectBeforeUnmap(
    range: TrackedRange,
    unmap: () => Promise<void>,
    { quiesced }: { quiesced: boolean },
  ): Promise<void> {
    return this.#queued(async () => {
      const gone = this.#areas.filter((area) => overlap(area, range));
      if (!gone.every((area) => contains(range, area))) {
        throw new DirtmapError(
          `unmapping ${hex(range.length)} bytes at IOVA ${hex(range.iova)} would split a mapping`,
          {
            code: "SPLITS_A_MAPPING",
            remedy: "unmap whole mappings",
          },
        );
      }
      for (const slot of this.#slots) {
        if (slot.tracker.kind === "cpu" || (!quiesced && slot.session?.readableWhen === "quiesced")) continue;
        await this.#collect(slot, slot.carried, { restart: true, only: gone });
      }
      await unmap();
      if (!quiesced) for (const area of gone) addArea(this.#carried, area);
      this.#areas = this.#areas.filter((area) => !gone.includes(area));
    });
  }

  /**
   * Tells of a new mapping. A device log that doesn't reach it counts all of it as dirty, until {@link startOver}.
   * @throws DirtmapError `MAPPED_ALREADY`
   */
  mapped(area: MappedArea): Promise<void> {
    return this.#queued(async () => {
      if (this.#areas.some((other) => overlap(other, area))) {
        throw new DirtmapError(`something is mapped already at IOVA ${hex(area.iova)}`, { code: "MAPPED_ALREADY" });
      }
      this.#areas = [...this.#areas, area].sort((a, b) => (a.iova < b.iova ? -1 : 1));
    });
  }

  /**
   * Restarts one owner's tracking over all that is mapped now. Nothing is lost: where its DMA is quiesced the log is
   * read first, else all that the tracker covers counts as dirty once.
   * @throws DirtmapError `TRACKER_LOST`
   */
  startOver(owner: string, { quiesced }: { quiesced: boolean }): Promise<void> {
    return this.#queued(async () => {
      const slot = this.#slots.find(({ tracker }) => ownerName(tracker.owner) === owner);
      if (slot === undefined) return;
      const failed = quiesced ? await this.#collect(slot, slot.carried, { restart: false }) : null;
      await this.#restart(slot, failed ?? undefined);
      if (!quiesced) this.#addAll(slot, slot.carried);
    });
  }

  /** Switches all trackers off. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#queued(async () => {
      const undo = new UndoStack();
      for (const slot of this.#slots)
        undo.add(`stop the tracker of ${ownerName(slot.tracker.owner)}`, () => stopSlot(slot));
      await undo.undo();
    });
  }

  async #startSlot(slot: Slot, signal?: AbortSignal): Promise<void> {
    slot.session = await slot.tracker.start({
      ranges: this.#areasOf(slot),
      ...(slot.granule === null ? {} : { granule: slot.granule }),
      ...(signal === undefined ? {} : { signal }),
    });
  }

  /**
   * Reads a tracker (the stretches that touch `only`, if given) into `into`. Where it fails, all that it covers is
   * marked, after tracking was restarted: the new session sees what is written from before the marked pages are copied.
   * @returns the tracker's error, or null
   */
  async #collect(
    slot: Slot,
    into: RamBitmap,
    { restart, only }: { restart: boolean; only?: readonly MappedArea[] },
  ): Promise<Error | null> {
    const areas = this.#areasOf(slot);
    try {
      const { session } = slot;
      if (session === null) {
        throw new DirtmapError(`the tracker of ${ownerName(slot.tracker.owner)} was not started`, {
          code: "TRACKER_OFF",
        });
      }
      await this.#hooks.beforeRead?.(ownerName(slot.tracker.owner), this.#reads);
      const { reads, uncovered } = session.plan(areas);
      for (const range of reads) {
        if (only !== undefined && !only.some((area) => overlap(area, range))) continue;
        addDirty(into, await session.readAndClear(range), areas);
      }
      for (const range of uncovered) {
        for (const area of areas) if (overlap(area, range)) addArea(into, area);
      }
      slot.foundGranule = session.namesAll ? null : session.granule;
      return null;
    } catch (cause) {
      const error = cause instanceof Error ? cause : new Error(String(cause));
      if (restart) await this.#restart(slot, error);
      this.#addAll(slot, into);
      return error;
    }
  }

  async #restart(slot: Slot, failure: Error | undefined): Promise<void> {
    // What can't be stopped may be gone already (a reset device); whether it can be started is what matters.
    await stopSlot(slot).catch(() => undefined);
    try {
      await this.#startSlot(slot);
    } catch (cause) {
      const owner = ownerName(slot.tracker.owner);
      const why = failure === undefined ? "" : ` after ${explain(failure)}`;
      throw new DirtmapError(`the tracker of ${owner} could not be restarted${why}: ${explain(cause)}`, {
        code: "TRACKER_LOST",
        attempted: `restart the tracker of ${owner}`,
        remedy: `migrate again with another tracker for ${owner}`,
        cause,
      });
    }
  }

  #areasOf(slot: Slot): readonly MappedArea[] {
    return slot.tracker.kind === "cpu" ? this.#ram : this.#areas;
  }

  #addAll(slot: Slot, into: RamBitmap): void {
    for (const area of this.#areasOf(slot)) addArea(into, area);
  }

  #queued<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(run);
    this.#queue = result.catch(() => undefined);
    return result;
  }
}

async function stopSlot(slot: Slot): Promise<void> {
  const { session } = slot;
  slot.session = null;
  await session?.[Symbol.asyncDispose]();
}
