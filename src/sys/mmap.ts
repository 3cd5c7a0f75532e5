import { errnoName, UapiError } from "../uapi/errno.js";
import { addressOf } from "./address.js";
import { lastErrno, libc } from "./libc.js";

const mmap = libc.func("mmap", "intptr_t", ["uintptr_t", "size_t", "int", "int", "int", "int64_t"]);

/** <asm-generic/mman-common.h>, <linux/mman.h>: the same on x86-64 and arm64. */
const PROT_READ_WRITE = 0x1 | 0x2;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;

/**
 * Lays a file over memory of this process (MAP_FIXED, MAP_SHARED): what was there is gone, and from then on the bytes are
 * the file's, for all who map it.
 * @param over begins and ends at multiples of the file's page size
 * @throws UapiError with mmap's errno; ENOMEM where no huge pages are left for a file of these
 */
export function mapFileOver(over: Uint8Array, fd: number, offset = 0): void {
  mapOver(over, MAP_SHARED, fd, offset, `map file ${fd}`);
}

/**
 * Lets go of what memory of this process holds: lays fresh anonymous pages over it, all zero. The addresses stay
 * mapped, since whoever has a view of them must not crash.
 * @throws UapiError with mmap's errno
 */
export function mapAnonymousOver(over: Uint8Array): void {
  mapOver(over, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, "map anonymous memory");
}

function mapOver(over: Uint8Array, flags: number, fd: number, offset: number, what: string): void {
  const answer: number | bigint = mmap(
    addressOf(over),
    over.byteLength,
    PROT_READ_WRITE,
    flags | MAP_FIXED,
    fd,
    offset,
  );
  if (Number(answer) === -1) {
    throw new UapiError(errnoName(lastErrno()), {
      syscall: "mmap",
      attempted: `${what} over ${over.byteLength} bytes of memory`,
    });
  }
}
