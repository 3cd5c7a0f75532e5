import type { MemoryFile, MemorySpan } from "../host/host.js";

/**
 * A file whose pages a software iommufd can map: memory of this process under a size. Mappings keep the memory after the
 * file is closed, as a memfd's mappings do; the memory itself is its owner's to let go of.
 */
export class ArenaFile implements MemoryFile {
  readonly memory: MemorySpan;
  #open = true;

  constructor(memory: MemorySpan) {
    this.memory = memory;
  }

  get bytes(): number {
    return this.memory.length;
  }

  get isOpen(): boolean {
    return this.#open;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false;
  }
}
