import type { Duplex } from "node:stream";
import { DirtmapError } from "../../errors.js";
import { versionMismatch } from "../../version-mismatch.js";
import { encodeFrame, frameRefused, MAX_CHANNEL_BODY, MAX_CONTROL_BODY } from "./frame.js";
import { FrameReader } from "./frame-reader.js";
import {
  type ControlMessage,
  controlHeadSchema,
  isBinaryMessage,
  MAX_MESSAGE_DATA,
  PROTOCOL_VERSION,
} from "./messages.js";

/** A peer that has said nothing for this long is gone or stopped; each side speaks at least four times as often. */
export const SILENCE_MS = 10_000;

/** Received but not yet asked for: above this the socket is read no further. */
const MAX_QUEUED_BYTES = 16 << 20;

/** How long an orderly close waits for the peer's end, and how long a peer that is refused may take to read why. */
const CLOSE_MS = 2_000;

/** Why a connection can't go on, as ABORT, REFUSE and REFUSED carry it. */
export interface Problem {
  readonly code: string;
  readonly message: string;
  readonly remedy?: string | undefined;
}

export interface ControlConnectionOptions {
  /** For tests: {@link SILENCE_MS}. */
  readonly silenceMs?: number;
  /** Who the other side is: an address, for messages. */
  readonly peer?: string;
  /** Which side the other one is. Default: destination. */
  readonly other?: "source" | "destination";
  /** Reads no further than the first frame until {@link ControlConnection.begin}: nobody has decided to take it yet. */
  readonly held?: boolean;
  /** Explains errors of the socket; the transport knows the address. */
  readonly explain?: (error: unknown) => DirtmapError;
}

interface Waiter {
  resolve(message: ControlMessage): void;
  reject(error: unknown): void;
}

/**
 * The conversation between source and destination. Messages arrive in order, or receive() and send() reject with what
 * happened to the connection. It sends and expects a PING where nothing else is said, so that no wait is without bound:
 * a peer that died without a word, or was stopped, is noticed.
 */
export class ControlConnection implements AsyncDisposable {
  /** Who the other side is: an address. */
  readonly peer: string;
  /**
   * Resolves with the other side's first message, of whatever type: only then is it known to speak this protocol.
   * @throws DirtmapError `INCOMPATIBLE`, `PEER_SILENT`, `CONNECTION_CLOSED`, `FRAME_REFUSED`, or what the transport says
   */
  readonly introduced: Promise<void>;
  readonly #socket: Duplex;
  readonly #other: "source" | "destination";
  readonly #silenceMs: number;
  readonly #explain: (error: unknown) => DirtmapError;
  /** The first message is a PING, or a REFUSE: a stranger costs no more memory than that. */
  readonly #reader = new FrameReader(0, ["CONTROL"], MAX_CHANNEL_BODY * 4);
  readonly #queue: { message: ControlMessage; bytes: number }[] = [];
  readonly #heartbeat: NodeJS.Timeout;
  #queuedBytes = 0;
  #waiter: Waiter | undefined;
  #sequence = 0;
  #lost: DirtmapError | undefined;
  #closing = false;
  #held: boolean;
  #introduce: () => void = () => {};
  #neverIntroduced: (error: DirtmapError) => void = () => {};
  #heardAt = performance.now();
  #spokeAt = performance.now();

