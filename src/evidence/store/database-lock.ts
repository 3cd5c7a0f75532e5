import { closeSync, constants, openSync } from "node:fs";

/*
 * The lock that the store is used under. An open file holds it, so the system gives it back when the process ends,
 * however it ends; SQLite's own lock is, in this binding, a folder that a killed process leaves behind.
 */

/** Between two tries to get the lock. */
const TRY_AGAIN_MS = 5;

/** <sys/fcntl.h> of macOS and the BSDs: open(2) takes a flock(2) lock as well, or fails with EAGAIN. Node has no name for it. */
const O_EXLOCK = 0x20;

// Only Linux has open file description locks with these numbers, and only there are system calls made.
const ofd = process.platform === "linux" ? await import("../../sys/file-lock.js") : undefined;

/**
 * Locks a database's file, which is made, for its owner alone, where there is none. On Linux it is a lock on the whole
 * file, which SQLite's own programs respect. The calling thread sleeps while another has it; disposing gives it back.
 * @returns null where another still has it after `waitMs`
 * @throws NodeJS.ErrnoException where the file can't be opened for writing
 */
export function lockDatabase(path: string, waitMs: number): Disposable | null {
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  for (const until = performance.now() + waitMs; ; ) {
    const fd = openLocked(path);
    if (fd !== null) return { [Symbol.dispose]: () => closeSync(fd) };
    if (performance.now() >= until) return null;
    Atomics.wait(sleeper, 0, 0, TRY_AGAIN_MS);
  }
}

/** Null where another has the lock. */
function openLocked(path: string): number | null {
  const { O_RDWR, O_CREAT, O_NONBLOCK } = constants;
  if (ofd === undefined) {
    try {
      return openSync(path, O_RDWR | O_CREAT | O_NONBLOCK | O_EXLOCK, 0o600);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EAGAIN") return null;
      throw error;
    }
  }
  const fd = openSync(path, O_RDWR | O_CREAT, 0o600);
  try {
    if (ofd.lockFile(fd)) return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  closeSync(fd);
  return null;
}
