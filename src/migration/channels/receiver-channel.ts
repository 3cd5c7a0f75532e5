import { Socket } from "node:net";
import { DirtmapError } from "../../errors.js";
import { encodeFrame, type FrameTypeName } from "../stream/frame.js";
import type { TlsCredentials } from "../transport/credentials.js";
import { secure } from "../transport/secure.js";
import { encodeBody } from "./hello.js";
import { PageSink, type SinkArena } from "./page-sink.js";

/** A source that stops in the middle of a frame, or doesn't say hello, for this long is gone or stopped. */
const STALL_MS = 10_000;

/** How long a source that was refused may take to read why. */
const LINGER_MS = 2_000;

/** The destination's end of one channel. */
export class ReceiverChannel {
  /** Resolves when the connection has shown that it belongs to the migration. @throws DirtmapError why it doesn't */
  readonly joined: Promise<void>;
  /** Resolves after the source's goodbye. @throws DirtmapError `CHANNEL_LOST`, `FRAME_REFUSED` */
  readonly ended: Promise<void>;
  readonly #sink: PageSink;
  #socket: Socket | undefined;
  #channel = 0;
  #sequence = 0;
  #hasJoined = false;
  #failed = false;
  #heardAt = performance.now();
  #watch: NodeJS.Timeout | undefined;
  #join: () => void = () => {};
  #end: () => void = () => {};
  #reject: (error: DirtmapError) => void = () => {};

  constructor(args: { arenas: readonly SinkArena[]; slice: number; token: string }) {
    const refusals: ((error: DirtmapError) => void)[] = [];
    this.joined = new Promise((resolve, reject) => {
      this.#join = resolve;
      refusals.push(reject);
    });
    this.ended = new Promise((resolve, reject) => {
      this.#end = resolve;
      refusals.push(reject);
    });
    // Whichever of the two is not being waited for must not count as unhandled.
    this.joined.catch(() => {});
    this.ended.catch(() => {});
    this.#reject = (error) => {
      for (const reject of refusals) reject(error);
    };
    this.#sink = new PageSink({
      ...args,
      events: {
        onHello: ({ channel }) => {
          this.#channel = channel;
          this.#hasJoined = true;
          this.#send("ACCEPTED", 0, new Uint8Array(0));
          this.#join();
        },
        onRoundEnd: (round, totals) => this.#send("ROUND_ACK", round, encodeBody(totals)),
        onClose: () => {
          this.#socket?.end();
          clearInterval(this.#watch);
          this.#end();
        },
      },
    });
  }

  /** Receives from a plain TCP connection: the system writes page data right into guest memory. */
  receivePlain(fd: number): void {
    const discard = new Uint8Array(65536);
    const socket = new Socket({
      fd,
      readable: true,
      writable: true,
      onread: {
        buffer: () => (this.#failed ? discard : this.#sink.target),
        callback: (bytes: number) => {
          this.#arrived(bytes);
          return true;
        },
      },
    } as ConstructorParameters<typeof Socket>[0]);
    this.#listen(socket);
  }

  /** Secures the connection, and receives from it. @throws DirtmapError where the handshake fails */
  async receiveTls(raw: Socket, credentials: TlsCredentials): Promise<void> {
    const { socket, problem } = await secure(raw, credentials);
    this.#listen(socket);
    if (problem !== undefined) {
      this.#refuse(problem);
      return;
    }
    socket.on("data", (bytes: Uint8Array) => {
      for (let at = 0; at < bytes.length && !this.#failed; ) {
        const { target } = this.#sink;
        const taken = Math.min(target.length, bytes.length - at);
        target.set(bytes.subarray(at, at + taken));
        at += taken;
        this.#arrived(taken);
      }
    });
  }

  #listen(socket: Socket): void {
    this.#socket = socket;
    socket.on("error", (cause) => this.#lose(`it broke (${(cause as NodeJS.ErrnoException).code})`, cause));
    socket.on("end", () => this.#ended());
    socket.on("close", () => this.#ended());
    this.#watch = setInterval(() => {
      const waits = this.#sink.midFrame || !this.#hasJoined;
      if (waits && performance.now() - this.#heardAt > STALL_MS) {
        this.#lose(`the source has sent nothing for ${STALL_MS / 1000} s`);
      }
    }, STALL_MS / 10);
  }

  #arrived(bytes: number): void {
    if (this.#failed) return;
    this.#heardAt = performance.now();
    try {
      this.#sink.advance(bytes);
    } catch (error) {
      this.#refuse(
        error instanceof DirtmapError
          ? error
          : new DirtmapError("a frame could not be stored", { code: "FRAME_REFUSED", cause: error }),
      );
    }
  }

  #ended(): void {
    if (this.#sink.closed) return;
    this.#lose(this.#sink.midFrame ? "it was cut off in the middle of a frame" : "the source is gone");
  }

  /** Says why, and drops what still comes, so that the words arrive before the connection's end. */
  #refuse(error: DirtmapError): void {
    if (this.#failed) return;
    this.#failed = true;
    const { code, message, remedy } = error;
    this.#send("REFUSED", 0, encodeBody({ code, message, remedy }));
    this.#socket?.end();
    this.#socket?.resume();
    setTimeout(() => this.#socket?.destroy(), LINGER_MS);
    clearInterval(this.#watch);
    this.#reject(error);
  }

  #lose(why: string, cause?: unknown): void {
    if (this.#failed || this.#sink.closed) return;
    this.#failed = true;
    clearInterval(this.#watch);
    this.#socket?.destroy();
    this.#reject(
      new DirtmapError(`a channel was lost: ${why}`, {
        code: "CHANNEL_LOST",
        remedy: "see what the source says, and whether the network holds",
        cause,
      }),
    );
  }

  #send(type: FrameTypeName, round: number, body: Uint8Array): void {
    this.#socket?.write(encodeFrame({ type, channel: this.#channel, sequence: this.#sequence++, round }, body));
  }
}
