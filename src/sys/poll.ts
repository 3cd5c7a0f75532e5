import { errnoName, UapiError } from "../uapi/errno.js";
import { struct } from "../uapi/struct.js";
import { lastErrno, libc } from "./libc.js";

const pollCall = libc.func("poll", "int", ["void *", "unsigned long", "int"]);

/** struct pollfd and its events, of include/uapi/asm-generic/poll.h. */
const pollfd = struct("pollfd", { fd: "s32", events: "u16", revents: "u16" });
export const POLLIN = 0x001;
export const POLLOUT = 0x004;
export const POLLERR = 0x008;
export const POLLHUP = 0x010;
export const POLLNVAL = 0x020;

/** Descriptors to wait for together (poll(2)). The set is made once and waited for often: a wait allocates nothing. */
export class PollSet {
  readonly #entries: Uint8Array;
  readonly #revents: Uint16Array;
  readonly #count: number;

  /** @param wanted a descriptor below 0 is left out of account */
  constructor(wanted: readonly { readonly fd: number; readonly events: number }[]) {
    this.#count = wanted.length;
    this.#entries = new Uint8Array(pollfd.size * wanted.length);
    for (const [index, entry] of wanted.entries()) pollfd.encode(entry, this.#entries, index * pollfd.size);
    this.#revents = new Uint16Array(this.#entries.buffer);
  }

  /** What happened to the descriptor at an index, at the last wait: POLLIN, POLLHUP … or 0. */
  events(index: number): number {
    return this.#revents[(index * pollfd.size + pollfd.offsetOf("revents")) / 2];
  }

  /**
   * Blocks this thread until one of the descriptors is ready, at most `timeoutMs`; returns how many are.
   * @throws UapiError
   */
  wait(timeoutMs: number): number {
    for (;;) {
      const ready: number = pollCall(this.#entries, this.#count, timeoutMs);
      if (ready >= 0) return ready;
      // A signal starts the wait anew; signals are few, so that the bound is kept well enough.
      this.#check(lastErrno());
    }
  }

  /** The same, on a thread of its own: the event loop goes on. */
  async waitOnThread(timeoutMs: number): Promise<number> {
    for (;;) {
      const { ready, errno } = await new Promise<{ ready: number; errno: number }>((resolve, reject) => {
        pollCall.async(this.#entries, this.#count, timeoutMs, (error: unknown, answer: number) => {
          if (error) reject(error);
          else resolve({ ready: answer, errno: answer < 0 ? lastErrno() : 0 });
        });
      });
      if (ready >= 0) return ready;
      this.#check(errno);
    }
  }

  #check(errno: number): void {
    const code = errnoName(errno);
    if (code !== "EINTR")
      throw new UapiError(code, { syscall: "poll", attempted: `wait for ${this.#count} descriptors` });
  }
}
