import { closeSync } from "node:fs";
import { DirtmapError } from "../errors.js";
import { MAX_FDS, type UnixSocket } from "../sys/unix-socket.js";
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

/** Messages up to this size are put together in one place again and again. */
const SMALL_BYTES = 65536;
/** Memory for larger messages is kept for the next one, up to this size. */
const KEPT_BYTES = 8 * 2 ** 20;

/**
 * Of a message that is larger than {@link SMALL_BYTES}, what is sent at once, waiting for the peer to take it: one that
 * reads it does so in no time, and a poll for each part that fits the socket takes longer than that.
 */
const AT_ONCE_BYTES = 4 * 2 ** 20;

/** Bytes that wait for a peer that does not read; above, it counts as gone. */
const MAX_UNSENT_BYTES = 128 * 2 ** 20;

const ID = vfio_user_header.offsetOf("msg_id");
const COMMAND = vfio_user_header.offsetOf("cmd");
const SIZE = vfio_user_header.offsetOf("msg_size");
const FLAGS = vfio_user_header.offsetOf("flags");
const ERROR = vfio_user_header.offsetOf("error");

/** All that a reply can have. */
const REPLY_FLAGS = VFIO_USER_F_TYPE | VFIO_USER_F_ERROR;

const NO_FDS: readonly number[] = [];
/** Of a message that came without: nothing is ever put there. */
const CAME_WITHOUT: number[] = [];

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

/** A message with a copy of its payload, which the next {@link MessageSocket.receive} leaves alone. It can be passed on as well. */
export function keptMessage(message: Message): Message {
  const { payload } = message;
  const frame = payload.buffer.slice(payload.byteOffset - HEADER_BYTES, payload.byteOffset + payload.byteLength);
  return { ...message, payload: new Uint8Array(frame, HEADER_BYTES) };
}

/** Closes the descriptors that nobody took. */
export function closeFds(fds: number[]): void {
  if (fds.length > 0) for (const fd of fds.splice(0)) if (fd >= 0) closeSync(fd);
}

/**
 * vfio-user messages over a socket: whole ones in, with the descriptors that came with them; whole ones out, in order.
 * Nothing here waits: who uses it polls the socket for POLLIN, and for POLLOUT while {@link unsent}.
 *
 * A payload can be put together where it will be sent from ({@link outgoing}): a bitmap of megabytes is then never
 * copied in this process.
 */
export class MessageSocket implements Disposable {
  readonly #socket: UnixSocket;
  /** What was received and not yet handed out lies in [start, end). */
  readonly #buffer: Uint8Array;
  readonly #view: DataView;
  #start = 0;
  #end = 0;
  /** The payload that was handed out last: most messages are as long as the one before, and lie in the same place. */
  #payload: Uint8Array;
  /** Descriptors by the offset of the message that they came with, ascending. */
  #fds: { readonly at: number; readonly fds: number[] }[] = [];
  #arrived: number[] = [];
  readonly #smallBuffer = new SharedArrayBuffer(SMALL_BYTES);
  readonly #small = new Uint8Array(this.#smallBuffer);
  readonly #smallView = new DataView(this.#smallBuffer);
  /** The part of it that {@link outgoing} gave last. */
  #outgoing = this.#small.subarray(HEADER_BYTES, HEADER_BYTES);
  #large: SharedArrayBuffer | undefined;
  readonly #frames = new Set<ArrayBufferLike>();
  #unsent: { readonly data: Uint8Array; at: number; readonly fds: readonly number[]; readonly owned: boolean }[] = [];
  #unsentBytes = 0;
  /** Where the message lay that was passed on last. */
  #passed: Uint8Array = this.#small;

  /** @param maxPayload bytes of the largest message to take, without its header */
  constructor(socket: UnixSocket, maxPayload: number) {
    this.#socket = socket;
    this.#buffer = new Uint8Array(HEADER_BYTES + maxPayload);
    this.#view = new DataView(this.#buffer.buffer);
    this.#payload = this.#buffer.subarray(HEADER_BYTES, HEADER_BYTES);
  }

  get fd(): number {
    return this.#socket.fd;
  }

