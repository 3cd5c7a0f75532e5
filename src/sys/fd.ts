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
