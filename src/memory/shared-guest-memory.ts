import { closeSync } from "node:fs";
import { createMemfd } from "../sys/memfd.js";
import { mapFileOver } from "../sys/mmap.js";
import { PAGE_SIZE } from "./address.js";
import type { GuestMemory } from "./guest-memory.js";
import { setSharedFile } from "./shared-files.js";

/**
 * Makes a guest's RAM of memfds, so that other processes can be given it; what is in it by now is lost. What the arenas
 * have besides RAM stays this process's own.
 * @returns to be disposed when nobody is given it any more: the descriptors are closed, the memory stays
 * @throws UapiError EMFILE, ENOMEM …
 */
export function shareGuestMemory({ arenas }: GuestMemory): Disposable {
  const fds: number[] = [];
  const end = () => {
    for (const arena of arenas) setSharedFile(arena, null);
    for (const fd of fds.splice(0)) closeSync(fd);
  };
  try {
    for (const arena of arenas) {
      const length = arena.ramPages * PAGE_SIZE;
      const fd = createMemfd("dirtmap-ram", length);
      fds.push(fd);
      mapFileOver(arena.u8.subarray(0, length), fd);
      setSharedFile(arena, { fd, offset: 0, length });
    }
    return { [Symbol.dispose]: end };
  } catch (error) {
    end();
    throw error;
  }
}
