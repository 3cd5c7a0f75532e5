import type { IopteKernels } from "../../kernels/ioptes.js";
import { hex, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { UapiError } from "../../uapi/errno.js";
import { FRAMES_PER_ARENA } from "../physical-memory.js";
import { type DirtyTarget, markPages } from "./dirty-target.js";
import {
  ADDRESS_LOW,
  ENTRIES,
  indexOf,
  LAST_PAGE,
  LEVELS,
  levelOf,
  type PageTableFormat,
  pagesPerEntry,
  replicasOf,
  TABLE_BYTES,
} from "./format.js";
import type { TablePages } from "./table-pages.js";

/** Where consecutive pages go. */
export interface Mapping {
  readonly page: PageNumber;
  /** Physical page frame of the first page. */
  readonly frame: PageNumber;
  readonly pages: number;
  readonly readable: boolean;
  readonly writeable: boolean;
  /** false: only leaves of the smallest size. */
  readonly hugePages: boolean;
}

/** What an unmap has taken out, and must keep until no device can still be using it. */
export interface Removal {
  /** Tables that all of their pages went with: their dirty bits are still in them. */
  readonly subtrees: { readonly table: number; readonly level: number; readonly page: PageNumber }[];
  /** Tables that became empty. */
  readonly emptied: number[];
  /** Entries, by index of the first one's low half, whose high halves are still there. */
  readonly entries: { readonly at: number; readonly count: number }[];
}

/**
 * One I/O page table as software sees it: the tree, and how it grows and shrinks while devices walk it.
 *
 * Each change is one atomic store of an entry's low half: a leaf or a table is complete before its entry becomes present,
 * and what has been taken out is neither cleared nor reused before {@link PageTable.release}, which the caller calls
 * after the devices' DMA in flight has drained.
 */
export class PageTable {
  readonly root: number;
  readonly format: PageTableFormat;
  /** log2 of the sizes of leaf that it makes, ascending. */
  readonly leafShifts: readonly number[];
  readonly #dirtyTracking: boolean;
  readonly #tables: TablePages;
  readonly #kernels: IopteKernels;
  readonly #words: Int32Array<SharedArrayBuffer>;
  #count = 0;
  /** What is being unmapped: not to be mapped again before it is released. */
  readonly #leaving = new Set<{ readonly page: PageNumber; readonly pages: number }>();

  /** @throws UapiError ENOMEM */
  constructor(args: {
    format: PageTableFormat;
    leafShifts: readonly number[];
    tables: TablePages;
    kernels: IopteKernels;
    dirtyTracking: boolean;
  }) {
    this.format = args.format;
    this.leafShifts = args.leafShifts;
    this.#dirtyTracking = args.dirtyTracking;
    this.#tables = args.tables;
    this.#kernels = args.kernels;
    this.#words = args.tables.arena.i32;
    this.root = this.#allocate();
  }

  /** Tables that it consists of. */
  get tables(): number {
    return this.#count;
  }

  /**
   * Maps pages with the largest leaves that fit. All or nothing: what could refuse is checked before the first store.
   * @throws UapiError EINVAL outside the 48 bits or without permissions, EEXIST, ENOMEM
   */
  map(mapping: Mapping): void {
    const { page, pages, frame, readable, writeable } = mapping;
    const translatable = page >= 0 && pages > 0 && page + pages - 1 <= LAST_PAGE;
    const addressable = frame >= 0 && (frame + pages - 1) / FRAMES_PER_ARENA < this.format.addressHigh;
    if (!translatable || !addressable || !(readable || writeable)) {
      throw refusal(
        "EINVAL",
        mapping,
        "up to 48 bits of IOVA can be mapped, readable or writeable, to memory that is there",
      );
    }
    for (const leaving of this.#leaving) {
      if (page < leaving.page + leaving.pages && leaving.page < page + pages) {
        throw refusal("EEXIST", mapping, "wait until the unmap under way has resolved");
      }
    }
    // The last table that was found missing at each level: runs ascend, so each counts once.
    const missing = new Float64Array(LEVELS).fill(-1);
    let needed = 0;
    this.#forEachRun(mapping, (at, _frame, shift, count) => {
      needed += this.#check(mapping, at, shift, count, missing);
    });
    if (needed > this.#tables.available) {
      throw refusal(
        "ENOMEM",
        mapping,
        `${needed} pages for tables are needed and ${this.#tables.available} are left: map with larger pages, or give the IOMMU a larger arena`,
      );
    }
    this.#forEachRun(mapping, (at, from, shift, count) => this.#fill(mapping, at, from, shift, count));
  }

  /** Calls `visit` for each run of equal leaves that lie in one table. */
  #forEachRun(
    { page, frame, pages, hugePages }: Mapping,
    visit: (page: PageNumber, frame: PageNumber, shift: number, count: number) => void,
  ): void {
    const { leafShifts } = this;
    const end = page + pages;
    const skew = frame - page;
    for (let at = page; at < end; ) {
      let choice = 0;
      let larger = 2 ** 52;
      for (let i = 1; hugePages && i < leafShifts.length; i++) {
        const size = 2 ** (leafShifts[i] - 12);
        if (skew % size !== 0) break;
        if (at % size !== 0 || at + size > end) {
          larger = size;
          break;
        }
        choice = i;
      }
      const shift = leafShifts[choice];
      const size = 2 ** (shift - 12);
      const table = pagesPerEntry(levelOf(shift) + 1);
      // Up to the table's end, the last leaf that fits, or where a larger one could begin.
      const stop = Math.min(at - (at % table) + table, end - ((end - at) % size), at - (at % larger) + larger);
      const count = (stop - at) / size;
      visit(at, at + skew, shift, count);
      at += count * size;
    }
  }

  /** Sees that a run's entries are free; returns how many tables it lacks. */
  #check(mapping: Mapping, page: PageNumber, shift: number, count: number, missing: Float64Array): number {
    const words = this.#words;
    const leafLevel = levelOf(shift);
    let table = this.root;
    for (let level = LEVELS; level > leafLevel; level--) {
      const low = words[(table >>> 2) + indexOf(page, level) * 2];
      if (low === 0) {
        let lacking = 0;
        for (let below = level - 1; below >= leafLevel; below--) {
          const key = Math.floor(page / pagesPerEntry(below + 1));
          if (missing[below] === key) continue;
          missing[below] = key;
          lacking++;
        }
        return lacking;
      }
      if (this.format.isLeaf(low, level)) throw refusal("EEXIST", mapping, "unmap first what is mapped there");
      table = (low & ADDRESS_LOW) >>> 0;
    }
    const at = (table >>> 2) + indexOf(page, leafLevel) * 2;
    const end = at + count * replicasOf(shift) * 2;
    for (let entry = at; entry < end; entry += 2) {
      if (words[entry] !== 0) throw refusal("EEXIST", mapping, "unmap first what is mapped there");
    }
    return 0;
  }

  /** Writes a run of leaves, making the tables on the way. A chain of new tables is linked once all in it is written. */
  #fill(mapping: Mapping, page: PageNumber, frame: PageNumber, shift: number, count: number): void {
    const words = this.#words;
    const { used } = this.#tables;
    const leafLevel = levelOf(shift);
    let table = this.root;
    let link = -1;
    let linkLow = 0;
    for (let level = LEVELS; level > leafLevel; level--) {
      const at = (table >>> 2) + indexOf(page, level) * 2;
      let low = words[at];
      if (low === 0) {
        const entry = this.format.tableEntry(this.#allocate(), level);
        low = entry.low;
        used[table / TABLE_BYTES]++;
        words[at + 1] = entry.high;
        if (link < 0) {
          link = at;
          linkLow = low;
        } else {
          words[at] = low;
        }
      }
      table = (low & ADDRESS_LOW) >>> 0;
    }
    const { readable, writeable } = mapping;
    const bits = this.format.leafBits({ shift, readable, writeable, dirtyTracking: this.#dirtyTracking });
    const replicas = replicasOf(shift);
    const first = table + indexOf(page, leafLevel) * 8;
    used[table / TABLE_BYTES] += count * replicas;
    if (link >= 0 && replicas === 1) {
      const low = bits.low | ((frame % FRAMES_PER_ARENA) * PAGE_SIZE);
      const high = bits.high | Math.floor(frame / FRAMES_PER_ARENA);
      this.#kernels.fillIoptes(first, count, low, high, 2 ** shift);
    } else {
      const size = 2 ** (shift - 12);
      let at = first >>> 2;
      for (let leaf = 0; leaf < count; leaf++) {
        const to = frame + leaf * size;
        const low = bits.low | ((to % FRAMES_PER_ARENA) * PAGE_SIZE);
        const high = bits.high | Math.floor(to / FRAMES_PER_ARENA);
        for (let replica = 0; replica < replicas; replica++, at += 2) {
          Atomics.store(words, at + 1, high);
          Atomics.store(words, at, low);
        }
      }
    }
    if (link >= 0) Atomics.store(words, link, linkLow);
  }

  /**
   * Takes pages out: from here on no device can begin to translate them. Dirty bits of leaves that go one by one are
   * added to `into`; those of whole tables follow in {@link PageTable.release}.
   * @throws UapiError EINVAL, before anything is changed, where a leaf lies partly outside
   */
  remove(page: PageNumber, pages: number, into: DirtyTarget | null): Removal {
    const end = page + pages;
    if (this.#cutsLeaf(page) || this.#cutsLeaf(end)) {
      throw new UapiError("EINVAL", {
        syscall: "iommu_unmap",
        attempted: `unmap ${pages} pages at IOVA ${hex(page * PAGE_SIZE)}`,
        remedy: "a large page can be unmapped only as a whole",
      });
    }
    const removal: Removal = { subtrees: [], emptied: [], entries: [] };
    this.#leaving.add({ page, pages });
    this.#removeFrom(this.root, LEVELS, 0, page, end, removal, into);
    return removal;
  }

  /** True if a leaf reaches across the border below `page`. */
  #cutsLeaf(page: PageNumber): boolean {
    if (page > LAST_PAGE) return false;
    let table = this.root;
    for (let level = LEVELS; level >= 1; level--) {
      const low = this.#words[(table >>> 2) + indexOf(page, level) * 2];
      if (low === 0) return false;
      if (this.format.isLeaf(low, level)) return page % 2 ** (this.format.leafShift(low, level) - 12) !== 0;
      table = (low & ADDRESS_LOW) >>> 0;
    }
    return false;
  }

  #removeFrom(
    table: number,
    level: number,
    base: PageNumber,
    from: PageNumber,
    end: PageNumber,
    removal: Removal,
    into: DirtyTarget | null,
  ): void {
    const words = this.#words;
    const { format } = this;
    const { used } = this.#tables;
    const reach = pagesPerEntry(level);
    const firstIndex = from <= base ? 0 : Math.floor((from - base) / reach);
    const lastIndex = Math.min(ENTRIES - 1, Math.ceil((end - base) / reach) - 1);
    let run = -1;
    for (let index = firstIndex; index <= lastIndex; index++) {
      const at = (table >>> 2) + index * 2;
      const low = words[at];
      const start = base + index * reach;
      if (low !== 0 && format.isLeaf(low, level)) {
        const taken = Atomics.exchange(words, at, 0);
        used[table / TABLE_BYTES]--;
        if (into !== null && (taken & format.dirtyMask) === format.dirtyValue) {
          const leafPages = 2 ** (format.leafShift(taken, level) - 12);
          markPages(into, start - (start % leafPages), leafPages);
        }
        if (run < 0) run = at;
        continue;
      }
      if (run >= 0) removal.entries.push({ at: run, count: (at - run) / 2 });
      run = -1;
      if (low === 0) continue;
      const child = (low & ADDRESS_LOW) >>> 0;
      const whole = from <= start && start + reach <= end;
      if (whole) removal.subtrees.push({ table: child, level: level - 1, page: start });
      else this.#removeFrom(child, level - 1, start, from, end, removal, into);
      if (whole || used[child / TABLE_BYTES] === 0) {
        if (!whole) removal.emptied.push(child);
        Atomics.store(words, at, 0);
        used[table / TABLE_BYTES]--;
        removal.entries.push({ at, count: 1 });
      }
    }
    if (run >= 0) removal.entries.push({ at: run, count: ((table >>> 2) + (lastIndex + 1) * 2 - run) / 2 });
  }

  /**
   * Ends an unmap, once all DMA that was in flight after {@link PageTable.remove} has drained: takes the dirty bits that
   * devices left in whole tables, and frees what was taken out.
   */
  release(removal: Removal, page: PageNumber, pages: number, into: DirtyTarget | null): void {
    for (const { at, count } of removal.entries) {
      for (let entry = at; entry < at + count * 2; entry += 2) {
        if (this.#words[entry] === 0) this.#words[entry + 1] = 0;
      }
    }
    for (const { table, level, page: first } of removal.subtrees) this.#freeSubtree(table, level, first, into);
    for (const table of removal.emptied) this.#free(table);
    for (const leaving of this.#leaving) {
      if (leaving.page === page && leaving.pages === pages) this.#leaving.delete(leaving);
    }
  }

  /** Frees a table that no device can reach, and all below it, taking the dirty bits along. */
  #freeSubtree(table: number, level: number, page: PageNumber, into: DirtyTarget | null): void {
    const words = this.#words;
    const { format } = this;
    const reach = pagesPerEntry(level);
    if (level > 1 || into !== null) {
      for (let index = 0; index < ENTRIES; index++) {
        const low = words[(table >>> 2) + index * 2];
        if (low === 0) continue;
        const start = page + index * reach;
        if (!format.isLeaf(low, level)) {
          this.#freeSubtree((low & ADDRESS_LOW) >>> 0, level - 1, start, into);
        } else if (into !== null && (low & format.dirtyMask) === format.dirtyValue) {
          const leafPages = 2 ** (format.leafShift(low, level) - 12);
          markPages(into, start - (start % leafPages), leafPages);
        }
      }
    }
    this.#free(table);
  }

  #allocate(): number {
    this.#count++;
    return this.#tables.allocate();
  }

  #free(table: number): void {
    this.#count--;
    this.#tables.free(table);
  }

  /** Frees everything. No device may be attached. */
  dispose(): void {
    this.#freeSubtree(this.root, LEVELS, 0, null);
  }
}

function refusal(code: "EINVAL" | "EEXIST" | "ENOMEM", { page, pages }: Mapping, remedy: string): UapiError {
  const attempted = `map ${pages} pages at IOVA ${hex(page * PAGE_SIZE)}`;
  return new UapiError(code, { syscall: "iommu_map", attempted, remedy });
}
