import { DirtmapError } from "../../errors.js";
import type { QmpEvent } from "./monitor.js";

/** Events that nobody has taken yet; a guest can make QEMU tell more of them than anyone reads. */
const MAX_WAITING = 65_536;

/**
 * Events in the order in which they came, kept until they are taken. What holds: none is left out. A stream that can't hold that
 * any longer fails.
 */
export class EventStream implements AsyncIterableIterator<QmpEvent>, Disposable {
  readonly #waiting: QmpEvent[] = [];
  readonly #ended: () => void;
  #takers: { resolve(result: IteratorResult<QmpEvent, undefined>): void; reject(error: Error): void }[] = [];
  #failure: Error | undefined;
  #closed = false;

  /** @param ended called once it takes no more */
  constructor(ended: () => void = () => {}) {
    this.#ended = ended;
  }

  push(event: QmpEvent): void {
    if (this.#closed || this.#failure !== undefined) return;
    const taker = this.#takers.shift();
    if (taker !== undefined) taker.resolve({ value: event, done: false });
    else if (this.#waiting.length < MAX_WAITING) this.#waiting.push(event);
    else {
      this.fail(
        new DirtmapError(`QEMU has told of ${MAX_WAITING} events that were not read`, {
          code: "QMP_EVENTS_LOST",
          remedy: "end what makes the guest raise so many",
        }),
      );
    }
  }

  /** Nothing more comes: what waits can still be taken, and then `error` is thrown. */
  fail(error: Error): void {
    if (this.#closed || this.#failure !== undefined) return;
    this.#failure = error;
    for (const { reject } of this.#takers) reject(error);
    this.#takers = [];
  }

  next(): Promise<IteratorResult<QmpEvent, undefined>> {
    const event = this.#waiting.shift();
    if (event !== undefined) return Promise.resolve({ value: event, done: false });
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#closed) return Promise.resolve({ value: undefined, done: true });
    return new Promise((resolve, reject) => this.#takers.push({ resolve, reject }));
  }

  async return(): Promise<IteratorResult<QmpEvent, undefined>> {
    this[Symbol.dispose]();
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#waiting.length = 0;
    for (const { resolve } of this.#takers) resolve({ value: undefined, done: true });
    this.#takers = [];
    this.#ended();
  }
}

/** The streams of one monitor: each has all that is told from its opening on. */
export class EventStreams {
  readonly #open = new Set<EventStream>();
  #failure: Error | undefined;

  /** After {@link fail}, one that fails at once. */
  open(): EventStream {
    const stream = new EventStream(() => this.#open.delete(stream));
    if (this.#failure === undefined) this.#open.add(stream);
    else stream.fail(this.#failure);
    return stream;
  }

  /** How many are read. */
  get size(): number {
    return this.#open.size;
  }

  push(event: QmpEvent): void {
    for (const stream of this.#open) stream.push(event);
  }

  /** The monitor tells nothing more. */
  fail(error: Error): void {
    this.#failure ??= error;
    for (const stream of this.#open) stream.fail(error);
    this.#open.clear();
  }
}
