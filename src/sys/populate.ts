import { type ErrnoName, errnoName, UapiError } from "../uapi/errno.js";
import { lastErrno, libc } from "./libc.js";

const madvise = libc.func("madvise", "int", ["uintptr_t", "size_t", "int"]);

const getpagesize = libc.func("int getpagesize()");

/** <asm-generic/mman-common.h>; Linux 5.14, older than /dev/iommu. */
const MADV_POPULATE_WRITE = 23;

/** A stretch of this process's memory. */
export interface Stretch {
  /** Of its first byte, below 2^53, as every address of a user is. */
  readonly address: number;
  readonly bytes: number;
}

/**
 * Has the system put pages behind memory that a kernel is about to write, now, so that it need not be done then.
 *
 * It is for dirty bitmaps: Linux takes a dirty bit first and writes it to the bitmap afterwards, and where it has no page
 * for the bitmap by then the bit is lost and the call succeeds (iova_bitmap_set, drivers/iommu/iommufd/iova_bitmap.c).
 * It runs on a thread of its own, since a new page takes up to 1 us. Whoever needs few pages writes to each instead.
 * @throws UapiError ENOMEM
 */
export async function populateOnThread({ address, bytes }: Stretch): Promise<void> {
  // The system's own page, 64 KiB on some arm64 kernels: madvise refuses an address inside one.
  const inPage = address % getpagesize();
  const errno = await new Promise<number>((resolve, reject) => {
    madvise.async(address - inPage, bytes + inPage, MADV_POPULATE_WRITE, (error: unknown, answer: number) => {
      if (error) reject(error);
      else resolve(answer < 0 ? lastErrno() : 0);
    });
  });
  if (errno !== 0) throw failure(errnoName(errno), bytes);
}

function failure(code: ErrnoName, bytes: number): UapiError {
  return new UapiError(code, {
    syscall: "madvise",
    attempted: `get ${bytes} bytes of memory for what the kernel writes`,
    remedy: "memory is short: free some, or raise the limit of this process's cgroup",
  });
}
