import type { Duplex } from "node:stream";
import { DirtmapError, UsageError } from "../../errors.js";
import { encodeFrame, frameRefused, MAX_CONTROL_BODY } from "./frame.js";
import { FrameReader } from "./frame-reader.js";
import {
  type ControlMessage,
  type ControlMessageOf,
  type ControlMessageType,
  controlHeadSchema,
  isBinaryMessage,
  MAX_MESSAGE_DATA,
} from "./messages.js";

/** A peer that has said nothing for this long is gone or stopped; each side speaks at least four times as often. */
export const SILENCE_MS = 10_000;

/** Received but not yet asked for: above this the socket is read no further. */
const MAX_QUEUED_BYTES = 16 << 20;

/** How long an orderly close waits for the peer's end. */
const CLOSE_MS = 2_000;

export interface ControlConnectionOptions {
  /** For tests: {@link SILENCE_MS}. */
  readonly silenceMs?: number;
  /** Explains errors of the socket; the transport knows the address. */
  readonly explain?: (error: unknown) => DirtmapError;
}

export interface Patience {
  /** Milliseconds to wait; then DirtmapError `TIMED_OUT`. */
  readonly deadlineMs: number;
  readonly signal?: AbortSignal | undefined;
}

interface Waiter {
  resolve(message: ControlMessage): void;
  reject(error: unknown): void;
}

/**
 * The conversation between source and destination. Messages arrive in order or the connection is lost; what is lost is
 * told through {@link lost} at once, also while nobody receives. One caller at a time may wait in {@link receive}.
 */
export class ControlConnection implements AsyncDisposable {
  /** Aborts, with the DirtmapError as its reason, when the connection breaks, falls silent, or the peer says ABORT. */
  readonly lost: AbortSignal;
  readonly #lost = new AbortController();
  readonly #socket: Duplex;
  readonly #silenceMs: number;
  readonly #explain: (error: unknown) => DirtmapError;
  readonly #reader = new FrameReader(0, ["CONTROL"]);
  readonly #queue: { message: ControlMessage; bytes: number }[] = [];
  readonly #heartbeat: NodeJS.Timeout;
  #queuedBytes = 0;
  #waiter: Waiter | undefined;
  #sequence = 0;
  #closing = false;
  #heardAt = performance.now();
  #spokeAt = performance.now();

