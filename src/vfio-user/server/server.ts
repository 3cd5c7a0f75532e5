import { closeSync, rmSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { Feeder } from "../../devices/feeder.js";
import { completeOptions, type Feed, type ModelOptions, type OptionValue } from "../../devices/servable.js";
import { servableModel } from "../../devices/servable-models.js";
import { DirtmapError, UsageError } from "../../errors.js";
import { EventFd } from "../../sys/eventfd.js";
import { within } from "../../threads/within.js";
import { controlPath } from "../control-path.js";
import type { DmaMode } from "./client-memory.js";
import { groupId, listenAtFree } from "./listener.js";
import { MAX_CONNECTIONS } from "./serve.js";

/** A thread that has not come up, or gone down, after this long is not going to. */
const LIMIT_MS = 10_000;

/** The options of {@link serveDevice}. */
export interface ServeDeviceOptions {
  /** The name of one of SERVABLE_MODELS. */
  readonly model: string;
  readonly options?: Readonly<Record<string, OptionValue>>;
  /** The path of the socket. It must be free, or hold a socket without a listener. The same holds for {@link controlPath}. */
  readonly path: string;
  /** The device's name: in its stamps, and in messages. Default: the model's. */
  readonly id?: string;
  /** Default: auto. */
  readonly dma?: DmaMode;
  /**
   * True: another server's device will be migrated here. Until its state has arrived and runs, this device does no work and leaves
   * shared resources, such as a disk's file, to the other. Default: false.
   */
  readonly incoming?: boolean;
  /** True: the server polls busily, for lower latency at the cost of a processor. Default: false. */
  readonly busy?: boolean;
  /** The name or number of a group whose members may connect as well. Default: only this user may. */
  readonly socketGroup?: string;
  /** Receives the lines of the server's log: clients' mistakes and the device's failures. Default: they are dropped. */
  readonly log?: (line: string) => void;
}

/** A device that is being served. */
export interface DeviceServer extends AsyncDisposable {
  readonly path: string;
  readonly controlPath: string;
  /** Resolves when the server has ended after {@link close}; rejects if it ends by itself. */
  readonly ended: Promise<void>;
  /** Disconnects clients, stops the device and removes the sockets. */
  close(): Promise<void>;
}

/** What the thread of a device's server is given. */
export interface ServerThreadData extends ThreadSockets {
  readonly model: string;
  readonly options: ModelOptions;
  readonly id: string;
  readonly dma: DmaMode;
  /** Default: false. */
  readonly incoming?: boolean;
  readonly busy: boolean;
}

/** The part that every server's thread is given. */
export interface ThreadSockets {
  /** Of its socket, for messages. */
  readonly path: string;
  readonly listener: number;
  readonly controlListener: number;
  readonly stop: number;
  readonly connections: Int32Array<SharedArrayBuffer>;
}

/** What the server's thread says. */
export type ServerThreadMessage =
  | { readonly kind: "ready"; readonly feed: Feed | undefined }
  | { readonly kind: "log"; readonly line: string }
  | {
      readonly kind: "failed";
      readonly error: {
        readonly message: string;
        readonly usage: boolean;
        readonly code: string;
        readonly remedy: string | undefined;
      };
    };

/**
 * Serves a device at a socket, on a thread of its own, to one client at a time and to any number of controlling connections.
 * Resolves when it accepts clients.
 * @throws UsageError for impossible options, or a path at which no socket can be: `BAD_OPTION`, `NO_SUCH_MODEL`,
 * `BAD_SOCKET_PATH`, `SOCKET_IN_USE`, `UNSAFE_FOLDER`, `BAD_SOCKET_GROUP`; DirtmapError for a model that can't be started
 */
export async function serveDevice(given: ServeDeviceOptions): Promise<DeviceServer> {
  const model = servableModel(given.model);
  const options = completeOptions(model, given.options ?? {});
  const { path, socketGroup, id = model.name, dma = "auto", incoming = false, busy = false, log = () => {} } = given;
  return startServer(
    new URL("./server-thread.js", import.meta.url),
    { model: model.name, options, id, dma, incoming, busy },
    { path, log, ...(socketGroup === undefined ? {} : { group: groupId(socketGroup) }) },
  );
}

/** {@link serveDevice} with a thread of the caller's choice: a proxy's, or a test's with a model of its own. */
export async function startServer<Data extends { readonly id: string } = Omit<ServerThreadData, keyof ThreadSockets>>(
  entry: URL,
  data: Data,
  { path, ...access }: { path: string; group?: number; log: (line: string) => void },
): Promise<DeviceServer> {
  const listener = listenAtFree(path, access);
  let controlListener: number;
  try {
    controlListener = listenAtFree(controlPath(path), access);
  } catch (error) {
    closeSync(listener);
    rmSync(path, { force: true });
    throw error;
  }
  const server = new ThreadedServer(path, access.log);
  const connections = new Int32Array(new SharedArrayBuffer(MAX_CONNECTIONS * 4)).fill(-1);
  await server.start(entry, { ...data, path, listener, controlListener, stop: server.stop.fd, connections });
  return server;
}

class ThreadedServer implements DeviceServer {
  readonly path: string;
  readonly controlPath: string;
  readonly stop = EventFd.create();
  readonly ended: Promise<void>;
  readonly #log: (line: string) => void;
  #worker: Worker | undefined;
  #feeder: Feeder | undefined;
  #closing = false;
  #failure: Error | undefined;
  #exited: () => void = () => {};
  #failed: (error: Error) => void = () => {};
  readonly #exit: Promise<void>;

  constructor(path: string, log: (line: string) => void) {
    this.path = path;
    this.controlPath = controlPath(path);
    this.#log = log;
    this.#exit = new Promise((resolve) => {
      this.#exited = resolve;
    });
    this.ended = new Promise((resolve, reject) => {
      this.#failed = reject;
      void this.#exit.then(resolve);
    });
    // Who closes it need not wait for it, too.
    this.ended.catch(() => undefined);
  }

  /** Resolves when clients are taken. The listeners are the thread's from then on. */
  async start(entry: URL, data: ThreadSockets & { readonly id: string }): Promise<void> {
    let started = false;
    // Descriptors come from sockets and go to clients: Node, which would watch over them, sees only half of that.
    const worker = new Worker(entry, { workerData: data, name: `vfio-user ${data.id}`, trackUnmanagedFds: false });
    this.#worker = worker;
    const ready = new Promise<Feed | undefined>((resolve, reject) => {
      worker.on("message", (message: ServerThreadMessage) => {
        if (message.kind === "ready") {
          started = true;
          resolve(message.feed);
        } else if (message.kind === "log") this.#log(message.line);
        else this.#fail(errorOf(message.error));
      });
      worker.on("error", (error: Error) => this.#fail(error));
      worker.on("exit", () => {
        if (!this.#closing) {
          this.#failure ??= new DirtmapError("the server's thread has ended", { code: "THREAD_ENDED" });
          reject(this.#failure);
          this.#failed(this.#failure);
          // A thread that died in the middle has closed nothing: its clients would wait for ever.
          if (started) closeLeft(data);
        }
        this.#cleanUp();
        this.#exited();
      });
    });
    try {
      const feed = await within(ready, LIMIT_MS, "the start of the server's thread");
      if (feed !== undefined) {
        this.#feeder = new Feeder();
        await this.#feeder.feed(feed.port, feed.rate);
      }
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#closing = true;
    if (this.#worker === undefined) return;
    await this.#feeder?.[Symbol.asyncDispose]();
    this.stop.signal();
    try {
      await within(this.#exit, LIMIT_MS, "the end of the server's thread");
    } catch {
      await this.#worker.terminate();
    }
    this.#worker = undefined;
    this.stop[Symbol.dispose]();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #fail(error: Error): void {
    this.#failure ??= error;
  }

  #cleanUp(): void {
    rmSync(this.path, { force: true });
    rmSync(this.controlPath, { force: true });
  }
}

function closeLeft({ listener, controlListener, connections }: ThreadSockets): void {
  for (const fd of [listener, controlListener, ...connections]) {
    try {
      if (fd >= 0) closeSync(fd);
    } catch {
      // It died while it was closing them.
    }
  }
}

function errorOf({ message, usage, code, remedy }: (ServerThreadMessage & { kind: "failed" })["error"]): Error {
  const details = { code, remedy };
  return usage ? new UsageError(message, details) : new DirtmapError(message, details);
}
