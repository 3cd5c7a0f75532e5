import { closeSync } from "node:fs";
import { DirtmapError } from "../errors.js";
import type { UnixSocket } from "../sys/unix-socket.js";
import {
  VFIO_USER_F_ERROR,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE,
  VFIO_USER_F_TYPE_COMMAND,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_header,
} from "../uapi/vfio-user.js";

/** Bytes before a message's payload. */
export const HEADER_BYTES = vfio_user_header.size;

/** Messages up to this size are put together in one place again and again; larger ones get memory of their own. */
const SMALL_BYTES = 65536;

/** Bytes that wait for a peer that does not read; above, it counts as gone. */
const MAX_UNSENT_BYTES = 64 * 2 ** 20;

/** A message as it came. */
export interface Message {
  readonly id: number;
  readonly command: number;
  readonly isReply: boolean;
  readonly noReply: boolean;
  /** Of a reply: an errno, 0 where it was no error; -1 for an error without a number. */
  readonly error: number;
  /** Valid until the next {@link MessageSocket.receive}. */
  readonly payload: Uint8Array;
  /** Descriptors that came along; who takes one replaces it by -1, and what is left is closed by {@link closeFds}. */
  readonly fds: number[];
}

/** Closes the descriptors that nobody took. */
export function closeFds(fds: number[]): void {
  for (const fd of fds.splice(0)) if (fd >= 0) closeSync(fd);
}

/**
 * vfio-user messages over a socket: whole ones in, with the descriptors that came with them; whole ones out, in order.
 * Nothing here waits: who uses it polls the socket for POLLIN, and for POLLOUT while {@link unsent}.
 */
export class MessageSocket implements Disposable {
  readonly #socket: UnixSocket;
  /** What was received and not yet handed out lies in [start, end). */
  readonly #buffer: Uint8Array;
  readonly #view: DataView;
  #start = 0;
  #end = 0;
  /** Descriptors by the offset of the message that they came with, ascending. */
  #fds: { readonly at: number; readonly fds: number[] }[] = [];
  readonly #small = new Uint8Array(SMALL_BYTES);
  #unsent: { readonly data: Uint8Array; at: number; readonly fds: readonly number[] }[] = [];
  #unsentBytes = 0;

  /** @param maxPayload bytes of the largest message to take, without its header */
  constructor(socket: UnixSocket, maxPayload: number) {
    this.#socket = socket;
    this.#buffer = new Uint8Array(HEADER_BYTES + maxPayload);
    this.#view = new DataView(this.#buffer.buffer);
  }

  get fd(): number {
    return this.#socket.fd;
  }

  /** True while there is more to send than the peer has taken. */
  get unsent(): boolean {
    return this.#unsent.length > 0;
  }

