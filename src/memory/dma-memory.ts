import { closeSync, readFileSync } from "node:fs";
import { UsageError } from "../errors.js";
import { createMemfd } from "../sys/memfd.js";
import { mapAnonymousOver, mapFileOver } from "../sys/mmap.js";
import { isErrno, UapiError } from "../uapi/errno.js";
import { GiB, KiB, MiB, PAGE_SIZE } from "./address.js";
import { type Arena, createArena } from "./arena.js";
import { holdsOf } from "./holds.js";
import { setSharedFile } from "./shared-files.js";

/** What pages memory is made of. */
export type Backing =
  /** Of this process alone. */
  | { readonly kind: "anonymous" }
  /** A memfd: another process that gets the descriptor shares it. */
  | { readonly kind: "memfd" }
  /** A memfd of huge pages, which must have been reserved. */
  | { readonly kind: "hugetlb"; readonly pageBytes: typeof HUGE_2M | typeof HUGE_1G };

export const HUGE_2M = 2 * MiB;
export const HUGE_1G = 1 * GiB;

/**
 * Memory that can be handed to a kernel for DMA: a stretch of an arena, so that kernels of src/kernels work on it in place.
 * Linux only.
 *
 * It is never unmapped: to let go of it is to lay fresh anonymous pages over it. That is refused while a kernel has it
 * mapped ({@link ArenaHolds}), since the devices would go on writing to the old pages, which nobody sees any more.
 */
export class DmaMemory implements Disposable {
  readonly arena: Arena;
  /** Where it begins in the arena, in bytes: at a page of its backing. */
  readonly offset: number;
  /** In bytes, whole pages of its backing. */
  readonly length: number;
  readonly backing: Backing;
  #fd: number | null;
  #letGo = false;

  private constructor(arena: Arena, place: { offset: number; length: number }, backing: Backing, fd: number | null) {
    this.arena = arena;
    this.offset = place.offset;
    this.length = place.length;
    this.backing = backing;
    this.#fd = fd;
    if (fd !== null) setSharedFile(arena, { fd, ...place });
  }

  /**
   * Allocates memory, all zero, of at least `bytes`, rounded up to pages of its backing.
   * @throws UsageError `MEMORY_DOES_NOT_FIT` beyond what an arena holds (huge pages need one page more, to align them), or
   * where not enough huge pages are free; UapiError where the system refuses otherwise
   */
  static allocate(bytes: number, backing: Backing = { kind: "anonymous" }): DmaMemory {
    const pageBytes = backing.kind === "hugetlb" ? backing.pageBytes : PAGE_SIZE;
    const length = Math.ceil(bytes / pageBytes) * pageBytes;
    const arena = createArena(length + (backing.kind === "hugetlb" ? pageBytes : 0));
    const { address } = holdsOf(arena);
    const offset = Math.ceil(address / pageBytes) * pageBytes - address;
    if (backing.kind === "anonymous") return new DmaMemory(arena, { offset, length }, backing, null);
    let fd: number | undefined;
    try {
      fd = createMemfd("dirtmap", length, backing.kind === "hugetlb" ? pageBytes : undefined);
      mapFileOver(arena.u8.subarray(offset, offset + length), fd);
    } catch (error) {
      if (fd !== undefined) closeSync(fd);
      const noPages = isErrno(error, "ENOMEM") || isErrno(error, "ENODEV");
      if (backing.kind === "hugetlb" && noPages) throw noHugePages(length, pageBytes, error);
      throw error;
    }
    return new DmaMemory(arena, { offset, length }, backing, fd);
  }

  /** The memfd behind it, to be passed to another process; null for anonymous memory, and once it was let go. */
  get fd(): number | null {
    return this.#fd;
  }

  /** Its bytes. */
  get bytes(): Uint8Array<SharedArrayBuffer> {
    return this.arena.u8.subarray(this.offset, this.offset + this.length);
  }

  /**
   * Lets go of the pages; the bytes read as zero from then on. Once is enough.
   * @throws UapiError EBUSY while a kernel has the arena mapped
   */
  [Symbol.dispose](): void {
    if (this.#letGo) return;
    const { count } = holdsOf(this.arena);
    if (count > 0) {
      throw new UapiError("EBUSY", {
        syscall: "mmap",
        attempted: `let go of ${this.length} bytes of memory, which ${count} mapping${count === 1 ? " holds" : "s hold"}`,
        remedy: "unmap it, or close the iommufd that maps it",
      });
    }
    mapAnonymousOver(this.bytes);
    this.#letGo = true;
    if (this.#fd !== null) {
      setSharedFile(this.arena, null);
      closeSync(this.#fd);
    }
    this.#fd = null;
  }
}

function noHugePages(bytes: number, pageBytes: number, cause: unknown): UsageError {
  const needed = bytes / pageBytes;
  const pool = `/sys/kernel/mm/hugepages/hugepages-${pageBytes / KiB}kB`;
  const free = readCount(`${pool}/free_hugepages`);
  const size = pageBytes === HUGE_1G ? "1 GiB" : "2 MiB";
  if (free === null) {
    return new UsageError(`no memory with pages of ${size}: this system has none of that size`, {
      code: "MEMORY_DOES_NOT_FIT",
      remedy: "use another page size, or a kernel with hugetlbfs on a processor that has them",
      cause,
    });
  }
  const total = readCount(`${pool}/nr_hugepages`) ?? 0;
  const setting = pageBytes === HUGE_2M ? "/proc/sys/vm/nr_hugepages" : `${pool}/nr_hugepages`;
  return new UsageError(`no memory with pages of ${size}: ${needed} are needed, ${free} of ${total} are free`, {
    code: "MEMORY_DOES_NOT_FIT",
    remedy: `reserve them: echo ${total - free + needed} > ${setting}`,
    cause,
  });
}

function readCount(path: string): number | null {
  try {
    const count = Number.parseInt(readFileSync(path, "utf8"), 10);
    return Number.isSafeInteger(count) ? count : null;
  } catch {
    return null;
  }
}
