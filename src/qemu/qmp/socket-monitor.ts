import { connect, type Socket } from "node:net";
import { resolve } from "node:path";
import { DirtmapError, UsageError } from "../../errors.js";
import { safeText } from "../../safe-text.js";
import { EventStream } from "./event-stream.js";
import { checkGreeting, type QmpMessage, readMessage } from "./messages.js";
import { ANSWER_MS, type ExecuteOptions, MAX_PENDING, type Monitor, QmpRefusal, timedOut, tooMany } from "./monitor.js";

/** How long QEMU may take to greet. A monitor that has a client accepts another, and says nothing. */
const GREETING_MS = 3000;

/** Bytes of a line. The longest answers that are asked for are lists of devices; a line that is longer ends the connection. */
const MAX_LINE = 8 * 2 ** 20;

interface Pending {
  readonly command: string;
  readonly timer: NodeJS.Timeout;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

export interface SocketMonitorOptions {
  /** Milliseconds for QEMU to greet. Default: 3 s. */
  readonly greetingMs?: number;
}

/**
 * A QMP monitor at a UNIX socket.
 *
 * A connection that ends, or on which something comes that is no QMP, is over: every command that is under way, every later
 * one, and every stream of events fails with the same error.
 */
export class SocketMonitor implements Monitor {
  readonly name: string;
  readonly place: { readonly qmp: string };
  readonly #socket: Socket;
  readonly #pending = new Map<number, Pending>();
  readonly #streams = new Set<EventStream>();
  /** The greeting, until it has come. */
  #greeted: ((failure: Error | null) => void) | undefined;
  #parts: string[] = [];
  #bytes = 0;
  #id = 0;
  #failure: Error | undefined;

