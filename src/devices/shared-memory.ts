import { closeSync } from "node:fs";
import { createArena } from "../memory/arena.js";
import { createMemfd } from "../sys/memfd.js";
import { mapFileOver } from "../sys/mmap.js";

/**
 * Memory of a device that other processes can map: its bytes here, and the file that holds them. The caller closes the
 * file; the bytes stay mapped.
 * @param bytes whole pages
 * @throws UsageError `MEMORY_DOES_NOT_FIT`; UapiError with the system's errno
 */
export function createSharedMemory(name: string, bytes: number): { memory: Uint8Array; memoryFile: number } {
  const memory = createArena(bytes).u8.subarray(0, bytes);
  const memoryFile = createMemfd(name, bytes);
  try {
    mapFileOver(memory, memoryFile);
    return { memory, memoryFile };
  } catch (error) {
    closeSync(memoryFile);
    throw error;
  }
}
