import { libc } from "./libc.js";

const madvise = libc.func("int madvise(void *address, size_t length, int advice)");
const MADV_HUGEPAGE = 14;

/**
 * Asks the system to back memory with huge pages where it can: filling a guest's memory then takes one page fault per
 * 2 MiB instead of per 4 KiB. Only Linux knows the request, and it may refuse it; nothing depends on the answer.
 */
export function adviseHugePages(memory: Uint8Array): void {
  if (process.platform !== "linux") return;
  madvise(memory, memory.byteLength, MADV_HUGEPAGE);
}
