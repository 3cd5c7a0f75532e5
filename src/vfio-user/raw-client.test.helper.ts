import { closeSync } from "node:fs";
import { DirtmapError } from "../errors.js";
import { POLLIN, POLLOUT, PollSet } from "../sys/poll.js";
import { connectTo, type UnixSocket } from "../sys/unix-socket.js";
import { errnoName, UapiError } from "../uapi/errno.js";
import type { Fields, Given, Struct } from "../uapi/struct.js";
import {
  DIRTMAP_PROTOCOL,
  VFIO_USER_COMMAND,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_COMMAND,
  VFIO_USER_MAJOR,
  VFIO_USER_MINOR,
  vfio_user_region_access,
  vfio_user_version,
} from "../uapi/vfio-user.js";
import { closeFds, type Message, MessageSocket } from "./message-socket.js";

/*
 * For tests: a client that says exactly what it is told to, right or wrong. Its calls block, each for a bounded time: the
 * server runs on a thread of its own.
 */

/** Bytes of the largest reply that a test asks for. */
const MAX_PAYLOAD = 80 * 2 ** 20;
const LIMIT_MS = 10_000;

/** What a client of Dirtmap's says of itself: it may use Dirtmap's own commands. */
export const DIRTMAPS_OWN = { max_msg_fds: 16, dirtmap: { protocol: DIRTMAP_PROTOCOL } };

/** A reply without an error. Who takes a descriptor closes it. */
export interface Reply {
  readonly payload: Uint8Array;
  readonly fds: readonly number[];
}

/** One end of a connection: a client's, or in twin-socket mode the end that answers the server's commands. */
export class RawClient implements Disposable {
  readonly socket: MessageSocket;
  /** Handles a command of the server that comes while a reply is waited for; absent: it is an error. */
  onCommand: ((command: Message, client: RawClient) => void) | undefined;
  readonly #set: PollSet;
  readonly #writable: PollSet;
  #id = 0;

  constructor(socket: UnixSocket) {
    this.socket = new MessageSocket(socket, MAX_PAYLOAD);
    this.#set = new PollSet([{ fd: socket.fd, events: POLLIN }]);
    this.#writable = new PollSet([{ fd: socket.fd, events: POLLIN | POLLOUT }]);
  }

  /** Connects; says nothing yet. @throws UapiError ENOENT, ECONNREFUSED */
  static connect(path: string): RawClient {
    return new RawClient(connectTo(path));
  }

  /** Connects and agrees on the version. */
  static open(path: string, capabilities: object = DIRTMAPS_OWN): RawClient {
    const client = RawClient.connect(path);
    try {
      client.version(capabilities);
      return client;
    } catch (error) {
      client[Symbol.dispose]();
      throw error;
    }
  }

  /** VFIO_USER_VERSION; returns what the server says of itself, and the descriptors that came along. */
  version(
    capabilities?: object,
    { major = VFIO_USER_MAJOR, minor = VFIO_USER_MINOR }: { major?: number; minor?: number } = {},
  ): { major: number; minor: number; capabilities: Record<string, unknown>; fds: readonly number[] } {
    const json =
      capabilities === undefined
        ? new Uint8Array(0)
        : new TextEncoder().encode(`${JSON.stringify({ capabilities })}\0`);
    const request = new Uint8Array(vfio_user_version.size + json.byteLength);
    vfio_user_version.encode({ major, minor }, request);
    request.set(json, vfio_user_version.size);
    const { payload, fds } = this.request("VERSION", request);
    const text = new TextDecoder().decode(payload.subarray(vfio_user_version.size)).replace(/\0$/, "");
    return { ...vfio_user_version.decode(payload), ...JSON.parse(text), fds };
  }

