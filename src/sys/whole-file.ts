import {
  closeSync,
  fsyncSync,
  linkSync,
  lstatSync,
  openSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { isAlive } from "./process-identity.js";

/*
 * Files that are whole or not there. write(2) may write less than it was given (a full disk, a limit on a file's size), and
 * a process may be killed at any moment: so a file is written under another name in its folder, flushed, and then named.
 */

/** How a file is made. */
export interface WholeFileOptions {
  /** Permissions, before the umask. Default: 0o666. */
  readonly mode?: number;
  /** Refuses with EEXIST if there is a file of that name; otherwise the file is replaced. */
  readonly exclusive?: boolean;
}

/** Writes all of the bytes, from `position` on, or at the file's offset. @throws the system's error, ENOSPC or EFBIG for example */
export function writeAll(fd: number, bytes: Uint8Array, position: number | null = null): void {
  for (let done = 0; done < bytes.length; ) {
    const written = writeSync(fd, bytes, done, bytes.length - done, position === null ? null : position + done);
    // A limit that lets not one byte through is an error on Linux; POSIX also allows 0.
    if (written === 0) throw new Error(`only ${done} of ${bytes.length} bytes could be written`);
    done += written;
  }
}

/**
 * Makes or replaces a file. When it returns, the file is on disk, whole; when it throws, what was there is as it was, and
 * nothing is left beside it. What isn't a regular file (a pipe, a terminal, /dev/null) is written to.
 * @throws the system's error
 */
export function writeWholeFile(path: string, content: string | Uint8Array, options: WholeFileOptions = {}): void {
  const { mode = 0o666, exclusive = false } = options;
  const bytes = typeof content === "string" ? Buffer.from(content) : content;
  const target = exclusive ? path : followed(path);
  if (!exclusive && lstatSync(target, { throwIfNoEntry: false })?.isFile() === false) {
    writeTo(openSync(target, "w"), bytes, false);
    return;
  }
  removeAbandoned(target);
  const temporary = temporaryName(target, process.pid);
  try {
    writeTo(openSync(temporary, "w", mode), bytes, true);
    if (exclusive) nameNew(temporary, target);
    else renameSync(temporary, target);
  } finally {
    rmSync(temporary, { force: true });
  }
  syncFolder(dirname(target));
}

/** Gives a file a name that no file has. @throws EEXIST */
function nameNew(temporary: string, target: string): void {
  try {
    linkSync(temporary, target);
  } catch (error) {
    // FAT, for one, has no hard links: there the name is taken first, by an empty file.
    if (!["EPERM", "ENOTSUP", "ENOSYS"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
    closeSync(openSync(target, "wx"));
    renameSync(temporary, target);
  }
}

/** Takes over the descriptor. */
function writeTo(fd: number, bytes: Uint8Array, flush: boolean): void {
  try {
    writeAll(fd, bytes);
    if (flush) fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** The names in a folder are on disk when it returns. */
function syncFolder(folder: string): void {
  const fd = openSync(folder, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Where a symbolic link leads, so that the file is replaced and not the link. */
function followed(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return path;
    throw error;
  }
}

function temporaryName(path: string, pid: number | string): string {
  return join(dirname(path), `.${basename(path)}.${pid}.tmp`);
}

/** Removes what writers of this file left behind that were killed. */
function removeAbandoned(path: string): void {
  const [before, after] = temporaryName(path, "\0").split("\0");
  const folder = dirname(path);
  for (const name of readdirSync(folder)) {
    const file = join(folder, name);
    if (!file.startsWith(before) || !file.endsWith(after)) continue;
    const pid = file.slice(before.length, -after.length);
    if (/^\d{1,10}$/.test(pid) && !isAlive(Number(pid))) rmSync(file, { force: true });
  }
}