  constructor(socket: Duplex, options: ControlConnectionOptions = {}) {
    this.lost = this.#lost.signal;
    this.#socket = socket;
    this.#silenceMs = options.silenceMs ?? SILENCE_MS;
    this.#explain =
      options.explain ??
      ((cause) => new DirtmapError("the control connection broke", { code: "CONNECTION_LOST", cause }));
    socket.on("data", (bytes: Uint8Array) => this.#take(bytes));
    socket.on("end", () => this.#ended());
    socket.on("close", () => this.#ended());
    socket.on("error", (error) => this.#fail(this.#explain(error)));
    this.#heartbeat = setInterval(() => this.#beat(), this.#silenceMs / 8);
    this.#speak({ type: "PING" });
  }

  /** Resolves when the system has taken the message. @throws DirtmapError of {@link lost}, or `MESSAGE_TOO_LONG` */
  send(message: ControlMessage): Promise<void> {
    if (this.#lost.signal.aborted) return Promise.reject(this.#lost.signal.reason);
    return new Promise((resolve, reject) => {
      this.#speak(message, (error) => {
        if (error) reject(this.#lost.signal.aborted ? this.#lost.signal.reason : this.#explain(error));
        else resolve();
      });
    });
  }

  /**
   * The next message, PINGs left out. Messages that came before the connection was lost are still given out.
   * @throws DirtmapError `TIMED_OUT`, or that of {@link lost}; the signal's reason
   */
  receive({ deadlineMs, signal }: Patience): Promise<ControlMessage> {
    const next = this.#queue.shift();
    if (next !== undefined) {
      this.#queuedBytes -= next.bytes;
      if (this.#queuedBytes <= MAX_QUEUED_BYTES) this.#socket.resume();
      return Promise.resolve(next.message);
    }
    if (this.#lost.signal.aborted) return Promise.reject(this.#lost.signal.reason);
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#waiter !== undefined) throw new Error("receive() is waiting already");
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () =>
          waiter.reject(
            new DirtmapError(`no message for ${deadlineMs / 1000} s`, {
              code: "TIMED_OUT",
              attempted: "wait for the other side's next message",
            }),
          ),
        deadlineMs,
      );
      const cancelled = () => waiter.reject(signal?.reason);
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", cancelled);
        this.#waiter = undefined;
      };
      const waiter: Waiter = {
        resolve: (message) => {
          done();
          resolve(message);
        },
        reject: (error) => {
          done();
          reject(error);
        },
      };
      signal?.addEventListener("abort", cancelled, { once: true });
      this.#waiter = waiter;
    });
  }

  /**
   * The next message, which must be of one type.
   * @throws UsageError with the peer's own code for a REFUSE; DirtmapError `OUT_OF_TURN` for any other message; see {@link receive}
   */
  async expect<Type extends ControlMessageType>(type: Type, patience: Patience): Promise<ControlMessageOf<Type>> {
    const message = await this.receive(patience);
    if (message.type === type) return message as ControlMessageOf<Type>;
    if (message.type === "REFUSE") {
      const { code, remedy } = message;
      throw new UsageError(`the destination refuses: ${message.message}`, { code, remedy });
    }
    throw new DirtmapError(`${message.type} arrived where ${type} was due`, { code: "OUT_OF_TURN" });
  }

  /** Sends what is underway, says goodbye, and waits for the peer to do so for at most two seconds. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    clearInterval(this.#heartbeat);
    if (!this.#socket.destroyed) {
      this.#socket.resume();
      await new Promise<void>((resolve) => {
        const timer = setTimeout(() => this.#socket.destroy(), CLOSE_MS);
        this.#socket.once("close", () => {
          clearTimeout(timer);
          resolve();
        });
        this.#socket.end();
      });
    }
    this.#fail(new DirtmapError("the control connection was closed here", { code: "CONNECTION_CLOSED" }));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #speak(message: ControlMessage, taken?: (error?: Error | null) => void): void {
    const frame = encodeFrame({ type: "CONTROL", channel: 0, sequence: this.#sequence }, encodeMessage(message));
    this.#sequence = (this.#sequence + 1) >>> 0;
    this.#spokeAt = performance.now();
    this.#socket.write(frame, taken);
  }

  #beat(): void {
    const now = performance.now();
    if (this.#socket.isPaused()) this.#heardAt = now;
    if (now - this.#heardAt > this.#silenceMs) {
      this.#fail(
        new DirtmapError(`the other side has said nothing for ${this.#silenceMs / 1000} s`, {
          code: "PEER_SILENT",
          remedy: "see whether it still runs, and whether the network does",
        }),
      );
    } else if (now - this.#spokeAt > this.#silenceMs / 4) {
      this.#speak({ type: "PING" });
    }
  }

  #take(bytes: Uint8Array): void {
    this.#heardAt = performance.now();
    try {
      for (const { body } of this.#reader.push(bytes)) {
        const message = decodeMessage(body);
        if (message.type === "PING") continue;
        if (message.type === "ABORT") {
          const { code, remedy } = message;
          this.#fail(
            new DirtmapError(`the other side gave up: ${message.message}`, {
              code: "PEER_ABORTED",
              remedy,
              cause: new DirtmapError(message.message, { code }),
            }),
          );
          return;
        }
        if (this.#waiter !== undefined) this.#waiter.resolve(message);
        else {
          this.#queue.push({ message, bytes: body.length });
          this.#queuedBytes += body.length;
        }
      }
      if (this.#queuedBytes > MAX_QUEUED_BYTES) this.#socket.pause();
    } catch (error) {
      this.#fail(error instanceof DirtmapError ? error : this.#explain(error));
    }
  }

  #ended(): void {
    if (this.#closing) return;
    this.#fail(
      this.#reader.midFrame
        ? frameRefused("the control connection ended in the middle of a message")
        : new DirtmapError("the other side closed the control connection", { code: "CONNECTION_CLOSED" }),
    );
  }

  #fail(error: DirtmapError): void {
    if (this.#lost.signal.aborted) return;
    clearInterval(this.#heartbeat);
    this.#lost.abort(error);
    this.#waiter?.reject(error);
    if (!this.#closing) this.#socket.destroy();
  }
}

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

/**
 * A message as a frame's body: u32 length of the head, the head as JSON, then the data.
 * @throws DirtmapError `MESSAGE_TOO_LONG`
 */
export function encodeMessage(message: ControlMessage): Uint8Array {
  const { data, ...head } = "data" in message ? message : { ...message, data: new Uint8Array(0) };
  const json = encoder.encode(JSON.stringify(head));
  const body = new Uint8Array(4 + json.length + data.length);
  if (data.length > MAX_MESSAGE_DATA || body.length > MAX_CONTROL_BODY) {
    throw new DirtmapError(`a ${message.type} message of ${body.length} bytes is too long`, {
      code: "MESSAGE_TOO_LONG",
      remedy: `cut its data into pieces of at most ${MAX_MESSAGE_DATA} bytes`,
    });
  }
  new DataView(body.buffer).setUint32(0, json.length, true);
  body.set(json, 4);
  body.set(data, 4 + json.length);
  return body;
}

/** The message in a frame's body, checked. @throws DirtmapError `FRAME_REFUSED` */
export function decodeMessage(body: Uint8Array): ControlMessage {
  const length = body.length < 4 ? -1 : new DataView(body.buffer, body.byteOffset).getUint32(0, true);
  if (length < 0 || 4 + length > body.length) throw frameRefused("a message is shorter than it says");
  let json: unknown;
  try {
    json = JSON.parse(decoder.decode(body.subarray(4, 4 + length)));
  } catch (cause) {
    throw frameRefused("a message's head is no JSON", cause);
  }
  const checked = controlHeadSchema.safeParse(json);
  if (!checked.success) {
    const [issue] = checked.error.issues;
    throw frameRefused(`a message is malformed: ${issue.path.join(".") || "head"}: ${issue.message}`, checked.error);
  }
  const head = checked.data;
  const data = body.subarray(4 + length);
  if (isBinaryMessage(head.type)) {
    if (data.length > MAX_MESSAGE_DATA) throw frameRefused(`a ${head.type} message carries ${data.length} bytes`);
    return { ...head, data } as ControlMessage;
  }
  if (data.length > 0) throw frameRefused(`a ${head.type} message carries data`);
  return head as ControlMessage;
}
