import { closeSync } from "node:fs";
import { explain } from "../../errors.js";
import { POLLIN, POLLOUT, PollSet } from "../../sys/poll.js";
import { accept } from "../../sys/unix-socket.js";
import { UapiError } from "../../uapi/errno.js";
import type { NotedMappings } from "../client/feature.js";
import { closeFds, type Message, type MessageSocket } from "../message-socket.js";
import type { SessionKind } from "../server/rights.js";
import type { ProxiedDevice } from "./proxied-device.js";
import { serveDma } from "./server-dma.js";
import { ServerLink } from "./server-link.js";
import { ProxySession } from "./session.js";

/** Control connections at a time. */
const MAX_CONTROLS = 16;

/** How long a server may take until its device is attached: less than the start of this thread may. */
const GREETING_LIMIT_MS = 5000;

/** A server that is gone is looked for again after this long. */
const RETRY_MS = 500;

/** What takes too long is noticed this late at the most. */
const MAX_WAIT_MS = 500;

/** A listener that could not give a connection (no descriptors are left) is left alone for this long. */
const ACCEPT_PAUSE_MS = 1000;

/** Messages of the server that are taken before others have their turn again. */
const MAX_PER_TURN = 64;

/** Places in the poll set; a control connection's is behind them. */
const AT = {
  stop: 0,
  server: 1,
  serverTwin: 2,
  main: 3,
  mainTwin: 4,
  listener: 5,
  controlListener: 6,
  controls: 7,
} as const;

export interface RunProxyOptions {
  readonly device: ProxiedDevice;
  /** Of the server. */
  readonly path: string;
  /** Listening sockets, for the device's client and for those who control. Closed at the end. */
  readonly listener: number;
  readonly controlListener: number;
  /** Readable when the proxy is to stop. */
  readonly stop: number;
  /** Shared with the main thread: descriptors of the connections there are, -1 where none is. */
  readonly connections: Int32Array;
  /** The server has answered: clients are taken from now on. */
  readonly ready: () => void;
  readonly log: (line: string) => void;
}

/**
 * Stands between clients and a server until `stop` is readable, on a thread of its own, which it blocks in poll. Only where
 * something takes several answers of the server does it let promises go on.
 *
 * The server's end is the end of the device's client, as it would be without a proxy; control connections stay, and are told.
 * The server is then looked for until it is there again.
 * @throws UapiError if there is no server to begin with
 */
export async function runProxy(options: RunProxyOptions): Promise<void> {
  const relay = new Relay(options);
  try {
    await relay.run();
  } finally {
    await relay.close();
  }
}

class Relay {
  readonly #options: RunProxyOptions;
  readonly #device: ProxiedDevice;
  readonly #set: PollSet;
  /** The connection to the server; its device is attached once it has answered. */
  #link: ServerLink | null = null;
  #main: ProxySession | null = null;
  #controls: ProxySession[] = [];
  #watchedControls = 0;
  /** The last client's memory and interrupts are being taken away from the server. */
  #leaving = false;
  /** Promises that are under way: they go on only if this thread lets them. */
  #background = 0;
  #failure: unknown;
  #isReady = false;
  #lastFailure = "";
  #retryAt = 0;
  #linkSince = 0;
  #acceptFrom = 0;
  #connections = 0;

  constructor(options: RunProxyOptions) {
    this.#options = options;
    this.#device = options.device;
    this.#set = new PollSet(Array.from({ length: AT.controls + MAX_CONTROLS }, () => ({ fd: -1, events: 0 })));
    this.#set.change(AT.stop, options.stop, POLLIN);
  }

