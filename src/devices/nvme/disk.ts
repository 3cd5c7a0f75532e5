import { closeSync, fdatasyncSync, fstatSync, readSync, writeSync } from "node:fs";
import { UsageError } from "../../errors.js";
import { lockFile, unlockFile } from "../../sys/file-lock.js";
import { openRegularFile } from "../../sys/input-file.js";

/** Sizes of a logical block that a disk may have. */
export const BLOCK_BYTES = [512, 4096] as const;

interface DiskOptions {
  readonly within?: string | undefined;
  readonly incoming?: boolean;
}

/**
 * A disk's contents: a raw file, locked while the device may work, so that nobody else writes to it meanwhile. Calls are
 * synchronous: a device's thread has nothing better to do than to wait for its disk.
 */
export class Disk implements Disposable {
  readonly path: string;
  readonly blockBytes: number;
  readonly blocks: number;
  readonly #fd: number;
  #locked = false;
  /** Was written to since the last flush. */
  #dirty = false;

  /**
   * Opens the file.
   * @param options.within a folder that it must lie in, links followed
   * @param options.incoming it is the disk of a device that comes here with its contents elsewhere: an empty file is none
   * @throws UsageError `BAD_DISK_FILE` for a file that can't be read and written, or whose size is not a positive multiple
   * of the block size; `NOT_GRANTED`
   */
  constructor(path: string, blockBytes: number, options: DiskOptions = {}) {
    this.path = path;
    this.blockBytes = blockBytes;
    this.#fd = openDisk(path, options);
    const { size } = fstatSync(this.#fd);
    this.blocks = size / blockBytes;
    if (this.blocks >= 1 && Number.isInteger(this.blocks)) return;
    closeSync(this.#fd);
    throw badFile(`${path} has ${size} bytes`, `give a file of one or more blocks of ${blockBytes} bytes`);
  }

  /** Locks the file, if it isn't locked; false where another has a lock on it. */
  lock(): boolean {
    this.#locked ||= lockFile(this.#fd);
    return this.#locked;
  }

  /** The device stops: what it wrote is made durable, and who opens the file next may have it. */
  unlock(): void {
    if (!this.#locked) return;
    this.flush();
    unlockFile(this.#fd);
    this.#locked = false;
  }

  /** Reads into a buffer's first bytes. False where it can't: the file has become shorter, the medium fails. */
  read(block: number, into: Uint8Array, bytes: number): boolean {
    return this.#whole(bytes, (done) => readSync(this.#fd, into, done, bytes - done, block * this.blockBytes + done));
  }

  /** Writes a buffer's first bytes. False where it can't: no space is left, the medium fails. */
  write(block: number, from: Uint8Array, bytes: number): boolean {
    this.#dirty = true;
    return this.#whole(bytes, (done) => writeSync(this.#fd, from, done, bytes - done, block * this.blockBytes + done));
  }

  /** Makes what was written durable. False where it can't. */
  flush(): boolean {
    if (!this.#dirty) return true;
    try {
      fdatasyncSync(this.#fd);
      this.#dirty = false;
      return true;
    } catch {
      return false;
    }
  }

  /** Closes the file, and with it unlocks. */
  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  /** A call may do less than it was asked for. */
  #whole(bytes: number, call: (done: number) => number): boolean {
    try {
      for (let done = 0; done < bytes; ) {
        const more = call(done);
        if (more === 0) return false;
        done += more;
      }
      return true;
    } catch {
      return false;
    }
  }
}

/** The error for a file that another has locked. */
export function lockedFile(path: string): UsageError {
  return new UsageError(`${path} is locked: another server or VMM uses it`, {
    code: "DISK_LOCKED",
    remedy: "stop that one, or give another file; a server that its device is to be migrated to takes --incoming",
  });
}

function openDisk(path: string, { within, incoming = false }: DiskOptions): number {
  try {
    return openRegularFile(path, { write: true, within });
  } catch (cause) {
    if (cause instanceof UsageError) {
      if (cause.code !== "NOT_A_FILE") throw cause;
      throw badFile(`${path}: ${cause.message}`, "give a raw disk image");
    }
    const { code } = cause as NodeJS.ErrnoException;
    const remedy =
      code !== "ENOENT"
        ? "give a file that you may write to"
        : incoming
          ? "give the source's file: disks' contents are not migrated, so both sides must reach it"
          : "make it first: truncate -s 1G FILE";
    throw badFile(`${path} can't be opened: ${code}`, remedy, cause);
  }
}

function badFile(message: string, remedy: string, cause?: unknown): UsageError {
  return new UsageError(message, { code: "BAD_DISK_FILE", remedy, cause });
}
