import type { MessagePort, Transferable, Worker } from "node:worker_threads";
import { DirtmapError } from "../errors.js";
import { type ErrnoName, UapiError } from "../uapi/errno.js";

/*
 * Requests between the main thread and a worker, with answers. The emulated host uses it as a device's command
 * queue: a worker answers a state change when its DMA has drained, so that the answer is the guarantee.
 */

/** The operations that one side offers: argument in, result (or a promise of it) out. Both are structured-cloned. */
// biome-ignore lint/suspicious/noExplicitAny: a handler's argument is contravariant; `unknown` would accept no handler
export type Operations = Record<string, (argument: any) => unknown>;

interface Request {
  readonly id: number;
  readonly operation: string;
  readonly argument: unknown;
}

type Answer = { readonly id: number; readonly result: unknown } | { readonly id: number; readonly error: WireError };

interface WireError {
  readonly message: string;
  readonly code?: string | undefined;
  readonly attempted?: string | undefined;
  readonly remedy?: string | undefined;
  readonly syscall?: string | undefined;
}

/** A result that moves buffers instead of copying them. */
export class Moved<T> {
  readonly value: T;
  readonly transfer: readonly Transferable[];
  constructor(value: T, transfer: readonly Transferable[]) {
    this.value = value;
    this.transfer = transfer;
  }
}

/** Every thread that serves answers this, besides its own operations: {@link RpcClient.loaded}. */
const LOADED = "rpc:loaded";

/** Answers requests that arrive on `port` with `operations`. */
export function serve(port: MessagePort, operations: Operations): void {
  port.on("message", async ({ id, operation, argument }: Request) => {
    try {
      const result = operation === LOADED ? undefined : await operations[operation](argument);
      if (result instanceof Moved) port.postMessage({ id, result: result.value }, result.transfer);
      else port.postMessage({ id, result });
    } catch (error) {
      port.postMessage({ id, error: toWire(error) });
    }
  });
}

/** The side that asks. One client per port or worker. */
export class RpcClient<Ops extends Operations> {
  readonly #port: MessagePort | Worker;
  readonly #pending = new Map<number, { resolve: (result: never) => void; reject: (error: Error) => void }>();
  #next = 1;
  #closed: Error | undefined;
  #hasAnswered = false;

  constructor(port: MessagePort | Worker) {
    this.#port = port;
    port.on("message", (answer: Answer) => {
      this.#hasAnswered = true;
      const pending = this.#pending.get(answer.id);
      if (pending === undefined) return;
      this.#pending.delete(answer.id);
      if ("error" in answer) pending.reject(fromWire(answer.error));
      else pending.resolve(answer.result as never);
    });
    port.on("error" as "messageerror", (error: Error) => this.#fail(error));
    port.on("exit" as "close", () => this.#fail(new DirtmapError("the thread has ended", { code: "THREAD_ENDED" })));
  }

  /** Sends a request and waits for its answer; rejects with the worker's error, or when the worker ends. */
  call<Name extends keyof Ops & string>(
    operation: Name,
    argument: Parameters<Ops[Name]>[0],
    transfer: readonly Transferable[] = [],
  ): Promise<Unmoved<Awaited<ReturnType<Ops[Name]>>>> {
    if (this.#closed !== undefined) return Promise.reject(this.#closed);
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      this.#port.postMessage({ id, operation, argument } satisfies Request, transfer);
    });
  }

  /** Resolves when the other side has loaded its modules and answers requests, or has ended. */
  async loaded(): Promise<void> {
    if (!this.#hasAnswered) await this.call(LOADED, undefined as never).catch(() => undefined);
  }

  #fail(error: Error): void {
    this.#closed ??= error;
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }
}

type Unmoved<T> = T extends Moved<infer V> ? V : T;

function toWire(error: unknown): WireError {
  if (error instanceof DirtmapError) {
    const { message, code, attempted, remedy } = error;
    return { message, code, attempted, remedy, syscall: error instanceof UapiError ? error.syscall : undefined };
  }
  return { message: error instanceof Error ? (error.stack ?? error.message) : String(error) };
}

function fromWire({ message, code, attempted, remedy, syscall }: WireError): Error {
  if (syscall !== undefined) {
    return new UapiError(code as ErrnoName, { syscall, attempted: attempted ?? message, remedy });
  }
  return code === undefined ? new Error(message) : new DirtmapError(message, { code, attempted, remedy });
}