  async run(): Promise<void> {
    this.#connect();
    for (;;) {
      if (this.#background > 0) await new Promise((resolve) => setImmediate(resolve));
      if (this.#failure !== undefined) throw this.#failure;
      this.#checkEnds();
      this.#watch();
      this.#set.wait(this.#hasMore ? 0 : MAX_WAIT_MS);
      if (this.#set.events(AT.stop) !== 0) return;
      this.#serveReady();
    }
  }

  async close(): Promise<void> {
    const sessions = [...this.#controls, ...(this.#main === null ? [] : [this.#main])];
    for (const session of sessions) session.end(null);
    // The server takes the end of its connection for the end of its client.
    this.#endServer(new UapiError("ECONNRESET", { syscall: "recvmsg", attempted: "use a proxy that has ended" }));
    for (const session of sessions) await session.close();
    closeSync(this.#options.listener);
    closeSync(this.#options.controlListener);
  }

  get #hasMore(): boolean {
    const link = this.#link;
    if (link !== null && (link.socket.hasBuffered || link.twin?.hasBuffered === true)) return true;
    return this.#main?.hasMore === true || this.#controls.some((session) => session.hasMore);
  }

  /** Counts a promise, which does not reject. */
  #work(work: Promise<void>): void {
    this.#background++;
    void work.finally(() => {
      this.#background--;
    });
  }

  /** Connects to the server, and attaches its device once it has answered. */
  #connect(): void {
    this.#retryAt = performance.now() + RETRY_MS;
    const { path, ready } = this.#options;
    const device = this.#device;
    try {
      const link = new ServerLink(path, device.serversLog ?? NOTHING_NOTED);
      this.#link = link;
      this.#linkSince = performance.now();
      const attaching = async () => {
        await link.greet();
        await device.attach(link);
        this.#lastFailure = "";
        if (!this.#isReady) ready();
        this.#isReady = true;
      };
      this.#work(attaching().catch((error: unknown) => this.#unreachable(error)));
    } catch (error) {
      this.#unreachable(error);
    }
  }

  /** Without a server to begin with there is no proxy; one that is gone is looked for again, with a line for each new reason. */
  #unreachable(error: unknown): void {
    const failure = asUapiError(error);
    if (!this.#isReady) {
      this.#failure = failure;
      return;
    }
    if (this.#lastFailure !== failure.message) this.#options.log(`the server is not back: ${explain(failure)}`);
    this.#lastFailure = failure.message;
    this.#endServer(failure);
  }

  /** The server is gone: so is the device's client. */
  #endServer(error: UapiError): void {
    const link = this.#link;
    if (link === null) return;
    this.#link = null;
    if (this.#device.server === link) {
      this.#main?.end("the device's server is gone");
      this.#device.detach();
    }
    link.end(error);
  }

  #checkEnds(): void {
    const now = performance.now();
    const link = this.#link;
    if (link?.commands.broken !== undefined) this.#serverFailed(link.commands.broken);
    else if (link !== null && this.#device.server !== link && now - this.#linkSince > GREETING_LIMIT_MS) {
      this.#serverFailed(new Error(`it has not told what it has for ${GREETING_LIMIT_MS} ms`));
    } else if (link?.commands.isLate(now) === true)
      this.#serverFailed(new Error("it has left a command unanswered for 10 s"));
    this.#main?.checkTime(now);
    if (this.#main?.isOver === true) {
      const main = this.#main;
      this.#main = null;
      this.#leaving = true;
      this.#noteConnections();
      this.#work(
        main.close().finally(() => {
          this.#leaving = false;
        }),
      );
    }
    for (const session of this.#controls) {
      session.checkTime(now);
      if (!session.isOver) continue;
      this.#controls = this.#controls.filter((other) => other !== session);
      this.#noteConnections();
      this.#work(session.close());
    }
    if (this.#link === null && this.#isReady && now >= this.#retryAt) this.#connect();
  }

  #watch(): void {
    const { listener, controlListener } = this.#options;
    const accepts = this.#isReady && performance.now() >= this.#acceptFrom;
    const link = this.#link;
    const main = this.#main;
    this.#set.change(AT.server, link?.socket.fd ?? -1, eventsOf(link?.socket ?? null));
    this.#set.change(AT.serverTwin, link?.twin?.fd ?? -1, eventsOf(link?.twin ?? null));
    this.#set.change(AT.main, main?.socket.fd ?? -1, sessionEvents(main));
    this.#set.change(AT.mainTwin, main?.twin?.fd ?? -1, eventsOf(main?.twin ?? null));
    // While the server is found out about, and what the last client left is taken away, the next one waits.
    const mayCome = !this.#leaving && (link === null || this.#device.server === link);
    this.#set.change(AT.listener, accepts && mayCome ? listener : -1, POLLIN);
    this.#set.change(AT.controlListener, accepts ? controlListener : -1, POLLIN);
    for (let i = 0; i < Math.max(this.#controls.length, this.#watchedControls); i++) {
      const session = this.#controls.at(i) ?? null;
      this.#set.change(AT.controls + i, session?.socket.fd ?? -1, sessionEvents(session));
    }
    this.#watchedControls = this.#controls.length;
  }

  #serveReady(): void {
    const set = this.#set;
    // Who is ready is remembered before anyone goes or comes.
    const controls = this.#controls.filter((session, i) => set.events(AT.controls + i) !== 0 || session.hasMore);
    const main = this.#main;
    const link = this.#link;
    if (link !== null && (set.events(AT.server) !== 0 || link.socket.hasBuffered)) this.#serveServer(link, link.socket);
    if (link?.twin != null && (set.events(AT.serverTwin) !== 0 || link.twin.hasBuffered)) {
      this.#serveServer(link, link.twin);
    }
    if (main !== null && set.events(AT.mainTwin) !== 0) main.serveTwin();
    if (main !== null && (set.events(AT.main) !== 0 || main.hasMore)) main.serve();
    for (const session of controls) session.serve();
    // One that comes as the last one goes has its turn when that one's memory is taken away.
    if (set.events(AT.listener) !== 0) this.#main?.serve();
    if (set.events(AT.listener) !== 0 && this.#main?.isOver !== true) this.#accept("main");
    if (set.events(AT.controlListener) !== 0) this.#accept("control");
  }

  /** What has come from the server: replies, and commands of its own. */
  #serveServer(link: ServerLink, socket: MessageSocket): void {
    if (this.#link !== link) return;
    try {
      if (socket.unsent) socket.flush();
      for (let turn = 0; turn < MAX_PER_TURN; turn++) {
        const message = turn === 0 ? socket.receive() : socket.buffered();
        if (message === undefined) return;
        if (message === "closed") {
          this.#serverFailed(null);
          return;
        }
        this.#takeFromServer(link, socket, message);
      }
    } catch (error) {
      this.#serverFailed(error);
    }
  }

  #takeFromServer(link: ServerLink, socket: MessageSocket, message: Message): void {
    if (message.isReply) {
      link.commands.take(message);
      return;
    }
    if (socket === link.socket && link.twin !== null) {
      closeFds(message.fds);
      throw new Error("it sent a command on the socket that is for its client's");
    }
    const client = this.#main?.isReady === true ? this.#main : null;
    const background = (work: Promise<void>) => this.#work(work);
    serveDma(message, socket, { device: this.#device, server: link.commands, client, background });
  }

  /** @param error null: it has closed the connection */
  #serverFailed(error: unknown): void {
    const { path, log } = this.#options;
    const code = (error as { code?: string } | null)?.code;
    const isGone = error === null || code === "EPIPE" || code === "ECONNRESET";
    const why = isGone ? "has closed the connection" : `is given up: ${explain(error)}`;
    if (this.#device.server !== null) log(`the server at ${path} ${why}; its client is disconnected`);
    const remedy = "see that server's log: it may have ended, or have another client (it has one at a time)";
    const attempted = `use the server at ${path}, which ${why}`;
    this.#endServer(new UapiError("ECONNRESET", { syscall: "recvmsg", attempted, remedy, cause: error }));
  }

  #accept(kind: SessionKind): void {
    const { listener, controlListener, stop, log } = this.#options;
    try {
      const socket = accept(kind === "main" ? listener : controlListener);
      if (socket === undefined) return;
      const name = `${kind === "main" ? "client" : "control client"} ${++this.#connections}`;
      const refused = this.#whyNot(kind);
      if (refused !== null) {
        socket[Symbol.dispose]();
        log(`${name} is refused: ${refused}`);
        return;
      }
      const background = (work: Promise<void>) => this.#work(work);
      const session = new ProxySession({ name, kind, socket, device: this.#device, stop, log, background });
      if (kind === "main") {
        this.#main = session;
        this.#device.movement.noteMeanwhile(name, "come");
      } else this.#controls.push(session);
      this.#noteConnections();
      session.serve();
    } catch (error) {
      this.#acceptFrom = performance.now() + ACCEPT_PAUSE_MS;
      log(`a connection can't be taken: ${explain(error)}`);
    }
  }

  #whyNot(kind: SessionKind): string | null {
    if (kind === "control") return this.#controls.length < MAX_CONTROLS ? null : `there are ${MAX_CONTROLS} already`;
    if (this.#main !== null) return "the device has a client";
    return this.#device.server === null ? `the server at ${this.#options.path} is gone` : null;
  }

  #noteConnections(): void {
    const { connections } = this.#options;
    connections[0] = this.#main?.socket.fd ?? -1;
    for (let i = 0; i < MAX_CONTROLS; i++) connections[i + 1] = this.#controls.at(i)?.socket.fd ?? -1;
  }
}

/** Of a log that is kept here: the server's is not used. */
const NOTHING_NOTED: NotedMappings = { mapped: [], written: null };

function eventsOf(socket: MessageSocket | null): number {
  return socket?.unsent === true ? POLLIN | POLLOUT : POLLIN;
}

/** A client that does not read its replies, or is ahead of the server, is not listened to. */
function sessionEvents(session: ProxySession | null): number {
  if (session === null) return 0;
  if (session.socket.unsent) return POLLOUT;
  return session.isFull ? 0 : POLLIN;
}

function asUapiError(error: unknown): UapiError {
  if (error instanceof UapiError) return error;
  return new UapiError("EPROTO", { syscall: "connect", attempted: `use the server: ${explain(error)}`, cause: error });
}
