import { EventFd } from "../../sys/eventfd.js";
import { POLLIN, PollSet } from "../../sys/poll.js";

/** A wait is cut into pieces of this many milliseconds: a thread that waits in poll holds up the end of the process. */
const WAIT_MS = 1000;

/** A socket that is waited for. */
export interface Waited {
  readonly fd: number;
  /** POLLIN, and POLLOUT while there is something to send. */
  readonly events: number;
  /** Something happened to it. Must not throw, nor wait. */
  ready(): void;
}

/**
 * Waits for the sockets of all connections of this thread together, on one other thread: libuv has four, and a device
 * each would leave none for anything else.
 */
class Waiter {
  readonly #sockets = new Set<Waited>();
  #wake: EventFd | undefined;

  add(socket: Waited): void {
    this.#sockets.add(socket);
    if (this.#wake === undefined) void this.#run();
    else this.#wake.signal();
  }

  /** It is not waited for any more. The descriptor may be closed at once. */
  remove(socket: Waited): void {
    if (this.#sockets.delete(socket)) this.#wake?.signal();
  }

  /** What a socket is waited for has changed. */
  changed(): void {
    this.#wake?.signal();
  }

  async #run(): Promise<void> {
    const wake = EventFd.create();
    this.#wake = wake;
    try {
      while (this.#sockets.size > 0) {
        const sockets = [...this.#sockets];
        const set = new PollSet([{ fd: wake.fd, events: POLLIN }, ...sockets]);
        await set.waitOnThread(WAIT_MS);
        if (set.events(0) !== 0) wake.take();
        for (const [i, socket] of sockets.entries()) {
          if (set.events(i + 1) !== 0 && this.#sockets.has(socket)) socket.ready();
        }
      }
    } finally {
      this.#wake = undefined;
      wake[Symbol.dispose]();
    }
  }
}

export const waiter = new Waiter();
