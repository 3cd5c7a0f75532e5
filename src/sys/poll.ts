import { errnoName, UapiError } from "../uapi/errno.js";
import { struct } from "../uapi/struct.js";
import { lastErrno, libc } from "./libc.js";

const pollCall = libc.func("poll", "int", ["void *", "unsigned long", "int"]);

/** struct pollfd and its events, of include/uapi/asm-generic/poll.h. */
const pollfd = struct("pollfd", { fd: "s32", events: "u16", revents: "u16" });
const FD = pollfd.offsetOf("fd");
const EVENTS = pollfd.offsetOf("events");
const REVENTS = pollfd.offsetOf("revents");
export const POLLIN = 0x001;
export const POLLOUT = 0x004;
export const POLLERR = 0x008;
export const POLLHUP = 0x010;
export const POLLNVAL = 0x020;

/** Descriptors to wait for together (poll(2)). The set is made once and waited for often: a wait allocates nothing. */
export class PollSet {
  readonly #entries: Uint8Array;
  readonly #view: DataView;
  readonly #count: number;

  /** @param wanted a descriptor below 0 is left out of account */
  constructor(wanted: readonly { readonly fd: number; readonly events: number }[]) {
    this.#count = wanted.length;
    this.#entries = new Uint8Array(pollfd.size * wanted.length);
    for (const [index, entry] of wanted.entries()) pollfd.encode(entry, this.#entries, index * pollfd.size);
    this.#view = new DataView(this.#entries.buffer);
  }

  /** Waits for something else at an index from now on; an fd below 0 for nothing. Costs next to nothing where it is the same. */
  change(index: number, fd: number, events: number): void {
    const at = index * pollfd.size;
    if (this.#view.getInt32(at + FD, true) === fd && this.#view.getUint16(at + EVENTS, true) === events) return;
    this.#view.setInt32(at + FD, fd, true);
    this.#view.setUint16(at + EVENTS, events, true);
    this.#view.setUint16(at + REVENTS, 0, true);
  }

  /** What happened to the descriptor at an index, at the last wait: POLLIN, POLLHUP … or 0. */
  events(index: number): number {
    return this.#view.getUint16(index * pollfd.size + REVENTS, true);
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
