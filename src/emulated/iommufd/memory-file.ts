import type { MemoryFile } from "../../host/host.js";
import type { Arena } from "../../memory/arena.js";

/**
 * The emulated host's memfd: an arena under a size. Mappings keep the memory after the file is closed, as a memfd's
 * mappings do.
 */
export class EmulatedMemoryFile implements MemoryFile {
  readonly arena: Arena;
  readonly bytes: number;
  #open = true;

  constructor(arena: Arena, bytes: number = arena.bytes) {
    this.arena = arena;
    this.bytes = bytes;
  }

  get open(): boolean {
    return this.#open;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false;
  }
}
