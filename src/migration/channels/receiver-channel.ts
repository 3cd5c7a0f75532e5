import { Socket } from "node:net";
import { DirtmapError } from "../../errors.js";
import { encodeControlFrame, type Problem } from "../stream/control-connection.js";
import { encodeFrame, type FrameTypeName, frameRefused } from "../stream/frame.js";
import type { TlsCredentials } from "../transport/credentials.js";
import { secure } from "../transport/secure.js";
import { encodeBody } from "./hello.js";
import { type CarriedRound, OtherSource, PageSink, type SinkArena } from "./page-sink.js";

/** A source that stops in the middle of a frame, or doesn't say hello, for this long is gone or stopped. */
const STALL_MS = 10_000;

/** How long a source that was refused may take to read why. */
const LINGER_MS = 2_000;

/** What a channel's end is told about the migration that it is to belong to. */
export interface ReceiverChannelOptions {
  readonly arenas: readonly SinkArena[];
  readonly token: string;
  readonly channels: number;
  /** What another source is told that connects meanwhile. */
  readonly busy: Problem;
}

/**
 * The destination's end of one connection that may be a channel. It is one once it has {@link joined}; the main thread
 * then accepts it, begins each round, and asks what came in it.
 */
export class ReceiverChannel {
  /** Resolves with the channel's number when the connection has shown that it belongs to the migration. @throws DirtmapError why it doesn't */
  readonly joined: Promise<number>;
  /** Resolves after the source's goodbye. @throws DirtmapError `CHANNEL_LOST`, `FRAME_REFUSED` */
  readonly ended: Promise<void>;
  readonly #sink: PageSink;
  readonly #busy: Problem;
  #socket: Socket | undefined;
  #sequence = 0;
  #hasJoined = false;
  #failed = false;
  /** The last round that the control connection has begun. */
  #begun = -1;
  /** A round that has ended on this channel, and that the control connection has not begun yet. */
  #unacknowledged: CarriedRound | undefined;
  /** The last round that was acknowledged. The channel may be ahead of the control connection by one round. */
  #carried: CarriedRound | undefined;
  #heardAt = performance.now();
  #watch: NodeJS.Timeout | undefined;
  #join: (channel: number) => void = () => {};
  #end: () => void = () => {};
  #reject: (error: DirtmapError) => void = () => {};

  constructor({ busy, ...options }: ReceiverChannelOptions) {
    this.#busy = busy;
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
      ...options,
      events: {
        onHello: ({ channel }) => {
          this.#hasJoined = true;
          this.#join(channel);
        },
        onRoundEnd: (round) => {
          this.#unacknowledged = round;
          this.#acknowledge();
        },
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
    this.#socket = raw;
    const { socket, problem } = await secure(raw, credentials);
    this.#listen(socket);
    if (problem !== undefined) {
      this.refuse(problem);
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

  /** All channels have joined: tells the source that this one is taken. */
  accept(): void {
    this.#sink.answered();
    this.#send("ACCEPTED", 0, new Uint8Array(0));
  }

  /** The control connection has begun the round: its end is acknowledged from now on. */
  beginRound(round: number): void {
    this.#begun = round;
    this.#acknowledge();
  }

  /** What the channel carried in the round. @throws DirtmapError `FRAME_REFUSED` where it has not ended it */
  endRound(round: number): CarriedRound {
    if (this.#carried?.round === round) return this.#carried;
    throw frameRefused(`round ${round} is said to be over, and a channel has not ended it`);
  }

  /** No page may come any more. @throws DirtmapError `FRAME_REFUSED` where some have, after the last round */
  seal(): void {
    this.#sink.seal();
  }

  /** Says why, and drops what still comes, so that the words arrive before the connection's end. */
  refuse(problem: Problem): void {
    if (this.#failed) return;
    this.#failed = true;
    const { code, message, remedy } = problem;
    const words = { code: code.slice(0, 64), message: message.slice(0, 1024), remedy: remedy?.slice(0, 1024) };
    this.#send("REFUSED", 0, encodeBody(words));
    this.#dismiss(problem);
  }

  /** Ends the connection at once. */
  destroy(error: DirtmapError): void {
    this.#failed = true;
    clearInterval(this.#watch);
    this.#socket?.destroy();
    this.#reject(error);
  }

  #listen(socket: Socket): void {
    this.#socket = socket;
    if (this.#failed) {
      socket.destroy();
      return;
    }
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
      if (error instanceof OtherSource) this.#sayBusy();
      else if (error instanceof DirtmapError) this.refuse(error);
      else this.refuse(new DirtmapError("a frame could not be stored", { code: "FRAME_REFUSED", cause: error }));
    }
  }

  /** Another source's control connection has come to where channels are waited for. */
  #sayBusy(): void {
    this.#failed = true;
    const { code, message, remedy } = this.#busy;
    this.#socket?.write(encodeControlFrame(0, { type: "REFUSE", code, message, ...(remedy && { remedy }) }));
    this.#dismiss(this.#busy);
  }

  #dismiss(problem: Problem): void {
    const socket = this.#socket;
    socket?.end();
    socket?.resume();
    const timer = setTimeout(() => socket?.destroy(), LINGER_MS);
    socket?.once("close", () => clearTimeout(timer));
    clearInterval(this.#watch);
    this.#reject(problem instanceof DirtmapError ? problem : new DirtmapError(problem.message, problem));
  }

  #acknowledge(): void {
    const carried = this.#unacknowledged;
    if (carried === undefined || carried.round > this.#begun) return;
    this.#unacknowledged = undefined;
    this.#carried = carried;
    const { round, pages, zeroPages } = carried;
    this.#sink.answered();
    this.#send("ROUND_ACK", round, encodeBody({ pages, zeroPages }));
  }

  #ended(): void {
    if (this.#sink.closed) return;
    this.#lose(this.#sink.midFrame ? "it was cut off in the middle of a frame" : "the source is gone");
  }

  #lose(why: string, cause?: unknown): void {
    if (this.#failed || this.#sink.closed) return;
    this.destroy(
      new DirtmapError(`a channel was lost: ${why}`, {
        code: "CHANNEL_LOST",
        remedy: "see what the source says, and whether the network holds",
        cause,
      }),
    );
  }

  #send(type: FrameTypeName, round: number, body: Uint8Array): void {
    this.#socket?.write(encodeFrame({ type, channel: 0, sequence: this.#sequence++, round }, body));
  }
}