  /** True while there is more to send than the peer has taken. */
  get unsent(): boolean {
    return this.#unsent.length > 0;
  }

  /** How much that is. */
  get unsentBytes(): number {
    return this.#unsentBytes;
  }

  /**
   * The next message; undefined where none is whole yet; `closed` at the end of the stream.
   * @param wait for one to come, for a moment: see {@link UnixSocket.receive}
   * @throws DirtmapError `PROTOCOL` for a header that can't be: the connection is of no more use; UapiError of the socket
   */
  receive(wait = false): Message | undefined | "closed" {
    for (;;) {
      const message = this.buffered();
      if (message !== undefined) return message;
      if (this.#start > 0) this.#compact();
      const bytes = this.#socket.receive(this.#buffer, this.#end, this.#arrived, wait);
      if (bytes === -1) return undefined;
      if (bytes === 0) return "closed";
      this.#end += bytes;
      if (this.#arrived.length > 0) {
        const fds = this.#arrived;
        this.#arrived = [];
        this.#addFds(fds);
      }
    }
  }

  /** {@link buffered} has something, or would throw: the socket, which may be empty by now, will not tell of it. */
  get hasBuffered(): boolean {
    if (this.#end - this.#start < HEADER_BYTES) return false;
    const size = this.#view.getUint32(this.#start + SIZE, true);
    return !this.#isPossible(size) || size <= this.#end - this.#start;
  }

  /**
   * The next message of those that were read together with the last one, without a look at the socket.
   * @throws DirtmapError `PROTOCOL`
   */
  buffered(): Message | undefined {
    const at = this.#start;
    const size = this.#sizeAt(at);
    if (size === undefined || this.#end - at < size) return undefined;
    const flags = this.#view.getUint32(at + FLAGS, true);
    const type = flags & VFIO_USER_F_TYPE;
    if (type !== VFIO_USER_F_TYPE_COMMAND && type !== VFIO_USER_F_TYPE_REPLY) {
      throw new DirtmapError(`a message of type ${type}`, { code: "PROTOCOL" });
    }
    if (type === VFIO_USER_F_TYPE_REPLY && (flags & ~REPLY_FLAGS) !== 0) {
      throw new DirtmapError(`a reply with flags 0x${flags.toString(16)}`, { code: "PROTOCOL" });
    }
    this.#start = at + size;
    const from = at + HEADER_BYTES;
    if (this.#payload.byteOffset !== from || this.#payload.length !== size - HEADER_BYTES) {
      this.#payload = this.#buffer.subarray(from, this.#start);
    }
    const failed = (flags & VFIO_USER_F_ERROR) !== 0;
    return {
      id: this.#view.getUint16(at + ID, true),
      command: this.#view.getUint16(at + COMMAND, true),
      isReply: type === VFIO_USER_F_TYPE_REPLY,
      noReply: (flags & VFIO_USER_F_NO_REPLY) !== 0,
      error: failed ? this.#view.getUint32(at + ERROR, true) || -1 : 0,
      payload: this.#payload,
      fds: this.#fdsAt(at),
    };
  }

  /**
   * Memory for the payload of the next message to send, of unknown content, 8-byte aligned. Valid until that message, or
   * another, is sent.
   */
  outgoing(payloadBytes: number): Uint8Array<SharedArrayBuffer> {
    const size = HEADER_BYTES + payloadBytes;
    if (size <= SMALL_BYTES) {
      // Registers are read by the same size again and again.
      if (this.#outgoing.length !== payloadBytes) this.#outgoing = this.#small.subarray(HEADER_BYTES, size);
      return this.#outgoing;
    }
    if (this.#large === undefined || this.#large.byteLength < size) {
      // By whole powers of two: a client that asks for a little more each time makes no more than a few.
      this.#large = new SharedArrayBuffer(2 ** Math.ceil(Math.log2(size)));
    }
    return new Uint8Array(this.#large, HEADER_BYTES, payloadBytes);
  }

  /**
   * Memory of the caller's own to put payloads together in, that no other message uses: for one who sends while another
   * message is being put together. Its parts from its start on are sent from there.
   */
  frame(payloadBytes: number): Uint8Array<SharedArrayBuffer> {
    const buffer = new SharedArrayBuffer(HEADER_BYTES + payloadBytes);
    this.#frames.add(buffer);
    return new Uint8Array(buffer, HEADER_BYTES, payloadBytes);
  }

  /**
   * Sends a message, or keeps what the peer has not taken. Descriptors must stay open until nothing is {@link unsent}.
   * @param payload what lies in {@link outgoing} or in a {@link frame} is sent from there, other data is copied
   * @throws DirtmapError `PEER_STUCK` for a peer that has left too much unread; UapiError EPIPE …
   */
  send(
    { id, command, flags, error = 0 }: { id: number; command: number; flags: number; error?: number },
    payload: Uint8Array | null,
    fds: readonly number[] = NO_FDS,
  ): void {
    const size = HEADER_BYTES + (payload?.length ?? 0);
    const buffer = payload === null ? this.#smallBuffer : this.#inPlace(payload);
    const isLarge = buffer !== this.#smallBuffer;
    const data = isLarge ? new Uint8Array(buffer, 0, size) : this.#small;
    const view = isLarge ? new DataView(buffer) : this.#smallView;
    view.setUint16(ID, id, true);
    view.setUint16(COMMAND, command, true);
    view.setUint32(SIZE, size, true);
    view.setUint32(FLAGS, flags, true);
    view.setUint32(ERROR, error, true);
    const at = this.unsent ? 0 : this.#sendNow(data, size, fds);
    const isOurs = isLarge && buffer === this.#large;
    if (at < size) this.#keep({ data: isOurs ? data : data.slice(0, size), at, fds, owned: false });
    if (isOurs && (at < size || (this.#large?.byteLength ?? 0) > KEPT_BYTES)) this.#large = undefined;
  }

  /**
   * Passes on a message that another socket has received, under another id: from where it lies, so that it is not copied. Its
   * descriptors are taken over.
   * @param wantsReply false: as the message says itself
   */
  pass({ payload, fds }: Message, id: number, wantsReply = false): void {
    const memory = this.#passed.buffer === payload.buffer ? this.#passed : new Uint8Array(payload.buffer);
    this.#passed = memory;
    const from = payload.byteOffset - HEADER_BYTES;
    const end = payload.byteOffset + payload.length;
    memory[from + ID] = id;
    memory[from + ID + 1] = id >> 8;
    if (wantsReply) memory[from + FLAGS] &= ~VFIO_USER_F_NO_REPLY;
    const taken = fds.length === 0 ? NO_FDS : fds.splice(0);
    let sent = 0;
    try {
      if (!this.unsent) sent = this.#socket.send(memory, from, end, taken, end - from > SMALL_BYTES);
    } catch (error) {
      closeFds([...taken]);
      throw error;
    }
    if (sent === end - from) closeFds([...taken]);
    else this.#keep({ data: memory.slice(from, end), at: sent, fds: taken, owned: true });
  }

  sendCommand(command: number, id: number, payload: Uint8Array | null, fds?: readonly number[]): void {
    this.send({ id, command, flags: VFIO_USER_F_TYPE_COMMAND }, payload, fds);
  }

  sendReply(
    { id, command }: Pick<Message, "id" | "command">,
    payload: Uint8Array | null,
    fds?: readonly number[],
  ): void {
    this.send({ id, command, flags: VFIO_USER_F_TYPE_REPLY }, payload, fds);
  }

  /** An error is a header alone. */
  sendError({ id, command }: Pick<Message, "id" | "command">, errno: number): void {
    this.send({ id, command, flags: VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR, error: errno }, null);
  }

  /** Sends what is unsent, as far as the peer takes it. */
  flush(): void {
    for (let first = this.#unsent.at(0); first !== undefined; first = this.#unsent.at(0)) {
      const sent = this.#socket.send(first.data, first.at, first.data.byteLength, first.at === 0 ? first.fds : NO_FDS);
      first.at += sent;
      this.#unsentBytes -= sent;
      if (first.at < first.data.byteLength) return;
      this.#unsent.shift();
      if (first.owned) closeFds([...first.fds]);
    }
  }

  [Symbol.dispose](): void {
    closeFds(this.#arrived);
    for (const { fds } of this.#fds) closeFds(fds);
    this.#fds = [];
    for (const { fds, owned } of this.#unsent) if (owned) closeFds([...fds]);
    this.#unsent = [];
    this.#large = undefined;
    this.#socket.shutdown();
    this.#socket[Symbol.dispose]();
  }

  #sendNow(data: Uint8Array, size: number, fds: readonly number[]): number {
    if (size <= SMALL_BYTES) return this.#socket.send(data, 0, size, fds);
    return this.#socket.send(data, 0, Math.min(size, AT_ONCE_BYTES), fds, true);
  }

  /** The buffer in which a payload lies behind room for the header: where it was put together, or a copy's. */
  #inPlace(payload: Uint8Array): SharedArrayBuffer {
    if (payload === this.#outgoing) return this.#smallBuffer;
    if (payload.buffer === this.#smallBuffer) return this.#smallBuffer;
    if (payload.buffer === this.#large) return this.#large;
    if (this.#frames.has(payload.buffer)) return payload.buffer as SharedArrayBuffer;
    const place = this.outgoing(payload.byteLength);
    place.set(payload);
    return place.buffer;
  }

  /** @param message with `owned` descriptors, which are closed once they are sent */
  #keep(message: { data: Uint8Array; at: number; fds: readonly number[]; owned: boolean }): void {
    this.#unsent.push(message);
    this.#unsentBytes += message.data.byteLength - message.at;
    if (this.#unsentBytes > MAX_UNSENT_BYTES) {
      throw new DirtmapError(`the peer has left ${this.#unsentBytes} bytes unread`, { code: "PEER_STUCK" });
    }
  }

  /** The size that a message's header says; undefined where the header is not whole. */
  #sizeAt(at: number): number | undefined {
    if (this.#end - at < HEADER_BYTES) return undefined;
    const size = this.#view.getUint32(at + SIZE, true);
    if (this.#isPossible(size)) return size;
    throw new DirtmapError(`a message of ${size} bytes`, {
      code: "PROTOCOL",
      remedy: `a message has ${HEADER_BYTES} to ${this.#buffer.byteLength} bytes`,
    });
  }

  /** Descriptors came with the last read: they belong to the last message of which anything has come. */
  #addFds(fds: number[]): void {
    const at = this.#lastBegun();
    // First of all they are kept: whatever is thrown from here on, they will be closed.
    this.#fds.push({ at, fds });
    let count = 0;
    for (const entry of this.#fds) if (entry.at === at) count += entry.fds.length;
    if (count > MAX_FDS) {
      throw new DirtmapError(`a message with ${count} descriptors`, {
        code: "PROTOCOL",
        remedy: `send at most ${MAX_FDS}`,
      });
    }
  }

  /** A header that can't be is the last one; it is refused when its turn comes, after the messages before it. */
  #lastBegun(): number {
    let at = this.#start;
    while (this.#end - at >= HEADER_BYTES) {
      const size = this.#view.getUint32(at + SIZE, true);
      if (!this.#isPossible(size) || at + size >= this.#end) break;
      at += size;
    }
    return at;
  }

  #isPossible(size: number): boolean {
    return size >= HEADER_BYTES && size <= this.#buffer.byteLength;
  }

  #fdsAt(at: number): number[] {
    if (this.#fds.length === 0) return CAME_WITHOUT;
    const fds: number[] = [];
    while (this.#fds.length > 0 && this.#fds[0].at <= at) fds.push(...(this.#fds.shift()?.fds ?? []));
    return fds;
  }

  /** Moves what waits to the buffer's start, so that the largest message has room. */
  #compact(): void {
    const by = this.#start;
    if (by < this.#end) this.#buffer.copyWithin(0, by, this.#end);
    if (this.#fds.length > 0) this.#fds = this.#fds.map(({ at, fds }) => ({ at: at - by, fds }));
    this.#end -= by;
    this.#start = 0;
  }
}
