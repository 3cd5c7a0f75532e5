import { closeSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { EventFd } from "../../sys/eventfd.js";
import { accept, listenAt, UnixSocket } from "../../sys/unix-socket.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_F_TYPE_COMMAND,
  vfio_user_dma_access,
  vfio_user_header,
} from "../../uapi/vfio-user.js";
import { HEADER_BYTES } from "../message-socket.js";
import { ServedDevice } from "../server/served-device.js";
import { Session } from "../server/session.js";
import { TestModel } from "../server/test-model.test.helper.js";

/*
 * For tests: Dirtmap's own server, on the client's own thread, with something wrong in what it sends.
 */

/** What is done to a message that the server sends. */
export type Mischief =
  | { readonly kind: "drop" | "twice" | "hang-up" | "descriptor" }
  /** Bytes of payload that are left, or that come in addition; the header says so, or not. */
  | { readonly kind: "shorten" | "lengthen"; readonly bytes: number; readonly honest: boolean }
  /** A field of the header becomes this. */
  | {
      readonly kind: "header";
      readonly field: "msg_id" | "cmd" | "msg_size" | "flags" | "error";
      readonly value: number;
    }
  /** A 32-bit word of the payload becomes this. */
  | { readonly kind: "payload"; readonly word: number; readonly value: number }
  | { readonly kind: "noise"; readonly bytes: number }
  /** A command of the server's own comes before it, of any address and length. */
  | { readonly kind: "demand"; readonly command: number; readonly address: bigint; readonly count: bigint };

/** Sends messages as they are, but for those that it is told to spoil. */
class SpoilingSocket extends UnixSocket {
  readonly #mischief: Map<number, Mischief>;
  readonly #spare: number;
  #sent = 0;

  constructor(fd: number, mischief: ReadonlyMap<number, Mischief>, spare: number) {
    super(fd);
    this.#mischief = new Map(mischief);
    this.#spare = spare;
  }

  /** Whatever becomes of it, the server believes that it was sent. */
  override send(from: Uint8Array, at: number, end: number, fds: readonly number[] = []): number {
    const mischief = this.#mischief.get(this.#sent++);
    const message = from.slice(at, end);
    if (mischief === undefined) this.#pass(message, fds);
    else this.#spoil(message, fds, mischief);
    return end - at;
  }

  #spoil(message: Uint8Array, fds: readonly number[], mischief: Mischief): void {
    switch (mischief.kind) {
      case "drop":
        return;
      case "hang-up":
        this.shutdown();
        return;
      case "twice":
        this.#pass(message, fds);
        this.#pass(message, []);
        return;
      case "descriptor":
        this.#pass(message, [this.#spare, this.#spare]);
        return;
      case "noise":
        this.#pass(
          new Uint8Array(mischief.bytes).map((_, i) => (i * 73 + 41) & 0xff),
          [],
        );
        return;
      case "demand":
        this.#pass(demand(mischief), []);
        this.#pass(message, fds);
        return;
      case "shorten":
      case "lengthen":
        this.#pass(resized(message, mischief), fds);
        return;
      case "header": {
        const header = vfio_user_header.decode(message);
        vfio_user_header.encode({ ...header, [mischief.field]: mischief.value }, message);
        this.#pass(message, fds);
        return;
      }
      case "payload": {
        const offset = HEADER_BYTES + mischief.word * 4;
        if (offset + 4 <= message.byteLength) new DataView(message.buffer).setUint32(offset, mischief.value, true);
        this.#pass(message, fds);
      }
    }
  }

  #pass(message: Uint8Array, fds: readonly number[]): void {
    try {
      super.send(message, 0, message.byteLength, fds);
    } catch {
      // The client is gone.
    }
  }
}

function resized(
  message: Uint8Array,
  { kind, bytes, honest }: Mischief & { kind: "shorten" | "lengthen" },
): Uint8Array {
  const size = kind === "shorten" ? Math.max(HEADER_BYTES, message.byteLength - bytes) : message.byteLength + bytes;
  const result = new Uint8Array(size);
  result.set(message.subarray(0, size));
  if (honest) new DataView(result.buffer).setUint32(vfio_user_header.offsetOf("msg_size"), size, true);
  return result;
}

function demand({ command, address, count }: Mischief & { kind: "demand" }): Uint8Array {
  const data = command === VFIO_USER_COMMAND.DMA_WRITE ? Math.min(Number(count), 8192) : 0;
  const message = new Uint8Array(HEADER_BYTES + vfio_user_dma_access.size + data);
  const header = { msg_id: 4711, cmd: command, msg_size: message.byteLength, flags: VFIO_USER_F_TYPE_COMMAND };
  vfio_user_header.encode(header, message);
  vfio_user_dma_access.encode({ address, count }, message, HEADER_BYTES);
  return message;
}

/** A served {@link TestModel} that any number of clients may come to, one after the other. */
export class HostileServer implements AsyncDisposable {
  readonly path: string;
  readonly #directory: string;
  readonly #listener: number;
  readonly #device: ServedDevice;
  readonly #stop = EventFd.create();
  readonly #mischief: ReadonlyMap<number, Mischief>;
  #session: Session | undefined;
  #ended = false;
  readonly #serving: Promise<void>;

  private constructor(directory: string, device: ServedDevice, mischief: ReadonlyMap<number, Mischief>) {
    this.#directory = directory;
    this.path = join(directory, "device");
    this.#listener = listenAt(this.path);
    this.#device = device;
    this.#mischief = mischief;
    this.#serving = this.#serve();
  }

  /** @param mischief what is done to the n-th message that it sends */
  static async start(mischief: ReadonlyMap<number, Mischief>): Promise<HostileServer> {
    const directory = mkdtempSync(join(tmpdir(), "dirtmap-hostile-"));
    const device = await ServedDevice.start({ id: "test", model: new TestModel(), dma: "auto", onFailure: () => {} });
    return new HostileServer(directory, device, mischief);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true;
    await this.#serving;
    await this.#session?.close();
    closeSync(this.#listener);
    this.#device[Symbol.dispose]();
    this.#stop[Symbol.dispose]();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #serve(): Promise<void> {
    while (!this.#ended) {
      await new Promise((resolve) => setImmediate(resolve));
      this.#device.run(1);
      this.#session ??= this.#accept();
      if (this.#session === undefined) continue;
      if ((await this.#session.serve()) !== "over") continue;
      await this.#session.close();
      this.#session = undefined;
    }
  }

  #accept(): Session | undefined {
    const taken = accept(this.#listener);
    if (taken === undefined) return undefined;
    const socket = new SpoilingSocket(taken.fd, this.#mischief, this.#stop.fd);
    const { fd } = this.#stop;
    return new Session({ name: "client", kind: "main", socket, device: this.#device, stop: fd, log: () => {} });
  }
}
