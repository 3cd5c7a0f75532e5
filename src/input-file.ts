import { closeSync, constants, fstatSync, openSync, readSync, type Stats, statSync } from "node:fs";

/*
 * Files that a user names. Any path may be given: a device that never ends, a pipe that nobody writes to, a disk image. What
 * is no file is not opened (opening a device can have effects), what is too long is not read, and nothing waits for ever.
 */

/** How long a pipe's writer may say nothing; also until there is a writer. */
const SILENCE_MS = 5000;
/** Between two looks at a pipe that has nothing yet. */
const LOOK_AGAIN_MS = 5;

/**
 * Opens a regular file, or a pipe, for reading; the caller closes it. Reads never block (O_NONBLOCK).
 * @param pipes false for what is read more than once
 * @throws Error that says what is at the path instead, or the system's
 */
export function openInput(path: string, { pipes = true }: { pipes?: boolean } = {}): number {
  checkKind(statSync(path), pipes);
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    // Another thing may be there by now.
    checkKind(fstatSync(fd), pipes);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/**
 * The bytes of a regular file, or of a pipe until its end.
 * @param maxBytes of more than that nothing is kept
 * @throws Error with the reason as a clause: it is a folder, it has too many bytes, nothing came; or the system's
 */
export function readInput(path: string, maxBytes: number): Buffer {
  const fd = openInput(path);
  try {
    const { size } = fstatSync(fd);
    if (size > maxBytes) throw new Error(`it has ${size} bytes, and at most ${maxBytes} are read`);
    return readToEnd(fd, maxBytes);
  } finally {
    closeSync(fd);
  }
}

/** {@link readInput} of text: UTF-8, without control characters but tabs and line breaks. @throws Error likewise */
export function readTextInput(path: string, maxBytes: number): string {
  const bytes = readInput(path, maxBytes);
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
  throw new Error(`it is ${kind}; a regular file${pipes ? " or a pipe" : ""} is expected`);
}

/** Everything until the end. The size is no promise: a file may grow, a pipe has none, and /proc's files say 0. */
function readToEnd(fd: number, maxBytes: number): Buffer {
  const isPipe = fstatSync(fd).isFIFO();
  const pieces: Buffer[] = [];
  let bytes = 0;
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  for (let silentSince = performance.now(); ; ) {
    const piece = Buffer.allocUnsafe(Math.min(1 << 16, maxBytes + 1 - bytes));
    const read = readSome(fd, piece);
    if (read > 0) {
      pieces.push(piece.subarray(0, read));
      bytes += read;
      if (bytes > maxBytes) throw new Error(`it has more than ${maxBytes} bytes`);
      silentSince = performance.now();
      continue;
    }
    // A pipe that was never written to may have no writer yet; once something came, 0 is the end.
    if (read === 0 && !(isPipe && bytes === 0)) return Buffer.concat(pieces);
    if (performance.now() - silentSince > SILENCE_MS) {
      throw new Error(`nothing came from it for ${SILENCE_MS / 1000} seconds`);
    }
    Atomics.wait(sleeper, 0, 0, LOOK_AGAIN_MS);
  }
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
