import { closeSync } from "node:fs";
import { EventFd, isEventFd } from "../../sys/eventfd.js";
import { dup } from "../../sys/fd.js";
import { POLLOUT, PollSet } from "../../sys/poll.js";
import type { Caller } from "../client/connection.js";
import { nameOf } from "../server/rights.js";

interface Owed {
  readonly command: number;
  readonly payload: Uint8Array;
  readonly fds: readonly number[];
}

/**
 * Commands that a server refuses while its device is stopped, and that are done as soon as it is not. libvfio-user takes no
 * interrupts, and lets go of no memory, in STOP and STOP_COPY, when QEMU restores its own part of a device that was moved.
 *
 * An interrupt that the device raised before its eventfd was there is lost. So each eventfd is signalled once after it was set:
 * drivers bear an interrupt too many.
 */
export class OwedCommands implements Disposable {
  #owed: Owed[] = [];

  get count(): number {
    return this.#owed.length;
  }

  /** @param fds stay the caller's */
  add(command: number, payload: Uint8Array, fds: readonly number[] = []): void {
    this.#owed.push({ command, payload, fds: fds.map(dup) });
  }

  /** Does them, in order. @param failed is told what could not be done */
  async pay(commands: Caller, failed: (what: string, error: unknown) => void): Promise<void> {
    const owed = this.#owed;
    this.#owed = [];
    for (const { command, payload, fds } of owed) {
      try {
        await commands.call(command, nameOf(command), payload, fds);
        for (const fd of fds) signal(fd);
      } catch (error) {
        failed(nameOf(command), error);
      } finally {
        for (const fd of fds) closeSync(fd);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const { fds } of this.#owed.splice(0)) for (const fd of fds) closeSync(fd);
  }
}

/** One whose counter is at its limit is signalled already, and would block, as could what is no eventfd. */
function signal(fd: number): void {
  if (!isEventFd(fd) || new PollSet([{ fd, events: POLLOUT }]).wait(0) === 0) return;
  new EventFd(fd).signal();
}
