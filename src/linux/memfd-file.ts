import { closeSync } from "node:fs";
import type { MemoryFile } from "../host/host.js";
import type { DmaMemory } from "../memory/dma-memory.js";
import { dup } from "../sys/fd.js";
import { createMemfd } from "../sys/memfd.js";
import { UapiError } from "../uapi/errno.js";

/** A memfd, for IOMMU_IOAS_MAP_FILE. Mappings keep its pages after it is closed. */
export class MemfdFile implements MemoryFile {
  readonly bytes: number;
  #fd: number;

  private constructor(fd: number, bytes: number) {
    this.#fd = fd;
    this.bytes = bytes;
  }

  /** A new one, all zero. @param bytes a multiple of 4096 @throws UapiError */
  static create(bytes: number): MemfdFile {
    return new MemfdFile(createMemfd("dirtmap", bytes), bytes);
  }

  /** The file behind memory: mapped by it, pages don't depend on where this process has them. @throws UapiError EBADF for anonymous memory */
  static of(memory: DmaMemory): MemfdFile {
    if (memory.fd === null) {
      throw new UapiError("EBADF", {
        syscall: "dup",
        attempted: "take the file of memory that has none",
        remedy: "allocate it with a backing of memfd or hugetlb",
      });
    }
    return new MemfdFile(dup(memory.fd), memory.length);
  }

  /** -1 once it is closed. */
  get fd(): number {
    return this.#fd;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#fd < 0) return;
    closeSync(this.#fd);
    this.#fd = -1;
  }
}
