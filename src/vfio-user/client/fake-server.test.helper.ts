import { closeSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { accept, listenAt } from "../../sys/unix-socket.js";
import { vfio_user_version } from "../../uapi/vfio-user.js";
import { closeFds, type Message, MessageSocket } from "../message-socket.js";
import { Connection, type ConnectionOptions } from "./connection.js";

/*
 * For tests: a server that says exactly what it is told to, right or wrong, on the client's own thread.
 */

const LIMIT_MS = 5000;
const MAX_PAYLOAD = 2 ** 21;

/** A command as it came; the payload is a copy. */
export type Command = Pick<Message, "id" | "command" | "isReply" | "noReply" | "error" | "payload" | "fds">;

export class FakeServer implements Disposable {
  readonly path: string;
  readonly #directory: string;
  readonly #listener: number;
  #socket: MessageSocket | undefined;

  constructor() {
    this.#directory = mkdtempSync(join(tmpdir(), "dirtmap-fake-server-"));
    this.path = join(this.#directory, "device");
    this.#listener = listenAt(this.path);
  }

  /** A client that has agreed on the version with it. */
  async connect(options: ConnectionOptions = {}, version = versionReply({})): Promise<Connection> {
    const opening = Connection.open(this.path, options);
    opening.catch(() => undefined);
    const command = await this.next();
    this.socket.sendReply(command, version);
    return opening;
  }

  /** The client's connection, once it has sent something. */
  get socket(): MessageSocket {
    if (this.#socket === undefined) throw new Error("no client has come");
    return this.#socket;
  }

  /** The next message of the client. */
  async next(): Promise<Command> {
    const until = performance.now() + LIMIT_MS;
    for (;;) {
      const message = this.#receive();
      if (message !== undefined) return message;
      if (performance.now() > until) throw new Error(`the client said nothing for ${LIMIT_MS} ms`);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Closes the client's connection. */
  hangUp(): void {
    this.#socket?.[Symbol.dispose]();
    this.#socket = undefined;
  }

  [Symbol.dispose](): void {
    this.hangUp();
    closeSync(this.#listener);
    rmSync(this.#directory, { recursive: true, force: true });
  }

  #receive(): Command | undefined {
    if (this.#socket === undefined) {
      const socket = accept(this.#listener);
      if (socket === undefined) return undefined;
      this.#socket = new MessageSocket(socket, MAX_PAYLOAD);
    }
    const message = this.#socket.receive();
    if (message === undefined) return undefined;
    if (message === "closed") throw new Error("the client has closed the connection");
    closeFds(message.fds);
    return { ...message, payload: message.payload.slice() };
  }
}

/** VFIO_USER_VERSION's answer. @param json what it says of itself: an object, or exactly these bytes */
export function versionReply(
  json: object | Uint8Array,
  { major = 0, minor = 0 }: { major?: number; minor?: number } = {},
): Uint8Array {
  const text =
    json instanceof Uint8Array ? json : new TextEncoder().encode(`${JSON.stringify({ capabilities: json })}\0`);
  const reply = new Uint8Array(vfio_user_version.size + text.byteLength);
  vfio_user_version.encode({ major, minor }, reply);
  reply.set(text, vfio_user_version.size);
  return reply;
}
