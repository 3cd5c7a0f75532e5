import { closeSync, constants, fstatSync, openSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { resolve, sep } from "node:path";
import { UsageError } from "../errors.js";

/** How {@link openRegularFile} opens. */
export interface RegularFileOptions {
  /** Default: for reading alone. */
  readonly write?: boolean;
  /** A folder that the file must lie in, all links followed; absent: it may lie anywhere. */
  readonly within?: string | undefined;
}

/**
 * Opens a file with contents: no device node, whose opening may have effects, and no FIFO, at which it may wait for ever.
 *
 * With `within`, where the opened file lies is asked of its descriptor: nobody can put a link in the way in between. All
 * refusals then read the same, so that they don't tell what exists outside of the folder.
 * @returns its descriptor, which is the caller's
 * @throws UsageError `NOT_A_FILE`; `NOT_GRANTED` with `within`; the system's error without
 */
export function openRegularFile(path: string, { write = false, within }: RegularFileOptions = {}): number {
  if (within === undefined) return open(path, write);
  try {
    if (!isInside(resolve(within), resolve(path))) throw new Error("its name is of another folder");
    const fd = open(path, write);
    try {
      // What the system knows of a descriptor, where the name may be another file's by now.
      const real = readlinkSync(`/proc/self/fd/${fd}`);
      if (!isInside(realpathSync(within), real)) throw new Error("a link leads out of the folder");
      return fd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  } catch (cause) {
    throw new UsageError(`'${path}' is no file that may be opened here`, {
      code: "NOT_GRANTED",
      remedy: "put the file into the folder that was named for it, and let this user open it",
      cause,
    });
  }
}

function open(path: string, write: boolean): number {
  checkRegular(path, statSync(path));
  // Should it be something else by now, the open does not wait, and makes no terminal the process's own.
  const fd = openSync(
    path,
    (write ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK | constants.O_NOCTTY,
  );
  try {
    checkRegular(path, fstatSync(fd));
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function checkRegular(path: string, stat: { isFile(): boolean }): void {
  if (stat.isFile()) return;
  throw new UsageError(`${path} is not a regular file`, { code: "NOT_A_FILE", remedy: "name a file with contents" });
}

function isInside(folder: string, path: string): boolean {
  return path.startsWith(folder.endsWith(sep) ? folder : `${folder}${sep}`);
}
