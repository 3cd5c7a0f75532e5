import { errnoName, UapiError } from "../uapi/errno.js";
import { lastErrno, libc } from "./libc.js";

const dupCall = libc.func("int dup(int fd)");
/**
 * A second descriptor of the same open file or socket (dup(2)). The caller owns it; closing either leaves the other.
 * @throws UapiError EBADF, EMFILE
 */
export function dup(fd: number): number {
  const copy: number = dupCall(fd);
  if (copy < 0) {
    throw new UapiError(errnoName(lastErrno()), { syscall: "dup", attempted: `duplicate descriptor ${fd}` });
  }
  return copy;
}

const fcntlCall = libc.func("int fcntl(int fd, int cmd, ...)");

/** Commands and flags of include/uapi/asm-generic/fcntl.h. */
const F_GETFL = 3;
const F_SETFL = 4;
const O_ACCMODE = 3;
const O_RDWR = 2;
const O_NONBLOCK = 0o4000;

/** True for a file that was opened to be read and written. */
export function mayWrite(fd: number): boolean {
  const flags: number = fcntlCall(fd, F_GETFL);
  return flags >= 0 && (flags & O_ACCMODE) === O_RDWR;
}

/**
 * Makes reads and writes of a descriptor's open file answer EAGAIN instead of waiting (fcntl(2), O_NONBLOCK).
 * @throws UapiError EBADF …
 */
export function setNonBlocking(fd: number): void {
  const flags: number = fcntlCall(fd, F_GETFL);
  if (flags >= 0 && fcntlCall(fd, F_SETFL, "int", flags | O_NONBLOCK) >= 0) return;
  throw new UapiError(errnoName(lastErrno()), { syscall: "fcntl", attempted: `make descriptor ${fd} non-blocking` });
}
