import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readlinkSync,
  readSync,
  realpathSync,
  type Stats,
  statSync,
} from "node:fs";
import { resolve, sep } from "node:path";
import { UsageError } from "../errors.js";

/*
 * Files that a user, or a peer, names. Any path may be given: a device that never ends, a pipe that nobody writes to, a disk
 * image. What is no file is not opened (opening a device can have effects), what is too long is not read, and nothing waits
 * for ever.
 */

/** How long a pipe's writer may say nothing; also until there is a writer. */
const SILENCE_MS = 5000;
/** Between two looks at a pipe that has nothing yet. */
const LOOK_AGAIN_MS = 5;

/** How {@link openRegularFile} opens. */
export interface RegularFileOptions {
  /** Default: for reading alone. */
  readonly write?: boolean;
  /** A folder that the file must lie in, all links followed; absent: it may lie anywhere. */
  readonly within?: string | undefined;
}

/**
 * Opens a file with contents, which may be read more than once. Reads never block (O_NONBLOCK).
 *
 * With `within`, where the opened file lies is asked of its descriptor: nobody can put a link in the way in between. All
 * refusals then read the same, so that they don't tell what exists outside of the folder.
 * @returns its descriptor, which is the caller's
 * @throws UsageError `NOT_A_FILE`, which says as a clause what is at the path instead; `NOT_GRANTED` with `within`; the
 * system's error without
 */
export function openRegularFile(path: string, { write = false, within }: RegularFileOptions = {}): number {
  if (within === undefined) return open(path, { write });
  try {
    if (!isInside(resolve(within), resolve(path))) throw new Error("its name is of another folder");
    const fd = open(path, { write });
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

/**
 * The first bytes of a regular file, or of a pipe, which can be read only once: all where there are fewer.
 * @throws Error with the reason as a clause: it is a folder, nothing came; or the system's
 */
export function readStart(path: string, maxBytes: number): Buffer {
  const fd = open(path, { pipes: true });
  try {
    return readUpTo(fd, maxBytes);
  } finally {
    closeSync(fd);
  }
}

/**
 * The bytes of a regular file, or of a pipe until its end.
 * @param maxBytes of more than that nothing is kept
 * @throws Error as {@link readStart}; also for a file that has too many bytes
 */
export function readInput(path: string, maxBytes: number): Buffer {
  const fd = open(path, { pipes: true });
  try {
    const { size } = fstatSync(fd);
    if (size > maxBytes) throw new Error(`it has ${size} bytes, and at most ${maxBytes} are read`);
    const bytes = readUpTo(fd, maxBytes + 1);
    if (bytes.length > maxBytes) throw new Error(`it has more than ${maxBytes} bytes`);
    return bytes;
  } finally {
    closeSync(fd);
  }
}

/** {@link readInput} of text. @throws Error likewise, and as {@link decodeText} */
export function readTextInput(path: string, maxBytes: number): string {
  return decodeText(readInput(path, maxBytes));
}

/** Text in UTF-8, without control characters but tabs and line breaks. @throws Error with the reason as a clause */
export function decodeText(bytes: Uint8Array): string {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("it is no text (UTF-8)");
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  if (/[\0-\x08\x0e-\x1f\x7f]/.test(text)) throw new Error("it is no text: it has control characters");
  return text;
}

function open(path: string, { write = false, pipes = false }: { write?: boolean; pipes?: boolean }): number {
  checkKind(statSync(path), pipes);
  // Should it be something else by now, the open does not wait, and makes no terminal the process's own.
  const fd = openSync(
    path,
    (write ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK | constants.O_NOCTTY,
  );
  try {
    checkKind(fstatSync(fd), pipes);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function isInside(folder: string, path: string): boolean {
  return path.startsWith(folder.endsWith(sep) ? folder : `${folder}${sep}`);
}

function checkKind(stat: Stats, pipes: boolean): void {
  if (stat.isFile() || (pipes && stat.isFIFO())) return;
  const kind = stat.isDirectory()
    ? "a folder"
    : stat.isFIFO()
      ? "a pipe"
      : stat.isSocket()
        ? "a socket"
        : stat.isBlockDevice() || stat.isCharacterDevice()
          ? "a device"
          : "no file";
  throw new UsageError(`it is ${kind}; a regular file${pipes ? " or a pipe" : ""} is expected`, { code: "NOT_A_FILE" });
}

/** All until the end, or the limit. The size is no promise: a file may grow, a pipe has none, and /proc's files say 0. */
function readUpTo(fd: number, maxBytes: number): Buffer {
  const isPipe = fstatSync(fd).isFIFO();
  const pieces: Buffer[] = [];
  let bytes = 0;
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  for (let silentSince = performance.now(); bytes < maxBytes; ) {
    const piece = Buffer.allocUnsafe(Math.min(1 << 16, maxBytes - bytes));
    const read = readSome(fd, piece);
    if (read > 0) {
      pieces.push(piece.subarray(0, read));
      bytes += read;
      silentSince = performance.now();
      continue;
    }
    // A pipe that was never written to may have no writer yet; once something came, 0 is the end.
    if (read === 0 && !(isPipe && bytes === 0)) break;
    if (performance.now() - silentSince > SILENCE_MS) {
      throw new Error(`nothing came from it for ${SILENCE_MS / 1000} seconds`);
    }
    Atomics.wait(sleeper, 0, 0, LOOK_AGAIN_MS);
  }
  return Buffer.concat(pieces);
}

/** Bytes read; 0: the end, or no writer; -1: nothing yet. */
function readSome(fd: number, into: Buffer): number {
  try {
    return readSync(fd, into);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EAGAIN") return -1;
    throw error;
  }
}
