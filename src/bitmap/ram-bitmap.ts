import { PAGE_SIZE } from "../memory/address.js";
import type { GuestMemory, MemoryRegion } from "../memory/guest-memory.js";
import { noteAllocation } from "./allocations.js";
import { countBits, setBits } from "./bits.js";

/**
 * A bit per 4 KiB page of a guest's RAM: the pages that a round must send. A DirtyBitmap covers IOVAs, and this bitmap covers
 * memory: it has one bit array per RAM arena, indexed by the arena's page. Addresses that aren't RAM (a peer's BAR, a hole)
 * have no bit, so adding a tracker's bits (tracking/areas.ts) drops them.
 */
export class RamBitmap {
  readonly memory: GuestMemory;
  /** Per arena: bit i is bit i % 32 of word i / 32, and stands for the arena's page i. */
  readonly arenas: readonly Uint32Array<SharedArrayBuffer>[];

  /** @param arenas bit arrays of another bitmap of the same memory, to be shared. Default: new ones, all clear */
  constructor(memory: GuestMemory, arenas?: readonly Uint32Array<SharedArrayBuffer>[]) {
    this.memory = memory;
    this.arenas =
      arenas ??
      memory.arenas.map((arena) => new Uint32Array(new SharedArrayBuffer(Math.ceil(arena.ramPages / 32 / 16) * 64)));
    if (arenas !== undefined) return;
    noteAllocation({
      holder: this,
      kind: "bitmap",
      bytes: this.arenas.reduce((sum, words) => sum + words.byteLength, 0),
    });
  }

  /** Marks every page of RAM, or of one region. */
  setAll(region?: MemoryRegion): void {
    for (const { arena, arenaPage, pages } of region === undefined ? this.memory.regions : [region]) {
      setBits(this.arenas[arena], arenaPage, pages);
    }
  }

  /** Marks guest pages [firstPage, firstPage + pages). Pages that are not RAM are left out. */
  addPages(firstPage: number, pages: number): void {
    const end = firstPage + pages;
    for (const region of this.memory.regions) {
      const from = Math.max(firstPage, region.firstPage);
      const to = Math.min(end, region.firstPage + region.pages);
      if (from < to) setBits(this.arenas[region.arena], region.arenaPage + from - region.firstPage, to - from);
    }
  }

  /** Adds the bits of another bitmap of the same memory. */
  or(other: RamBitmap): void {
    this.arenas.forEach((words, arena) => {
      const from = other.arenas[arena];
      for (let i = 0; i < words.length; i++) words[i] |= from[i];
    });
  }

  /** Clears every bit. */
  clear(): void {
    for (const words of this.arenas) words.fill(0);
  }

  /** Number of marked pages. */
  count(): number {
    return this.arenas.reduce((sum, words) => sum + countBits(words), 0);
  }

  /** Bytes of the marked pages. */
  get bytes(): number {
    return this.count() * PAGE_SIZE;
  }
}
