import { closeSync, readlinkSync, readSync, writeSync } from "node:fs";
import { errnoName, UapiError } from "../uapi/errno.js";
import { lastErrno, libc } from "./libc.js";

const eventfdCall = libc.func("int eventfd(unsigned int initval, int flags)");

/** Flags of eventfd(2): O_CLOEXEC and O_NONBLOCK of include/uapi/asm-generic/fcntl.h. */
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

/** True for an eventfd: a descriptor from a peer may be anything, and a write to a pipe that is full would block. */
export function isEventFd(fd: number): boolean {
  return readlinkSync(`/proc/self/fd/${fd}`) === "anon_inode:[eventfd]";
}

/** A counter with a descriptor (eventfd(2)): wakes who polls it, in this process, another, or the kernel. Closed once. */
export class EventFd implements Disposable {
  readonly fd: number;
  readonly #word = new BigUint64Array(1);
  #open = true;

  /** Takes over a descriptor that is an eventfd already: one that a peer has sent. */
  constructor(fd: number) {
    this.fd = fd;
  }

  /** @throws UapiError EMFILE … */
  static create(): EventFd {
    const fd: number = eventfdCall(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) throw new UapiError(errnoName(lastErrno()), { syscall: "eventfd", attempted: "make an eventfd" });
    return new EventFd(fd);
  }

  /** Adds 1: the descriptor is readable until {@link take}. Does nothing where the counter is at its limit. */
  signal(): void {
    this.add(1n);
  }

  /** Adds `count`, below 2^64 - 1. */
  add(count: bigint): void {
    this.#word[0] = count;
    try {
      writeSync(this.fd, this.#word);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
    }
  }

  /** The count since the last time, which becomes 0. */
  take(): bigint {
    try {
      readSync(this.fd, this.#word);
      return this.#word[0];
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EAGAIN") return 0n;
      throw error;
    }
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.fd);
  }
}