  constructor(socket: Duplex, options: ControlConnectionOptions = {}) {
    this.peer = options.peer ?? "unknown";
    this.introduced = new Promise((resolve, reject) => {
      this.#introduce = resolve;
      this.#neverIntroduced = reject;
    });
    // A caller that goes straight on to receive() learns of it there.
    this.introduced.catch(() => {});
    this.#socket = socket;
    this.#other = options.other ?? "destination";
    this.#held = options.held ?? false;
    this.#silenceMs = options.silenceMs ?? SILENCE_MS;
    this.#explain =
      options.explain ??
      ((cause) => new DirtmapError("the control connection broke", { code: "CONNECTION_LOST", cause }));
    socket.on("data", (bytes: Uint8Array) => this.#take(bytes));
    socket.on("end", () => this.#ended());
    socket.on("close", () => this.#ended());
    socket.on("error", (error) => {
      // What had arrived before the error, and waited because reading was paused.
      for (let bytes = socket.read(); bytes !== null; bytes = socket.read()) this.#take(bytes);
      this.#fail(this.#explain(error));
    });
    // Accepted connections come paused.
    socket.resume();
    this.#heartbeat = setInterval(() => this.#beat(), this.#silenceMs / 8);
    this.#speak({ type: "PING" });
  }

  /** Resolves when the system has taken the message. @throws DirtmapError `MESSAGE_TOO_LONG`, or why the connection is lost */
  send(message: ControlMessage): Promise<void> {
    if (this.#lost !== undefined) return Promise.reject(this.#lost);
    return new Promise((resolve, reject) => {
      this.#speak(message, (error) => {
        if (error) reject(this.#lost ?? this.#explain(error));
        else resolve();
      });
    });
  }

  /**
   * The next message, PINGs left out; one caller at a time. Messages that came before the connection was lost are still
   * given out.
   * @throws DirtmapError `PEER_SILENT`, `CONNECTION_CLOSED`, `FRAME_REFUSED`, or what the transport says
   */
  receive(): Promise<ControlMessage> {
    const next = this.#queue.shift();
    if (next !== undefined) {
      this.#queuedBytes -= next.bytes;
      if (this.#queuedBytes <= MAX_QUEUED_BYTES) this.#socket.resume();
      return Promise.resolve(next.message);
    }
    if (this.#lost !== undefined) return Promise.reject(this.#lost);
    if (this.#waiter !== undefined) throw new Error("receive() is waiting already");
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
    });
  }

  /** Reads on behind the first message of a connection that was held. */
  begin(): void {
    this.#held = false;
    this.#heardAt = performance.now();
    this.#socket.resume();
  }

  /** True once nothing more can come of the connection: it is lost, or was closed here. */
  get over(): boolean {
    return this.#lost !== undefined || this.#closing;
  }

  /** Tells the other side why it can't stay, and ends the connection once it has had time to read that. */
  refuse({ code, message, remedy }: Problem): void {
    if (this.over) return;
    this.#speak({ type: "REFUSE", code, message, ...(remedy === undefined ? {} : { remedy }) });
    this.#dismiss(new DirtmapError(message, { code, remedy }));
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
    const frame = encodeControlFrame(this.#sequence, message);
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
    // What a side still says that was refused is dropped.
    if (this.#lost !== undefined) return;
    this.#heardAt = performance.now();
    try {
      for (const { header, body } of this.#reader.push(bytes)) {
        if (header.round !== PROTOCOL_VERSION) {
          throw versionMismatch({
            what: "the migration protocol",
            other: `the ${this.#other}`,
            here: this.#other === "source" ? "the destination" : "the source",
            // Version 1 wrote 0.
            theirs: Math.max(1, header.round),
            ours: PROTOCOL_VERSION,
          });
        }
        const message = decodeMessage(body);
        this.#introduce();
        if (message.type === "PING") continue;
        const waiter = this.#waiter;
        this.#waiter = undefined;
        if (waiter !== undefined) waiter.resolve(message);
        else {
          this.#queue.push({ message, bytes: body.length });
          this.#queuedBytes += body.length;
        }
      }
      if (this.#held || this.#queuedBytes > MAX_QUEUED_BYTES) this.#socket.pause();
    } catch (error) {
      const problem = error instanceof DirtmapError ? error : this.#explain(error);
      // A source of another version can read a REFUSE: it has been the same in all of them.
      if (problem.code === "INCOMPATIBLE" && this.#other === "source") this.refuse(problem);
      else this.#fail(problem);
    }
  }

  /** Ends the connection when the other side has read what was said last, or after a while. */
  #dismiss(error: DirtmapError): void {
    this.#fail(error, { destroy: false });
    this.#socket.end();
    this.#socket.resume();
    const timer = setTimeout(() => this.#socket.destroy(), CLOSE_MS);
    this.#socket.once("close", () => clearTimeout(timer));
  }

  #ended(): void {
    if (this.#closing) return;
    this.#fail(
      this.#reader.midFrame
        ? frameRefused("the control connection ended in the middle of a message")
        : new DirtmapError("the other side closed the control connection", { code: "CONNECTION_CLOSED" }),
    );
  }

  #fail(error: DirtmapError, { destroy = true }: { destroy?: boolean } = {}): void {
    if (this.#lost !== undefined) return;
    clearInterval(this.#heartbeat);
    this.#lost = error;
    this.#neverIntroduced(error);
    this.#waiter?.reject(error);
    this.#waiter = undefined;
    if (destroy && !this.#closing) this.#socket.destroy();
  }
}

/** A control message as the `sequence`-th frame of its direction. @throws DirtmapError `MESSAGE_TOO_LONG` */
export function encodeControlFrame(sequence: number, message: ControlMessage): Uint8Array {
  return encodeFrame({ type: "CONTROL", channel: 0, sequence, round: PROTOCOL_VERSION }, encodeMessage(message));
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
