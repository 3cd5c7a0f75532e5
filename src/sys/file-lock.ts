import { ERRNO, errnoName, UapiError } from "../uapi/errno.js";
import { lastErrno, libc } from "./libc.js";

const fcntlCall = libc.func("fcntl", "int", ["int", "int", "void *"]);

/** <asm-generic/fcntl.h>: locks that belong to the open file, not to the process. */
const F_OFD_SETLK = 37;
const F_WRLCK = 1;
const F_UNLCK = 2;

/** struct flock of 64-bit systems: l_type and l_whence (s16 each), then l_start, l_len (s64 each) and l_pid. */
const FLOCK_BYTES = 32;

/**
 * Locks a whole file for this open file alone (an open file description lock, fcntl(2)), which excludes everyone who asks
 * for such a lock, on any part of it: QEMU does for its disk images. Closing the descriptor unlocks.
 * @returns false where another has a lock
 * @throws UapiError EBADF for a file that is not open to write, ENOLCK
 */
export function lockFile(fd: number): boolean {
  if (setLock(fd, F_WRLCK)) return true;
  const errno = lastErrno();
  if (errno === ERRNO.EAGAIN || errno === ERRNO.EACCES) return false;
  throw failure(errno, `lock descriptor ${fd}'s file`);
}

/** Takes {@link lockFile}'s lock away; does nothing where there is none. @throws UapiError EBADF */
export function unlockFile(fd: number): void {
  if (!setLock(fd, F_UNLCK)) throw failure(lastErrno(), `unlock descriptor ${fd}'s file`);
}

function setLock(fd: number, type: number): boolean {
  const flock = new Uint8Array(FLOCK_BYTES);
  new DataView(flock.buffer).setInt16(0, type, true);
  return fcntlCall(fd, F_OFD_SETLK, flock) === 0;
}

function failure(errno: number, attempted: string): UapiError {
  return new UapiError(errnoName(errno), { syscall: "fcntl", attempted });
}
