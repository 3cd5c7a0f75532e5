import { addressOf } from "../sys/address.js";
import type { Arena } from "./arena.js";

/**
 * Who needs an arena's memory to stay where it is: a kernel that has it mapped for DMA. Counted per thread; the arena is
 * alive as long as this object is, so a holder keeps it.
 */
export class ArenaHolds {
  readonly arena: Arena;
  /** Of the arena's first byte, in this process; below 2^53, as every address of a user is. */
  readonly address: number;
  #count = 0;

  /** For {@link holdsOf}. */
  constructor(arena: Arena) {
    this.arena = arena;
    this.address = Number(addressOf(arena.u8));
  }

  get count(): number {
    return this.#count;
  }

  take(): void {
    this.#count++;
  }

  /** Gives one hold back, which must have been taken. */
  release(): void {
    this.#count--;
  }
}

/** By memory, which several objects may be views of. */
const known = new WeakMap<WebAssembly.Memory, ArenaHolds>();

/** The holds on an arena: the same object for all views of the same memory. */
export function holdsOf(arena: Arena): ArenaHolds {
  let holds = known.get(arena.memory);
  if (holds === undefined) {
    holds = new ArenaHolds(arena);
    known.set(arena.memory, holds);
  }
  return holds;
}
