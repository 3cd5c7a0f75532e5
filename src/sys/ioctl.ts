import { ERRNO, errnoName, UapiError } from "../uapi/errno.js";
import type { IoctlRequest } from "../uapi/ioctl.js";
import { lastErrno, libc } from "./libc.js";

const ioctlPointer = libc.func("ioctl", "int", ["int", "unsigned long", "void *"]);
const ioctlInteger = libc.func("ioctl", "int", ["int", "unsigned long", "uintptr_t"]);

/** What an ioctl takes: a structure in memory, or an integer by value. */
export type IoctlArgument = Uint8Array | number;

/**
 * ioctl(2), on this thread: for what returns at once. Returns the call's non-negative answer. The structure is read and
 * written in place.
 * @param attempted what is being done, with its arguments; called only on failure
 * @throws UapiError with the kernel's errno
 */
export function ioctl(fd: number, request: IoctlRequest, argument: IoctlArgument, attempted: () => string): number {
  const call = typeof argument === "number" ? ioctlInteger : ioctlPointer;
  for (;;) {
    const answer: number = call(fd, request.number, argument);
    if (answer >= 0) return answer;
    const error = failure(request, lastErrno(), attempted);
    if (error.code !== "EINTR") throw error;
  }
}

/**
 * ioctl(2) on this thread, of a structure by its address: the cheapest way, for a structure that its owner passes again
 * and again. Returns the call's non-negative answer, or minus the errno.
 */
export function ioctlAt(fd: number, request: IoctlRequest, address: number): number {
  for (;;) {
    const answer: number = ioctlInteger(fd, request.number, address);
    if (answer >= 0) return answer;
    const errno = lastErrno();
    if (errno !== ERRNO.EINTR) return -errno;
  }
}

/**
 * ioctl(2), on a thread of its own: for what takes longer than the 20 us that this costs, so that the event loop goes on.
 * The structure must not be touched until the promise settles; what it points to must be kept alive by the caller.
 * @throws UapiError with the kernel's errno
 */
export async function ioctlOnThread(
  fd: number,
  request: IoctlRequest,
  argument: Uint8Array,
  attempted: () => string,
): Promise<number> {
  for (;;) {
    const { answer, errno } = await new Promise<{ answer: number; errno: number }>((resolve, reject) => {
      ioctlPointer.async(fd, request.number, argument, (error: unknown, answer: number) => {
        // In the callback, errno is that of the call which it answers.
        if (error) reject(error);
        else resolve({ answer, errno: answer < 0 ? lastErrno() : 0 });
      });
    });
    if (answer >= 0) return answer;
    const error = failure(request, errno, attempted);
    if (error.code !== "EINTR") throw error;
  }
}

function failure({ name }: IoctlRequest, errno: number, attempted: () => string): UapiError {
  return new UapiError(errnoName(errno), { syscall: name, attempted: attempted() });
}
