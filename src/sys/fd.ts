import { DirtmapError } from "../errors.js";
import { lastErrno, libc } from "./libc.js";

const dupCall = libc.func("int dup(int fd)");

/**
 * A second descriptor of the same open file or socket (dup(2)). The caller owns it; closing either leaves the other.
 * @throws DirtmapError `SYSCALL_FAILED`
 */
export function dup(fd: number): number {
  const copy: number = dupCall(fd);
  if (copy < 0) {
    throw new DirtmapError(`dup(${fd}) failed with errno ${lastErrno()}`, { code: "SYSCALL_FAILED" });
  }
  return copy;
}
