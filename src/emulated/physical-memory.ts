import { PAGE_SHIFT } from "../memory/address.js";
import { type Arena, openArena } from "../memory/arena.js";

/*
 * The emulated host's physical addresses. Each arena owns a 4 GiB window: physical address = arena << 32 | offset. So an
 * IOPTE's high address bits name the arena and its low 32 bits the byte in it, and no bigint is needed to take them
 * apart; and leaves of up to 1 GiB stay contiguous.
 */

/** Page frames per arena's window. */
export const FRAMES_PER_ARENA = 2 ** (32 - PAGE_SHIFT);

/** What an arena's frames are: RAM, or the memory behind a device's BAR, which is a peer to the others. */
export type ArenaKind = { readonly kind: "ram" } | { readonly kind: "bar"; readonly port: number };

/** What is posted to device threads. */
export interface PhysicalArena {
  readonly memory: WebAssembly.Memory;
  readonly owner: ArenaKind;
}

/** The arenas that physical addresses reach. All are registered before the first device thread starts. */
export class PhysicalMemory {
  readonly arenas: (Arena & { readonly owner: ArenaKind })[] = [];

  static open(arenas: readonly PhysicalArena[]): PhysicalMemory {
    const physical = new PhysicalMemory();
    for (const { memory, owner } of arenas) physical.register(openArena(memory), owner);
    return physical;
  }

  /** Gives an arena its window; registering it again changes nothing. Returns its index. */
  register(arena: Arena, owner: ArenaKind): number {
    const known = this.arenas.findIndex(({ memory }) => memory === arena.memory);
    if (known >= 0) return known;
    return this.arenas.push({ ...arena, owner }) - 1;
  }

  /** The page frame number of a byte of a registered arena, or -1 for an arena that isn't. */
  frameOf(arena: Arena, offset: number): number {
    const index = this.arenas.findIndex(({ memory }) => memory === arena.memory);
    return index < 0 ? -1 : index * FRAMES_PER_ARENA + Math.floor(offset / 2 ** PAGE_SHIFT);
  }

  /** What a thread needs for {@link PhysicalMemory.open}. */
  posted(): PhysicalArena[] {
    return this.arenas.map(({ memory, owner }) => ({ memory, owner }));
  }
}
