import { randomUUID } from "node:crypto";
import { connect, type Socket } from "node:net";
import { resolve } from "node:path";
import { DirtmapError, UsageError } from "../../errors.js";
import { safeText } from "../../safe-text.js";
import { type EventStream, EventStreams } from "./event-stream.js";
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
  /** Milliseconds for QEMU to answer a command. Default: 10 s. */
  readonly answerMs?: number;
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
  readonly #pending = new Map<string, Pending>();
  /** In front of the ids of this connection's commands. */
  readonly #ours = `${randomUUID().slice(0, 8)}-`;
  readonly #streams = new EventStreams();
  /** The greeting, until it has come. */
  #greeted: ((failure: Error | null) => void) | undefined;
  #parts: string[] = [];
  #bytes = 0;
  #asked = 0;
  #failure: Error | undefined;
  readonly #answerMs: number;

  private constructor(path: string, answerMs: number) {
    this.name = safeText(path);
    this.#answerMs = answerMs;
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
   * @throws UsageError `QMP_UNREACHABLE` where nobody listens, `QMP_BUSY` where another client holds the monitor, or QEMU stands still;
   * DirtmapError `QMP_PROTOCOL`
   */
  static async open(
    path: string,
    { greetingMs = GREETING_MS, answerMs = ANSWER_MS }: SocketMonitorOptions = {},
  ): Promise<SocketMonitor> {
    const monitor = new SocketMonitor(path, answerMs);
    try {
      await monitor.#greeting(greetingMs);
      await monitor.execute("qmp_capabilities", { enable: ["oob"] }).catch((error: unknown) => {
        if (!(error instanceof QmpRefusal)) throw error;
        return monitor.execute("qmp_capabilities");
      });
      return monitor;
    } catch (error) {
      await monitor[Symbol.asyncDispose]();
      throw error;
    }
  }

  execute(
    command: string,
    args: object = {},
    { limitMs = this.#answerMs, outOfBand = false }: ExecuteOptions = {},
  ): Promise<unknown> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#pending.size >= MAX_PENDING) return Promise.reject(tooMany(this.name));
    const id = `${this.#ours}${++this.#asked}`;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(timedOut(this.name, command, limitMs));
      }, limitMs);
      this.#pending.set(id, { command, timer, resolve, reject });
      const how = outOfBand ? "exec-oob" : "execute";
      this.#socket.write(`${JSON.stringify({ [how]: command, arguments: args, id })}\n`);
    });
  }

  events(): EventStream {
    return this.#streams.open();
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
            new UsageError(
              `the monitor at ${this.name} has not greeted for ${limitMs} ms: another client holds the monitor, or QEMU stands still`,
              {
                code: "QMP_BUSY",
                remedy:
                  "close that client, or start QEMU with a second monitor, -qmp unix:PATH,server=on,wait=off; let a stopped QEMU go on",
              },
            ),
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
      if (message.kind === "event") this.#streams.push(message.event);
      else this.#answer(message);
    } catch (error) {
      this.#end(error as Error);
    }
  }

  #answer(message: Exclude<QmpMessage, { kind: "event" }>): void {
    const { id } = message;
    if (message.kind === "refusal" && id === undefined) {
      throw new DirtmapError(`QEMU at ${this.name} could not read a command: ${message.reason}`, {
        code: "QMP_PROTOCOL",
      });
    }
    const pending = this.#pending.get(String(id));
    if (pending === undefined) {
      if (this.#isLeftOver(id)) return;
      throw new DirtmapError(`QEMU at ${this.name} answers a command that nobody gave`, { code: "QMP_PROTOCOL" });
    }
    this.#pending.delete(String(id));
    clearTimeout(pending.timer);
    if (message.kind === "answer") pending.resolve(message.value);
    else {
      const { qemuClass, reason } = message;
      pending.reject(new QmpRefusal({ monitor: this.name, command: pending.command, qemuClass, reason }));
    }
  }

  /**
   * The late answer to a command that is waited for no more, or what an earlier client was owed: a QEMU that stood still gives
   * that to the next one.
   */
  #isLeftOver(id: unknown): boolean {
    if (id === undefined) return false;
    if (typeof id !== "string" || !id.startsWith(this.#ours)) return true;
    const number = Number(id.slice(this.#ours.length));
    return number >= 1 && number <= this.#asked;
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
    this.#streams.fail(error);
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
