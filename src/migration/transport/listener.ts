import { createServer, type Socket } from "node:net";
import { DirtmapError, UsageError } from "../../errors.js";
import { ControlConnection } from "../stream/control-connection.js";
import type { TlsCredentials } from "./credentials.js";
import { type Endpoint, formatEndpoint } from "./endpoint.js";
import { secure, turnAway } from "./secure.js";
import { transportError } from "./transport-error.js";

/**
 * Connections that have not said yet what they are: TLS handshake, first message. They are met beside each other, for at
 * most as long as a control connection may be silent. One more makes the oldest leave: an honest source introduces
 * itself within a round trip.
 */
const MAX_STRANGERS = 64;

/** Sources that wait to be accepted; more are told that the destination is busy. */
const MAX_WAITING = 16;

/** How long a source waits to be accepted where nobody is being received, until it is told that it won't be. */
const WAIT_MS = 10_000;

/** A port at which control connections and channels arrive. */
export interface Listener extends AsyncDisposable {
  /** The address, with the port that the system chose if port 0 was asked for. */
  readonly endpoint: Endpoint;
  /** The TLS credentials of connections accepted here; undefined: plain TCP. */
  readonly credentials: TlsCredentials | undefined;
  /**
   * Returns the next source's control connection. While it is open, further sources are told at once that the destination is
   * busy. Other connections (a port scan, a wrong certificate) are turned away and reported to `onRefused`, and delay nobody.
   * @throws the signal's reason; DirtmapError `LISTENER_CLOSED`
   */
  acceptControl(signal?: AbortSignal): Promise<ControlConnection>;
  /** Sets the text that further sources get about the accepted one: "migration 0123abcd". */
  describe(what: string): void;
  /** Refuses sources for a long time, with this reason: "the machine of migration 0123abcd, which runs here". */
  occupy(by: string): void;
  /** Returns the error for a source that can't be accepted: what the destination is busy with, and since when. */
  busy(): DirtmapError;
  /** Gives `take` all connections that come from now on, unread, until the result is disposed. */
  takeConnections(take: (socket: Socket) => void): Disposable;
}

/**
 * Listens. Control connections and channels come to the same port; the first is the control connection.
 * @throws UsageError `PORT_IN_USE`, `NO_CREDENTIALS` …
 */
export async function listen(args: {
  endpoint: Endpoint;
  credentials?: TlsCredentials | undefined;
  onRefused?: (error: DirtmapError) => void;
}): Promise<Listener> {
  const { endpoint, onRefused = () => {} } = args;
  const credentials = endpoint.scheme === "tls" ? args.credentials : undefined;
  if (endpoint.scheme === "tls" && credentials === undefined) {
    throw new UsageError("tls:// needs a certificate, a key and a CA", {
      code: "NO_CREDENTIALS",
      remedy: "give a folder made by `dirtmap certs`",
    });
  }
  const door = new Door(credentials, onRefused);
  const server = createServer({ pauseOnConnect: true, noDelay: true }, (socket) => door.opened(socket));
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(transportError(error, "listen on", endpoint)));
    server.listen({ host: endpoint.host, port: endpoint.port }, () => {
      server.removeAllListeners("error");
      server.on("error", (error) => onRefused(transportError(error, "accept on", endpoint)));
      resolve();
    });
  });
  const address = server.address();
  door.endpoint = {
    ...endpoint,
    port: typeof address === "object" && address !== null ? address.port : endpoint.port,
  };
  return {
    endpoint: door.endpoint,
    credentials,
    acceptControl: (signal) => door.acceptControl(signal),
    describe: (what) => door.describe(what),
    occupy: (by) => door.occupy(by),
    busy: () => door.busy(),
    takeConnections: (take) => door.takeConnections(take),
    async [Symbol.asyncDispose]() {
      // Not waited for: the callback comes only when connections that were accepted have ended, too.
      server.close();
      door.close();
    },
  };
}

interface Waiter {
  resolve(control: ControlConnection): void;
  reject(error: unknown): void;
}

/** Finds out who has come, and lets in one source at a time. */
class Door {
  endpoint: Endpoint = { scheme: "tcp", host: "", port: 0 };
  readonly #credentials: TlsCredentials | undefined;
  readonly #onRefused: (error: DirtmapError) => void;
  readonly #strangers = new Set<Socket>();
  /** Sources that have introduced themselves, with the timers that end their wait. */
  readonly #sources = new Map<ControlConnection, NodeJS.Timeout>();
  readonly #waiters: Waiter[] = [];
  #take: ((socket: Socket) => void) | undefined;
  /** The source that was accepted last. */
  #accepted: ControlConnection | undefined;
  #occupation: { readonly by: string; readonly since: Date; readonly lasting: boolean } | undefined;
  #closed = false;

  constructor(credentials: TlsCredentials | undefined, onRefused: (error: DirtmapError) => void) {
    this.#credentials = credentials;
    this.#onRefused = onRefused;
  }