  private constructor(path: string) {
    this.name = safeText(path);
    this.place = { qmp: resolve(path) };
    this.#socket = connect(path);
    this.#socket.setEncoding("utf8");
    this.#socket.on("data", (text: string) => this.#take(text));
    this.#socket.on("error", (error: NodeJS.ErrnoException) => this.#fail(this.#unreachable(error)));
    this.#socket.on("close", () => {
      this.#fail(
        new DirtmapError(`QEMU has closed its monitor at ${this.name}`, {
          code: "QMP_CLOSED",
          remedy: "see whether it has ended: its own log, or the journal of what started it",
        }),
      );
    });
  }

  /**
   * Connects, and agrees on capabilities.
   * @throws UsageError `QMP_UNREACHABLE` where nobody listens, `QMP_BUSY` where another client holds the monitor;
   * DirtmapError `QMP_PROTOCOL`
   */
  static async open(path: string, { greetingMs = GREETING_MS }: SocketMonitorOptions = {}): Promise<SocketMonitor> {
    const monitor = new SocketMonitor(path);
    try {
      await monitor.#greeting(greetingMs);
      await monitor.execute("qmp_capabilities");
      return monitor;
    } catch (error) {
      await monitor[Symbol.asyncDispose]();
      throw error;
    }
  }

  execute(command: string, args: object = {}, { limitMs = ANSWER_MS }: ExecuteOptions = {}): Promise<unknown> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#pending.size >= MAX_PENDING) return Promise.reject(tooMany(this.name));
    const id = ++this.#id;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(timedOut(this.name, command, limitMs));
      }, limitMs);
      this.#pending.set(id, { command, timer, resolve, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  events(): EventStream {
    const stream = new EventStream(() => this.#streams.delete(stream));
    if (this.#failure === undefined) this.#streams.add(stream);
    else stream.fail(this.#failure);
    return stream;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#fail(new DirtmapError(`the connection to QEMU at ${this.name} is closed`, { code: "QMP_CLOSED" }));
    this.#socket.destroy();
  }

  async #greeting(limitMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const failure = await new Promise<Error | null>((resolve) => {
      this.#greeted = resolve;
      timer = setTimeout(
        () =>
          resolve(
            new UsageError(`another client holds the monitor at ${this.name}: it has not greeted for ${limitMs} ms`, {
              code: "QMP_BUSY",
              remedy: "close that client, or give QEMU a second monitor of its own: -qmp unix:PATH,server=on,wait=off",
            }),
          ),
        limitMs,
      );
    });
    clearTimeout(timer);
    this.#greeted = undefined;
    if (failure !== null) throw failure;
  }

  #take(text: string): void {
    const lines = text.split("\n");
    const rest = lines.pop() ?? "";
    for (const line of lines) {
      this.#parts.push(line);
      const whole = this.#parts.join("");
      this.#parts = [];
      this.#bytes = 0;
      if (this.#failure === undefined && whole.trim() !== "") this.#line(whole);
    }
    this.#parts.push(rest);
    this.#bytes += rest.length;
    if (this.#bytes > MAX_LINE) {
      this.#end(new DirtmapError(`${this.name} says more than ${MAX_LINE} bytes in a line`, { code: "QMP_PROTOCOL" }));
    }
  }

  #line(line: string): void {
    try {
      if (this.#greeted !== undefined) {
        checkGreeting(line, this.name);
        this.#greeted(null);
        this.#greeted = undefined;
        return;
      }
      const message = readMessage(line, this.name);
      if (message.kind === "event") for (const stream of this.#streams) stream.push(message.event);
      else this.#answer(message);
    } catch (error) {
      this.#end(error as Error);
    }
  }

  #answer(message: Exclude<QmpMessage, { kind: "event" }>): void {
    if (message.kind === "refusal" && message.id === undefined) {
      throw new DirtmapError(`QEMU at ${this.name} could not read a command: ${message.reason}`, {
        code: "QMP_PROTOCOL",
      });
    }
    const { id = 0 } = message;
    const pending = this.#pending.get(id);
    if (pending === undefined) {
      // The late answer to a command that is waited for no more.
      if (id >= 1 && id <= this.#id) return;
      throw new DirtmapError(`QEMU at ${this.name} answers a command that nobody gave`, { code: "QMP_PROTOCOL" });
    }
    this.#pending.delete(id);
    clearTimeout(pending.timer);
    if (message.kind === "answer") pending.resolve(message.value);
    else {
      const { qemuClass, reason } = message;
      pending.reject(new QmpRefusal({ monitor: this.name, command: pending.command, qemuClass, reason }));
    }
  }

  #end(error: Error): void {
    this.#fail(error);
    this.#socket.destroy();
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#greeted?.(error);
    for (const { timer, reject } of this.#pending.values()) {
      clearTimeout(timer);
      reject(error);
    }
    this.#pending.clear();
    for (const stream of this.#streams) stream.fail(error);
    this.#streams.clear();
  }

  #unreachable(cause: NodeJS.ErrnoException): Error {
    const known = UNREACHABLE[cause.code ?? ""];
    if (known === undefined) {
      return new DirtmapError(`the connection to QEMU at ${this.name} has failed: ${cause.code ?? cause.message}`, {
        code: "QMP_CLOSED",
        cause,
      });
    }
    return new UsageError(`no QEMU can be reached at ${this.name}: ${known.text}`, {
      code: "QMP_UNREACHABLE",
      remedy: known.remedy,
      cause,
    });
  }
}

const UNREACHABLE: Readonly<Record<string, { readonly text: string; readonly remedy: string }>> = {
  ENOENT: { text: "there is no such socket", remedy: "start QEMU with -qmp unix:PATH,server=on,wait=off" },
  ECONNREFUSED: {
    text: "nobody listens at this socket",
    remedy: "start QEMU again: the one that made it has ended",
  },
  ENOTSOCK: { text: "it is no socket", remedy: "give the socket of -qmp unix:PATH,server=on,wait=off" },
  EACCES: { text: "this user may not connect to it", remedy: "run as the user that QEMU runs as" },
};