  /**
   * The next message; undefined where none is whole yet; `closed` at the end of the stream.
   * @throws DirtmapError `PROTOCOL` for a header that can't be: the connection is of no more use; UapiError of the socket
   */
  receive(): Message | undefined | "closed" {
    for (;;) {
      const message = this.#take();
      if (message !== undefined) return message;
      if (this.#start > 0) this.#compact();
      const fds: number[] = [];
      const bytes = this.#socket.receive(this.#buffer, this.#end, fds);
      if (bytes === -1) return undefined;
      if (bytes === 0) return "closed";
      this.#end += bytes;
      if (fds.length > 0) this.#fds.push({ at: this.#lastBegun(), fds });
    }
  }

  /**
   * Sends a message, or keeps a copy of what the peer has not taken. Descriptors must stay open until
   * nothing is {@link unsent}.
   * @throws DirtmapError `PEER_STUCK` for a peer that has left too much unread; UapiError EPIPE …
   */
  send(
    { id, command, flags, error = 0 }: { id: number; command: number; flags: number; error?: number },
    payload: Uint8Array | null,
    fds: readonly number[] = [],
  ): void {
    const size = HEADER_BYTES + (payload?.byteLength ?? 0);
    const data = size <= SMALL_BYTES ? this.#small : new Uint8Array(size);
    vfio_user_header.encode({ msg_id: id, cmd: command, msg_size: size, flags, error }, data);
    if (payload !== null) data.set(payload, HEADER_BYTES);
    const at = this.unsent ? 0 : this.#socket.send(data, 0, size, fds);
    if (at === size) return;
    this.#unsent.push({ data: data.slice(0, size), at, fds });
    this.#unsentBytes += size - at;
    if (this.#unsentBytes > MAX_UNSENT_BYTES) {
      throw new DirtmapError(`the peer has left ${this.#unsentBytes} bytes unread`, { code: "PEER_STUCK" });
    }
  }

  sendCommand(command: number, id: number, payload: Uint8Array | null, fds: readonly number[] = []): void {
    this.send({ id, command, flags: VFIO_USER_F_TYPE_COMMAND }, payload, fds);
  }

  sendReply({ id, command }: Message, payload: Uint8Array | null, fds: readonly number[] = []): void {
    this.send({ id, command, flags: VFIO_USER_F_TYPE_REPLY }, payload, fds);
  }

  /** An error is a header alone. */
  sendError({ id, command }: Message, errno: number): void {
    this.send({ id, command, flags: VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR, error: errno }, null);
  }

  /** Sends what is unsent, as far as the peer takes it. */
  flush(): void {
    for (let first = this.#unsent.at(0); first !== undefined; first = this.#unsent.at(0)) {
      const sent = this.#socket.send(first.data, first.at, first.data.byteLength, first.at === 0 ? first.fds : []);
      first.at += sent;
      this.#unsentBytes -= sent;
      if (first.at < first.data.byteLength) return;
      this.#unsent.shift();
    }
  }

  [Symbol.dispose](): void {
    for (const { fds } of this.#fds) closeFds(fds);
    this.#fds = [];
    this.#unsent = [];
    this.#socket[Symbol.dispose]();
  }

  #take(): Message | undefined {
    const at = this.#start;
    const size = this.#sizeAt(at);
    if (size === undefined || this.#end - at < size) return undefined;
    const header = vfio_user_header.decode(this.#buffer, at);
    const type = header.flags & VFIO_USER_F_TYPE;
    if (type !== VFIO_USER_F_TYPE_COMMAND && type !== VFIO_USER_F_TYPE_REPLY) {
      throw new DirtmapError(`a message of type ${type}`, { code: "PROTOCOL" });
    }
    this.#start = at + size;
    const failed = (header.flags & VFIO_USER_F_ERROR) !== 0;
    return {
      id: header.msg_id,
      command: header.cmd,
      isReply: type === VFIO_USER_F_TYPE_REPLY,
      noReply: (header.flags & VFIO_USER_F_NO_REPLY) !== 0,
      error: failed ? header.error || -1 : 0,
      payload: this.#buffer.subarray(at + HEADER_BYTES, this.#start),
      fds: this.#fdsAt(at),
    };
  }

  /** The size that a message's header says; undefined where the header is not whole. */
  #sizeAt(at: number): number | undefined {
    if (this.#end - at < HEADER_BYTES) return undefined;
    const size = this.#view.getUint32(at + vfio_user_header.offsetOf("msg_size"), true);
    if (size >= HEADER_BYTES && size <= this.#buffer.byteLength) return size;
    throw new DirtmapError(`a message of ${size} bytes`, {
      code: "PROTOCOL",
      remedy: `a message has ${HEADER_BYTES} to ${this.#buffer.byteLength} bytes`,
    });
  }

  /** Where the last message begins of which anything has come: descriptors of the last read are its. */
  #lastBegun(): number {
    let at = this.#start;
    for (;;) {
      const size = this.#sizeAt(at);
      if (size === undefined || at + size >= this.#end) return at;
      at += size;
    }
  }

  #fdsAt(at: number): number[] {
    const fds: number[] = [];
    while (this.#fds.length > 0 && this.#fds[0].at <= at) fds.push(...(this.#fds.shift()?.fds ?? []));
    return fds;
  }

  /** Moves what waits to the buffer's start, so that the largest message has room. */
  #compact(): void {
    this.#buffer.copyWithin(0, this.#start, this.#end);
    this.#fds = this.#fds.map(({ at, fds }) => ({ at: at - this.#start, fds }));
    this.#end -= this.#start;
    this.#start = 0;
  }
}
