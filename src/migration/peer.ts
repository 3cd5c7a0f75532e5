import { DirtmapError } from "../errors.js";
import type { ControlMessage, ControlMessageOf, ControlMessageType, Problem } from "./stream/messages.js";

/** A control connection, as the orchestration needs it. It keeps itself alive, and notices a silent other side. */
export interface ControlLink {
  /** Resolves when the system has taken the message. @throws DirtmapError when the connection is lost */
  send(message: ControlMessage): Promise<void>;
  /** The next message; one caller at a time. @throws DirtmapError when the connection is lost or was closed */
  receive(): Promise<ControlMessage>;
  /** Orderly: what was sent arrives. Bounded. */
  close(): Promise<void>;
}

/** The other side said ABORT. From a destination this means: the machine is discarded, durably, and never ran. */
export class PeerAborted extends DirtmapError {
  /** The other side's device that it is about. */
  readonly device: Problem["device"];

  constructor({ code, message, remedy, device }: Problem) {
    super(message, { code, remedy });
    this.device = device;
  }
}

/** The longest that a timer can wait (2^31 - 1 ms, 24 days): for waits that the connection's own silence bounds. */
export const UNTIL_LOST = 2 ** 31 - 1;

/** Messages that may wait unread; above it, reading pauses and the sender is held up by TCP. */
const MAX_QUEUED = 16;

/**
 * The other side of a migration. It reads ahead, so that a lost connection or an ABORT is noticed while nobody waits for
 * a message: {@link lost} fires, and whatever is under way is aborted with it. What arrived before is still given out.
 */
export class Peer {
  readonly #link: ControlLink;
  readonly #lost = new AbortController();
  readonly #queue: ControlMessage[] = [];
  /** Wakes whoever waits for a message, and the reader that waits for room. */
  #arrived: (() => void) | undefined;
  #taken: (() => void) | undefined;
  #closing = false;

  constructor(link: ControlLink) {
    this.#link = link;
    void this.#read();
  }

  /** Aborted once nothing more will come; its reason is the error that {@link expect} throws from then on. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** Resolves when the system has taken the message. @throws DirtmapError when the connection is lost */
  async send(message: ControlMessage): Promise<void> {
    await this.#link.send(message);
  }

  /**
   * The next message, which must be of one of these types. One caller at a time; a message that comes after the time is
   * over is the next caller's.
   * @throws PeerAborted; DirtmapError `TIMED_OUT`, `UNEXPECTED_MESSAGE`, or the connection's; the signal's reason
   */
  async expect<Type extends ControlMessageType>(
    types: readonly Type[],
    ms: number,
    signal?: AbortSignal,
  ): Promise<ControlMessageOf<Type>> {
    const expected = types.join(" or ");
    if (this.#queue.length === 0) await this.#arrival(expected, ms, signal);
    const message = this.#queue.shift();
    this.#taken?.();
    if (message === undefined) throw this.#lost.signal.reason;
    if (!types.some((type) => type === message.type)) {
      throw new DirtmapError(`${message.type} arrived where ${expected} was due`, {
        code: "UNEXPECTED_MESSAGE",
        remedy: "use the same version on both sides",
      });
    }
    return message as ControlMessageOf<Type>;
  }

  /**
   * Refuses what the other side has said too early: its answer to a message that has not been sent yet.
   * @throws DirtmapError `UNEXPECTED_MESSAGE`
   */
  expectNothingBefore(ours: ControlMessageType): void {
    const [early] = this.#queue;
    if (early === undefined) return;
    throw new DirtmapError(`${early.type} arrived before ${ours} was sent`, {
      code: "UNEXPECTED_MESSAGE",
      remedy: "use the same version on both sides",
    });
  }

  /** Ends the connection in an orderly way. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#taken?.();
    await this.#link.close();
  }

  /** Resolves when a message is in the queue or none will come any more. */
  #arrival(expected: string, ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (finish: () => void) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", onAbort);
        this.#arrived = undefined;
        finish();
      };
      const onAbort = () => settle(() => reject(signal?.reason));
      const timer = setTimeout(
        () =>
          settle(() =>
            reject(
              new DirtmapError(`${expected} did not come within ${ms} ms`, {
                code: "TIMED_OUT",
                attempted: `wait for ${expected}`,
              }),
            ),
          ),
        ms,
      );
      if (this.#lost.signal.aborted) settle(resolve);
      else if (signal?.aborted === true) onAbort();
      else {
        signal?.addEventListener("abort", onAbort, { once: true });
        this.#arrived = () => settle(resolve);
      }
    });
  }

  async #read(): Promise<void> {
    try {
      while (!this.#closing) {
        const message = await this.#link.receive();
        if (message.type === "ABORT") {
          throw new PeerAborted(message);
        }
        this.#queue.push(message);
        this.#arrived?.();
        while (this.#queue.length >= MAX_QUEUED && !this.#closing) {
          await new Promise<void>((resolve) => {
            this.#taken = resolve;
          });
        }
      }
    } catch (error) {
      this.#lost.abort(error);
      this.#arrived?.();
    }
  }
}
