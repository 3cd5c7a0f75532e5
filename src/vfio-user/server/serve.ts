import { closeSync } from "node:fs";
import { performance } from "node:perf_hooks";
import { explain } from "../../errors.js";
import { POLLIN, POLLOUT, PollSet } from "../../sys/poll.js";
import { accept, WAIT_MS } from "../../sys/unix-socket.js";
import { VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import type { SessionKind } from "./rights.js";
import type { ServedDevice } from "./served-device.js";
import { Session, type Turn } from "./session.js";

/** A wait that nothing bounds is looked at again after this long. */
const MAX_WAIT_MS = 1000;

/** How long a device works before the sockets are looked at again. */
const SLICE_MS = 1;

/** Control connections at a time. */
const MAX_CONTROLS = 16;

/** Clients at a time, of both kinds. */
export const MAX_CONNECTIONS = 1 + MAX_CONTROLS;

/** How long the device's client alone is attended to, before everything else is looked at again. */
const ATTEND_MS = 2;

/** Busy polling: one look at the clock, which takes a third of the time of a look at the socket, for so many of these. */
const LOOKS_AT_CLOCK = 8;

/** A listener that could not give a connection (no descriptors are left) is left alone for this long. */
const ACCEPT_PAUSE_MS = 1000;

/** Places in the poll set; a control connection's is behind them. */
const AT = { stop: 0, main: 1, listener: 2, unmask: 3, controlListener: 4, controls: 5 } as const;

export interface ServeOptions {
  readonly device: ServedDevice;
  /** Listening sockets: of the device's client, and of those who control. Closed at the end. */
  readonly listener: number;
  readonly controlListener: number;
  /** Readable when the server is to stop. */
  readonly stop: number;
  /** Shared with the main thread: descriptors of the clients there are, -1 where none is. */
  readonly connections: Int32Array;
  /** Spin on the client's socket instead of sleeping: a core's whole time, for a tenth of the latency. */
  readonly busy: boolean;
  /** Let the thread's event loop turn, for a model that needs it. */
  readonly turnEventLoop: boolean;
  readonly log: (line: string) => void;
}

/**
 * Serves a device until `stop` is readable, on a thread of its own, which it blocks: it waits for clients and the device
 * together, in poll, and lets the device work between messages.
 *
 * The device has one client; a second is refused, as is the seventeenth control connection. A client may go and another
 * come.
 */
export async function serve(options: ServeOptions): Promise<void> {
  const server = new Server(options);
  try {
    await server.run();
  } finally {
    await server.close();
  }
}

class Server {
  readonly #options: ServeOptions;
  readonly #device: ServedDevice;
  readonly #set: PollSet;
  #main: Session | undefined;
  #controls: Session[] = [];
  /** When the device wants to run, by performance.now(). */
  #dueAt = 0;
  /** When it was last asked whether it wants to. */
  #now = 0;
  /** A session has more to do than fit its turn. */
  #more = false;
  #watchedControls = 0;
  /** A message of the device's client came a moment ago: so does the next one. */
  #isHot = false;
  #connections = 0;
  #acceptFrom = 0;

  constructor(options: ServeOptions) {
    this.#options = options;
    this.#device = options.device;
    this.#set = new PollSet(Array.from({ length: AT.controls + MAX_CONTROLS }, () => ({ fd: -1, events: 0 })));
    this.#set.change(AT.stop, options.stop, POLLIN);
  }

  async run(): Promise<void> {
    for (;;) {
      if (this.#options.turnEventLoop) await new Promise((resolve) => setImmediate(resolve));
      this.#runDevice();
      if (this.#main?.isOver) await this.#close(this.#main);
      if (this.#main !== undefined && (this.#options.busy || this.#mayWaitForClient)) {
        const turn = this.#attend(this.#main);
        if (turn !== null) await this.#settle(this.#main, turn);
      }
      this.#watch();
      this.#set.wait(this.#waitMs());
      if (this.#set.events(AT.stop) !== 0) return;
      await this.#serveReady();
    }
  }

  async close(): Promise<void> {
    // Clients that listen give the device back; the others find out when their connection ends.
    this.#device.irqs.raise(VFIO_PCI_IRQ_INDEX.REQ, 0);
    for (const session of [...this.#controls, ...(this.#main === undefined ? [] : [this.#main])])
      await this.#close(session, { serverEnds: true });
    closeSync(this.#options.listener);
    closeSync(this.#options.controlListener);
  }

  #runDevice(): void {
    this.#now = performance.now();
    if (this.#now < this.#dueAt) return;
    const wait = this.#device.run(SLICE_MS);
    this.#dueAt = wait === undefined ? Number.POSITIVE_INFINITY : this.#now + wait;
  }

  #waitMs(): number {
    if (this.#options.busy && this.#main !== undefined) return 0;
    if (this.#more || this.#main?.hasHeld === true) return 0;
    return Math.min(MAX_WAIT_MS, Math.max(0, Math.ceil(this.#dueAt - performance.now())));
  }

  /**
   * The client may be waited for in recvmsg itself: that saves a system call for each message, a poll of all that there
   * is. So it is while messages come one after the other, and nobody else has to be heard at once.
   */
  get #mayWaitForClient(): boolean {
    return (
      this.#isHot &&
      this.#controls.length === 0 &&
      this.#device.irqs.unmaskFd < 0 &&
      !this.#more &&
      !this.#options.turnEventLoop &&
      this.#main?.unsent === false
    );
  }

  /**
   * Attends to the device's client and the device alone, for a while: without sleeping (busy), or asleep until the next
   * message. Returns null when it is time to look around, or what has become of the client's turn where that is more than
   * an answer.
   */
  #attend(client: Session): Turn | Promise<Turn> | null {
    const { busy } = this.#options;
    const { messages } = this.#device;
    const until = this.#now + ATTEND_MS;
    for (let look = 0; ; look++) {
      if (!busy && this.#dueAt - this.#now < WAIT_MS) break;
      const before = messages.answered + messages.refused;
      const turn = client.serve(!busy);
      if (turn !== "waiting") return turn;
      if (messages.answered + messages.refused !== before) {
        // Whatever was answered may be work for the device, and so may a wait that has come to its end.
        this.#dueAt = 0;
        this.#runDevice();
        if (client.unsent || this.#now >= until) break;
      } else if (!busy) {
        this.#isHot = false;
        break;
      } else if (look % LOOKS_AT_CLOCK === 0) {
        const now = performance.now();
        if (now >= this.#dueAt || now >= until) break;
      }
    }
    return null;
  }

  /** Tells the poll set what to wait for. */
  #watch(): void {
    const { listener, controlListener } = this.#options;
    const accepts = performance.now() >= this.#acceptFrom;
    this.#set.change(AT.main, this.#main?.fd ?? -1, eventsOf(this.#main));
    this.#set.change(AT.listener, accepts ? listener : -1, POLLIN);
    this.#set.change(AT.unmask, this.#device.irqs.unmaskFd, POLLIN);
    this.#set.change(AT.controlListener, accepts ? controlListener : -1, POLLIN);
    // Those that were there the last time, too: they may be gone.
    for (let i = 0; i < Math.max(this.#controls.length, this.#watchedControls); i++) {
      const session = this.#controls[i];
      this.#set.change(AT.controls + i, session?.fd ?? -1, eventsOf(session));
    }
    this.#watchedControls = this.#controls.length;
  }

  async #serveReady(): Promise<void> {
    const more = this.#more;
    this.#more = false;
    if (this.#set.events(AT.unmask) !== 0) this.#device.irqs.takeUnmask();
    // The set is of the moment before: who is ready is remembered before anyone goes or comes.
    const controls = this.#controls.filter(
      (session, i) => more || this.#set.events(AT.controls + i) !== 0 || session.isOver,
    );
    const mainIsReady = more || this.#set.events(AT.main) !== 0 || this.#main?.hasHeld === true;
    if (this.#main !== undefined && (mainIsReady || this.#main.isOver)) await this.#serve(this.#main);
    for (const session of controls) await this.#serve(session);
    if (this.#set.events(AT.listener) !== 0) await this.#accept("main");
    if (this.#set.events(AT.controlListener) !== 0) await this.#accept("control");
  }

  async #serve(session: Session): Promise<void> {
    if (session === this.#main) this.#isHot = true;
    await this.#settle(session, session.isOver ? "over" : session.serve());
  }

  async #settle(session: Session, turn: Turn | Promise<Turn>): Promise<void> {
    const done = turn instanceof Promise ? await turn : turn;
    // What a command has changed may be work for the device.
    this.#dueAt = 0;
    if (done === "over") await this.#close(session);
    else if (done === "more") this.#more = true;
  }

  async #accept(kind: SessionKind): Promise<void> {
    const { listener, controlListener, stop, log } = this.#options;
    try {
      const socket = accept(kind === "main" ? listener : controlListener);
      if (socket === undefined) return;
      const name = `${kind === "main" ? "client" : "control client"} ${++this.#connections}`;
      if (kind === "main" ? this.#main !== undefined : this.#controls.length >= MAX_CONTROLS) {
        socket[Symbol.dispose]();
        log(`${name} is refused: ${kind === "main" ? "the device has a client" : `there are ${MAX_CONTROLS} already`}`);
        return;
      }
      const session = new Session({ name, kind, socket, device: this.#device, stop, log });
      if (kind === "main") {
        this.#main = session;
        this.#device.movement.noteMeanwhile(name, "come");
      } else this.#controls.push(session);
      this.#noteConnections();
      await this.#serve(session);
    } catch (error) {
      this.#acceptFrom = performance.now() + ACCEPT_PAUSE_MS;
      log(`a connection can't be taken: ${explain(error)}`);
    }
  }

  async #close(session: Session, how?: { serverEnds: boolean }): Promise<void> {
    if (session === this.#main) this.#main = undefined;
    this.#controls = this.#controls.filter((other) => other !== session);
    this.#noteConnections();
    await session.close(how);
  }

  #noteConnections(): void {
    const { connections } = this.#options;
    connections[0] = this.#main?.fd ?? -1;
    for (let i = 0; i < MAX_CONTROLS; i++) connections[i + 1] = this.#controls.at(i)?.fd ?? -1;
  }
}

function eventsOf(session: Session | undefined): number {
  return session?.unsent === true ? POLLOUT : POLLIN;
}
