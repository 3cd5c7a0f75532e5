import { closeSync, ftruncateSync } from "node:fs";
import { errnoName, UapiError } from "../uapi/errno.js";
import { lastErrno, libc } from "./libc.js";

/** <linux/memfd.h> */
const MFD_CLOEXEC = 0x1;
const MFD_ALLOW_SEALING = 0x2;
const MFD_HUGETLB = 0x4;
/** log2 of the page size, from this bit on. */
const MFD_HUGE_SHIFT = 26;

/** <linux/fcntl.h>: F_LINUX_SPECIFIC_BASE + 9 and + 10. */
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_SEAL_SEAL = 0x1;
const F_SEAL_SHRINK = 0x2;
const F_SEAL_GROW = 0x4;

/**
 * A file in memory (memfd_create(2)) of a size that nobody can change any more, so that another process may map it
 * without fear of SIGBUS. The caller owns the descriptor.
 * @param bytes a multiple of the page size
 * @param hugePageBytes absent: ordinary pages
 * @throws UapiError with the system's errno; ENODEV for huge pages of a size that the processor hasn't
 */
export function createMemfd(name: string, bytes: number, hugePageBytes?: number): number {
  const huge = hugePageBytes === undefined ? 0 : MFD_HUGETLB | (Math.log2(hugePageBytes) << MFD_HUGE_SHIFT);
  const memfdCreate = libc.func("memfd_create", "int", ["str", "unsigned int"]);
  const fd: number = memfdCreate(name, (MFD_CLOEXEC | MFD_ALLOW_SEALING | huge) >>> 0);
  if (fd < 0) throw failure("memfd_create", `make the memory file '${name}'`);
  try {
    ftruncateSync(fd, bytes);
    if (fcntl()(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
      throw failure("fcntl", `seal the size of the memory file '${name}'`);
    }
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return fd;
}

/**
 * True for a file that nobody can make shorter any more: only such a one is safe to map when another process has it too,
 * since an access behind a file's end kills. False for files that can't be sealed.
 */
export function isSealedAgainstShrinking(fd: number): boolean {
  const seals: number = fcntl()(fd, F_GET_SEALS, 0);
  return seals >= 0 && (seals & F_SEAL_SHRINK) !== 0;
}

let fcntlCall: ReturnType<typeof libc.func> | undefined;

function fcntl(): ReturnType<typeof libc.func> {
  fcntlCall ??= libc.func("fcntl", "int", ["int", "int", "long"]);
  return fcntlCall;
}

function failure(syscall: string, attempted: string): UapiError {
  return new UapiError(errnoName(lastErrno()), { syscall, attempted });
}
