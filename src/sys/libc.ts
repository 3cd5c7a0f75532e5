import koffi from "koffi";

/**
 * The C library of this process. Node is linked with it, so no name of a file is needed, on Linux and macOS alike.
 * Everything that calls the system past Node lies in this folder.
 */
export const libc = koffi.load(null);

/** The error number of the last call into {@link libc} on this thread. */
export function lastErrno(): number {
  return koffi.errno();
}
