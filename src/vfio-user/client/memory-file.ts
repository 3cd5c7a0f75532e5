import type { MemoryFile } from "../../host/host.js";
import { DmaMemory } from "../../memory/dma-memory.js";
import { holdsOf } from "../../memory/holds.js";

/** A memfd that can be mapped for DMA. */
export class VfioUserMemoryFile implements MemoryFile {
  readonly memory: DmaMemory;
  readonly bytes: number;
  #open = true;

  private constructor(memory: DmaMemory) {
    this.memory = memory;
    this.bytes = memory.length;
  }

  /** Makes one of at least `bytes`, all zero. @throws UsageError `MEMORY_DOES_NOT_FIT`; UapiError */
  static create(bytes: number): VfioUserMemoryFile {
    return new VfioUserMemoryFile(DmaMemory.allocate(bytes, { kind: "memfd" }));
  }

  get isOpen(): boolean {
    return this.#open;
  }

  /** Lets go of the memory once it is mapped nowhere any more. */
  releaseIfClosed(): void {
    if (!this.#open && holdsOf(this.memory.arena).count === 0) this.memory[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false;
    this.releaseIfClosed();
  }
}