  opened(socket: Socket): void {
    socket.on("error", () => {});
    if (this.#take !== undefined) this.#take(socket);
    else void this.#meet(socket);
  }

  acceptControl(signal?: AbortSignal): Promise<ControlConnection> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#closed) return Promise.reject(portClosed());
    this.#occupation = undefined;
    this.#accepted = undefined;
    for (const [source, timer] of this.#sources) {
      clearTimeout(timer);
      this.#sources.delete(source);
      if (!source.over) return Promise.resolve(this.#letIn(source));
    }
    return new Promise((resolve, reject) => {
      const settle = () => {
        signal?.removeEventListener("abort", cancelled);
        const index = this.#waiters.indexOf(waiter);
        if (index >= 0) this.#waiters.splice(index, 1);
      };
      const waiter: Waiter = {
        resolve: (control) => {
          settle();
          resolve(control);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      };
      const cancelled = () => waiter.reject(signal?.reason);
      signal?.addEventListener("abort", cancelled, { once: true });
      this.#waiters.push(waiter);
    });
  }

  describe(what: string): void {
    const { since = new Date() } = this.#occupation ?? {};
    this.#occupation = { by: what, since, lasting: false };
  }

  occupy(by: string): void {
    this.#occupation = { by, since: new Date(), lasting: true };
    for (const source of [...this.#sources.keys()]) this.#refuse(source);
  }

  busy(): DirtmapError {
    if (this.#occupation === undefined) {
      return new DirtmapError("the destination takes no source at present", {
        code: "BUSY",
        remedy: "try again later",
      });
    }
    const { by, since, lasting } = this.#occupation;
    return new DirtmapError(`the destination is busy with ${by}, since ${since.toISOString()}`, {
      code: "BUSY",
      remedy: lasting
        ? "start another `dirtmap receive`, on a port of its own"
        : "try again when that has ended, or start another `dirtmap receive` on a port of its own",
    });
  }

  takeConnections(take: (socket: Socket) => void): Disposable {
    this.#take = take;
    return {
      [Symbol.dispose]: () => {
        if (this.#take === take) this.#take = undefined;
      },
    };
  }

  close(): void {
    this.#closed = true;
    for (const socket of this.#strangers) socket.destroy();
    for (const source of [...this.#sources.keys()]) this.#refuse(source);
    for (const waiter of [...this.#waiters]) waiter.reject(portClosed());
  }

  /** Finds out what has connected. Many are met at once; none waits for another. */
  async #meet(raw: Socket): Promise<void> {
    this.#strangers.add(raw);
    if (this.#strangers.size > MAX_STRANGERS)
      for (const oldest of this.#strangers) {
        oldest.destroy();
        this.#strangers.delete(oldest);
        break;
      }
    try {
      const source = await this.#introduced(raw);
      if (source !== undefined) this.#comes(source);
    } catch (error) {
      if (!this.#closed) this.#onRefused(transportError(error, "accept a connection on", this.endpoint));
    } finally {
      this.#strangers.delete(raw);
    }
  }

  /** Undefined: a source that was told why it can't stay. @throws for what is no source */
  async #introduced(raw: Socket): Promise<ControlConnection | undefined> {
    const { scheme } = this.endpoint;
    const peer = formatEndpoint({ scheme, host: raw.remoteAddress ?? "unknown", port: raw.remotePort ?? 0 });
    let socket = raw;
    if (this.#credentials !== undefined) {
      const { socket: secured, problem } = await secure(raw, this.#credentials);
      if (problem !== undefined) {
        turnAway(secured, problem);
        this.#onRefused(problem);
        return undefined;
      }
      socket = secured;
    }
    const source = new ControlConnection(socket, {
      peer,
      other: "source",
      held: true,
      explain: (error) => transportError(error, "talk on", this.endpoint),
    });
    await source.introduced;
    return source;
  }

  /** A source has introduced itself. */
  #comes(source: ControlConnection): void {
    const [waiter] = this.#waiters;
    if (waiter !== undefined) waiter.resolve(this.#letIn(source));
    else if (this.#isOccupied || this.#sources.size >= MAX_WAITING || this.#closed) this.#refuse(source);
    else
      this.#sources.set(
        source,
        setTimeout(() => this.#refuse(source), WAIT_MS),
      );
  }

  #letIn(source: ControlConnection): ControlConnection {
    this.#accepted = source;
    this.#occupation = { by: `a source at ${source.peer}`, since: new Date(), lasting: false };
    source.begin();
    return source;
  }

  #refuse(source: ControlConnection): void {
    clearTimeout(this.#sources.get(source));
    this.#sources.delete(source);
    const busy = this.busy();
    source.refuse(busy);
    if (!this.#closed) this.#onRefused(busy);
  }

  /** False once the last migration is over, though nobody asks for the next source yet. */
  get #isOccupied(): boolean {
    return this.#occupation?.lasting === true || this.#accepted?.over === false;
  }
}

function portClosed(): DirtmapError {
  return new DirtmapError("the port was closed", { code: "LISTENER_CLOSED" });
}
