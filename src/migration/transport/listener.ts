import { createServer, type Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import { DirtmapError, UsageError } from "../../errors.js";
import { ControlConnection, encodeMessage } from "../stream/control-connection.js";
import { encodeFrame } from "../stream/frame.js";
import type { TlsCredentials } from "./credentials.js";
import { type Endpoint, formatEndpoint } from "./endpoint.js";
import { secure } from "./secure.js";
import { transportError } from "./transport-error.js";

/** Connections that wait to be accepted; more are turned away. */
const MAX_WAITING = 64;

/** How long a connection that was turned away may take to read why. */
const LINGER_MS = 2_000;

/** A port that control connections and channels arrive at. */
export interface Listener extends AsyncDisposable {
  /** With the port that the system chose, where none was asked for. */
  readonly endpoint: Endpoint;
  /** What is needed to secure connections accepted here; absent: plain TCP. */
  readonly credentials: TlsCredentials | undefined;
  /** The next connection, nothing read from it yet. @throws the signal's reason; DirtmapError `LISTENER_CLOSED` */
  accept(signal?: AbortSignal): Promise<Socket>;
  /**
   * The next connection as a control connection. Ones that fail to become it (a port scan, a wrong certificate) are
   * turned away and told to `onRefused`.
   */
  acceptControl(signal?: AbortSignal): Promise<ControlConnection>;
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
  const waiting: Socket[] = [];
  const waiters: { resolve: (socket: Socket) => void; reject: (error: unknown) => void }[] = [];
  let closed = false;

  const server = createServer({ pauseOnConnect: true, noDelay: true }, (socket) => {
    socket.on("error", () => {});
    const waiter = waiters.shift();
    if (waiter !== undefined) waiter.resolve(socket);
    else if (waiting.length < MAX_WAITING) waiting.push(socket);
    else socket.destroy();
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(transportError(error, "listen on", endpoint)));
    server.listen({ host: endpoint.host, port: endpoint.port }, () => {
      server.removeAllListeners("error");
      server.on("error", (error) => onRefused(transportError(error, "accept on", endpoint)));
      resolve();
    });
  });
  const address = server.address();
  const actual: Endpoint = {
    ...endpoint,
    port: typeof address === "object" && address !== null ? address.port : endpoint.port,
  };

  const accept = (signal?: AbortSignal): Promise<Socket> => {
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (closed) return Promise.reject(new DirtmapError("the port was closed", { code: "LISTENER_CLOSED" }));
    const socket = waiting.shift();
    if (socket !== undefined) return Promise.resolve(socket);
    return new Promise((resolve, reject) => {
      const settle = () => {
        signal?.removeEventListener("abort", cancelled);
        const index = waiters.indexOf(waiter);
        if (index >= 0) waiters.splice(index, 1);
      };
      const waiter = {
        resolve: (accepted: Socket) => {
          settle();
          resolve(accepted);
        },
        reject: (error: unknown) => {
          settle();
          reject(error);
        },
      };
      const cancelled = () => waiter.reject(signal?.reason);
      signal?.addEventListener("abort", cancelled, { once: true });
      waiters.push(waiter);
    });
  };

  return {
    endpoint: actual,
    credentials,
    accept,
    async acceptControl(signal) {
      for (;;) {
        const raw = await accept(signal);
        try {
          const explain = (error: unknown) => transportError(error, "talk on", actual);
          const peer = formatEndpoint({
            scheme: actual.scheme,
            host: raw.remoteAddress ?? "unknown",
            port: raw.remotePort ?? 0,
          });
          if (credentials === undefined) return new ControlConnection(raw, { peer, explain });
          const { socket, problem } = await secure(raw, credentials);
          if (problem === undefined) return new ControlConnection(socket, { peer, explain });
          turnAway(socket, problem);
          onRefused(problem);
        } catch (error) {
          raw.destroy();
          onRefused(transportError(error, "accept a connection on", actual));
        }
      }
    },
    async [Symbol.asyncDispose]() {
      closed = true;
      for (const socket of waiting.splice(0)) socket.destroy();
      const error = new DirtmapError("the port was closed", { code: "LISTENER_CLOSED" });
      for (const waiter of [...waiters]) waiter.reject(error);
      // Not waited for: the callback comes only when connections that were accepted have ended, too.
      server.close();
    },
  };
}

/** Says why a connection can't stay, and ends it; what it still sends is read and dropped, so that the words arrive. */
function turnAway(socket: TLSSocket, { code, message, remedy }: DirtmapError): void {
  const body = encodeMessage({ type: "REFUSE", code, message, remedy });
  socket.on("error", () => {});
  socket.end(encodeFrame({ type: "CONTROL", channel: 0, sequence: 0 }, body));
  socket.resume();
  setTimeout(() => socket.destroy(), LINGER_MS).unref();
}