  /** Sends a command and waits for its reply. @throws UapiError with the errno of an error reply; DirtmapError `CLOSED` */
  request(
    command: keyof typeof VFIO_USER_COMMAND | number,
    payload: Uint8Array | null,
    fds?: readonly number[],
  ): Reply {
    const number = typeof command === "number" ? command : VFIO_USER_COMMAND[command];
    const id = this.send(number, payload, fds);
    for (;;) {
      const message = this.next();
      if (!message.isReply) {
        if (this.onCommand === undefined) throw new Error(`the server sent command ${message.command}`);
        this.onCommand(message, this);
        closeFds(message.fds);
        continue;
      }
      if (message.id !== id || message.command !== number) throw new Error(`a reply to ${message.id} instead of ${id}`);
      if (message.error !== 0) {
        throw new UapiError(errnoName(message.error), { syscall: String(command), attempted: "have the server do it" });
      }
      return { payload: message.payload.slice(), fds: message.fds };
    }
  }

  /** The same for a structure, with data behind it. */
  call<Of extends Fields>(
    command: keyof typeof VFIO_USER_COMMAND | number,
    layout: Struct<Of>,
    values: Given<Of>,
    { data = new Uint8Array(0), fds }: { data?: Uint8Array; fds?: readonly number[] } = {},
  ): Reply {
    const payload = new Uint8Array(layout.size + data.byteLength);
    layout.encode(values, payload);
    payload.set(data, layout.size);
    return this.request(command, payload, fds);
  }

  /** Sends a command and does not wait; returns its id. */
  send(
    command: number,
    payload: Uint8Array | null,
    fds?: readonly number[],
    { noReply = false }: { noReply?: boolean } = {},
  ): number {
    this.#id = (this.#id + 1) & 0xffff;
    const flags = VFIO_USER_F_TYPE_COMMAND | (noReply ? VFIO_USER_F_NO_REPLY : 0);
    this.socket.send({ id: this.#id, command, flags }, payload, fds);
    const until = performance.now() + LIMIT_MS;
    while (this.socket.unsent) {
      if (performance.now() > until) throw new Error("the server does not read");
      this.#writable.wait(100);
      this.socket.flush();
    }
    return this.#id;
  }

  /** The next message. @throws DirtmapError `CLOSED` where the server has closed the connection */
  next(limitMs = LIMIT_MS): Message {
    const until = performance.now() + limitMs;
    for (;;) {
      const message = this.#received();
      if (message === "closed") throw new DirtmapError("the server has closed the connection", { code: "CLOSED" });
      if (message !== undefined) return message;
      if (performance.now() > until) throw new Error(`the server said nothing for ${limitMs} ms`);
      this.#set.wait(100);
    }
  }

  /** Reads `count` bytes of a region. */
  regionRead(region: number, offset: number | bigint, count: number): Uint8Array {
    const { payload } = this.call("REGION_READ", vfio_user_region_access, { offset: BigInt(offset), region, count });
    return payload.subarray(vfio_user_region_access.size);
  }

  regionWrite(region: number, offset: number | bigint, data: Uint8Array): void {
    const count = data.byteLength;
    this.call("REGION_WRITE", vfio_user_region_access, { offset: BigInt(offset), region, count }, { data });
  }

  /** A little-endian 32-bit register. */
  readRegister(region: number, offset: number): number {
    return Buffer.from(this.regionRead(region, offset, 4)).readUInt32LE();
  }

  writeRegister(region: number, offset: number, value: number): void {
    const data = Buffer.alloc(4);
    data.writeUInt32LE(value);
    this.regionWrite(region, offset, data);
  }

  [Symbol.dispose](): void {
    this.socket[Symbol.dispose]();
  }

  #received(): Message | undefined | "closed" {
    try {
      return this.socket.receive();
    } catch (error) {
      // A server that closes with something of ours unread resets the connection.
      if (error instanceof UapiError && error.code === "ECONNRESET") return "closed";
      throw error;
    }
  }
}

/** Closes descriptors that came with a reply. */
export function closeAll(fds: readonly number[]): void {
  for (const fd of fds) closeSync(fd);
}
