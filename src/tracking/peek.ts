import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { UsageError } from "../errors.js";
import type { Iommufd, ObjectId } from "../host/host.js";
import { PAGE_SIZE } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import { addDirty, type MappedArea, writeableAreas } from "./areas.js";
import type { DirtyRead, DirtySource } from "./dirty-source.js";
import { Ledger, type OwnerPages } from "./ledger.js";
import { type Owner, ownerName } from "./owner.js";
import type { TrackerKind } from "./tracker.js";

/** An owner of dirty bits that another reader tracks. */
export interface PeekedOwner {
  /** The device of the HWPT, or the devices that share it. */
  readonly owner: Owner;
  /** The tracker of that reader. Only `iommu`, of an HWPT, can be peeked at. */
  readonly tracker: TrackerKind | "type1" | "emulated-iommu";
  readonly iommufd: Iommufd;
  readonly hwpt: ObjectId;
}

/**
 * Opens the dirty bits of HWPTs that another reader clears, and clears none (IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR), for `watch`.
 * A read names the pages that were not dirty at the previous read. A page that the other reader cleared and that was written
 * again in between looks unchanged, so the figures are a lower bound.
 * @throws UsageError `WOULD_STEAL_BITS` for a tracker that can't be peeked at: a device's log, pins, vCPUs, a type1 container
 * and an emulated IOMMU give each bit to one reader, once
 */
export function openPeek(
  memory: GuestMemory,
  owners: readonly PeekedOwner[],
  { areas = writeableAreas(memory) }: { areas?: readonly MappedArea[] } = {},
): DirtySource {
  for (const { owner, tracker } of owners) {
    if (tracker === "iommu") continue;
    throw new UsageError(`looking at the tracker of ${ownerName(owner)} ('${tracker}') would take its reader's bits`, {
      code: "WOULD_STEAL_BITS",
      remedy: "follow the feed of its reader: dirtmap top --run ID",
    });
  }
  return new PeekingSource(memory, owners, areas);
}

class PeekingSource implements DirtySource {
  readonly choices = [];
  readonly ledger = new Ledger();
  readonly #memory: GuestMemory;
  readonly #areas: readonly MappedArea[];
  readonly #owners: readonly (PeekedOwner & { before: RamBitmap; now: RamBitmap })[];

  constructor(memory: GuestMemory, owners: readonly PeekedOwner[], areas: readonly MappedArea[]) {
    this.#memory = memory;
    this.#areas = areas;
    this.#owners = owners.map((owner) => ({ ...owner, before: new RamBitmap(memory), now: new RamBitmap(memory) }));
  }

  granuleOf(): number | null {
    return null;
  }

  /** What is dirty already was dirtied nobody knows when: it counts for no interval. */
  async start(): Promise<void> {
    for (const owner of this.#owners) {
      await this.#look(owner);
      swap(owner);
    }
  }

  async read(): Promise<DirtyRead> {
    const started = performance.now();
    const dirty = new RamBitmap(this.#memory);
    const entries: OwnerPages[] = [];
    for (const owner of this.#owners) {
      const from = performance.now();
      await this.#look(owner);
      const pages = added(owner.now, owner.before);
      swap(owner);
      dirty.or(pages);
      entries.push({ owner: owner.owner, pages, readMs: performance.now() - from });
    }
    return {
      dirty,
      always: null,
      byOwner: this.ledger.record(entries),
      pagesByOwner: new Map(entries.map(({ owner, pages }) => [ownerName(owner), pages])),
      unread: [],
      failures: [],
      ms: performance.now() - started,
    };
  }

  /** Nothing was switched on. */
  async [Symbol.asyncDispose](): Promise<void> {}

  async #look({ iommufd, hwpt, now }: { iommufd: Iommufd; hwpt: ObjectId; now: RamBitmap }): Promise<void> {
    now.clear();
    for (const { iova, length } of this.#areas) {
      const into = new DirtyBitmap({ iova, length, granule: PAGE_SIZE });
      await iommufd.getDirtyBitmap(hwpt, { iova, length, pageSize: PAGE_SIZE, into, clear: false });
      addDirty(now, into, this.#areas);
    }
  }
}

function swap(owner: { before: RamBitmap; now: RamBitmap }): void {
  [owner.before, owner.now] = [owner.now, owner.before];
}

/** The pages of `now` that are not in `before`. */
function added(now: RamBitmap, before: RamBitmap): RamBitmap {
  const pages = new RamBitmap(now.memory);
  pages.arenas.forEach((words, arena) => {
    for (let i = 0; i < words.length; i++) words[i] = now.arenas[arena][i] & ~before.arenas[arena][i];
  });
  return pages;
}
