import { closeSync } from "node:fs";
import { POLLIN, POLLOUT, PollSet } from "../../src/sys/poll.js";
import { connectTo, type UnixSocket } from "../../src/sys/unix-socket.js";
import { vfio_user_header } from "../../src/uapi/vfio-user.js";

export const HEADER_BYTES = vfio_user_header.size;

/** No answer of a server is longer: a bitmap of 64 MiB, and what is before it. */
const MAX_MESSAGE = 65 * 2 ** 20;
const FIRST_BUFFER = 2 ** 16;

/** A server that neither takes nor says anything for this long hangs. */
export const HANG_MS = 15_000;

export interface Received {
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly error: number;
  /** Valid until the next one is received. */
  readonly payload: Uint8Array;
  readonly fds: readonly number[];
}

/** One end of a connection that sends any bytes there are, right or wrong. Its calls block, each for a bounded time. */
export class FuzzConnection implements Disposable {
  readonly #socket: UnixSocket;
  readonly #readable: PollSet;
  readonly #both: PollSet;
  #buffer = new Uint8Array(FIRST_BUFFER);
  #start = 0;
  #end = 0;
  #fds: number[] = [];
  #isClosed = false;
  #lastId = 0;

  constructor(socket: UnixSocket) {
    this.#socket = socket;
    this.#readable = new PollSet([{ fd: socket.fd, events: POLLIN }]);
    this.#both = new PollSet([{ fd: socket.fd, events: POLLIN | POLLOUT }]);
  }

  /** @throws UapiError ENOENT, ECONNREFUSED, EAGAIN */
  static connect(path: string): FuzzConnection {
    return new FuzzConnection(connectTo(path));
  }

  /** To be polled; -1 after its end. */
  get fd(): number {
    return this.#isClosed ? -1 : this.#socket.fd;
  }

  /** For the next message: none that is under way has it. */
  takeId(): number {
    this.#lastId = (this.#lastId + 1) & 0xffff;
    return this.#lastId;
  }

  /** The server has closed it, and everything that it said before was received. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /**
   * Sends all of it; what comes meanwhile is kept. Nothing happens where the server has closed the connection.
   * @param meanwhile called while the server does not read: it may wait for an answer on another socket
   * @throws Error where the server does not read
   */
  send(bytes: Uint8Array, fds: readonly number[] = [], meanwhile: () => void = () => {}): void {
    let pending = fds;
    const until = performance.now() + HANG_MS;
    for (let at = 0; at < bytes.byteLength; ) {
      try {
        const sent = this.#socket.send(bytes, at, bytes.byteLength, pending);
        at += sent;
        if (sent > 0) pending = [];
        if (at === bytes.byteLength) return;
      } catch {
        // EPIPE, ECONNRESET: what the server said before can still be read.
        return;
      }
      if (performance.now() > until) throw new Error("the server does not read");
      // It reads no more until its answers are taken.
      this.#fill();
      meanwhile();
      this.#both.wait(100);
    }
  }

  /** The next message; undefined where none is there, or at the end. */
  receive(): Received | undefined {
    for (;;) {
      const message = this.#buffered();
      if (message !== undefined) return message;
      if (!this.#fill()) return undefined;
    }
  }

  /** Waits for something to come, at most `limitMs`. */
  wait(limitMs: number): void {
    this.#readable.wait(limitMs);
  }

  /** Also more than once. */
  [Symbol.dispose](): void {
    this.#dropFds();
    this.#isClosed = true;
    this.#socket.shutdown();
    this.#socket[Symbol.dispose]();
  }

  #buffered(): Received | undefined {
    const there = this.#end - this.#start;
    if (there < HEADER_BYTES) return undefined;
    const { msg_id, cmd, msg_size, flags, error } = vfio_user_header.decode(this.#buffer, this.#start);
    if (msg_size < HEADER_BYTES || msg_size > MAX_MESSAGE)
      throw new Error(`the server sent a message of ${msg_size} bytes`);
    if (there < msg_size) {
      if (msg_size > this.#buffer.byteLength) this.#grow(msg_size);
      return undefined;
    }
    const payload = this.#buffer.subarray(this.#start + HEADER_BYTES, this.#start + msg_size);
    this.#start += msg_size;
    const fds = this.#fds;
    this.#fds = [];
    return { id: msg_id, command: cmd, flags, error, payload, fds };
  }

  /** Reads what is there; false: nothing. */
  #fill(): boolean {
    if (this.#isClosed) return false;
    if (this.#start === this.#end) this.#start = this.#end = 0;
    if (this.#end === this.#buffer.byteLength) {
      if (this.#start === 0) this.#grow(this.#buffer.byteLength * 2);
      else {
        this.#buffer.copyWithin(0, this.#start, this.#end);
        this.#end -= this.#start;
        this.#start = 0;
      }
    }
    let bytes: number;
    try {
      bytes = this.#socket.receive(this.#buffer, this.#end, this.#fds);
    } catch {
      // ECONNRESET: it has closed with something of ours unread.
      bytes = 0;
    }
    if (bytes === -1) return false;
    if (bytes === 0) {
      this.#isClosed = true;
      return false;
    }
    this.#end += bytes;
    return true;
  }

  #grow(bytes: number): void {
    const larger = new Uint8Array(bytes);
    larger.set(this.#buffer.subarray(this.#start, this.#end));
    this.#buffer = larger;
    this.#end -= this.#start;
    this.#start = 0;
  }

  #dropFds(): void {
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }
}
