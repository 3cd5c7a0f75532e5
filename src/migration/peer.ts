import { DirtmapError } from "../errors.js";
import { within } from "./deadline.js";
import type { ControlMessage, ControlMessageOf, ControlMessageType } from "./stream/messages.js";

/** A control connection, as the orchestration needs it. PING and PONG are its own. */
export interface ControlLink {
  /** Resolves when the message is handed to the system. @throws DirtmapError `CONNECTION_LOST` */
  send(message: ControlMessage): Promise<void>;
  /** The next message. @throws DirtmapError when the connection is lost, was closed, or carries what is no message */
  receive(): Promise<ControlMessage>;
  /** Orderly: what was sent arrives. Bounded. */
  close(): Promise<void>;
}

/** The other side said ABORT. From a destination this means: the machine is discarded, durably, and never ran. */
export class PeerAborted extends DirtmapError {}

/** Messages that may wait unread; above it, reading pauses and the sender is held up by TCP. */
const MAX_QUEUED = 16;

/**
 * The other side of a migration. It reads ahead, so that a lost connection or an ABORT is noticed while nobody waits for
 * a message: {@link lost} fires, and whatever is under way is aborted with it.
 */
export class Peer {
  readonly #link: ControlLink;
  readonly #lost = new AbortController();
  readonly #queue: ControlMessage[] = [];
  #wakeReader: (() => void) | undefined;
  #wakeTaker: (() => void) | undefined;
  #closing = false;

  constructor(link: ControlLink) {
    this.#link = link;
    void this.#read();
  }

  /** Aborted once nothing more will come; its reason is the error that {@link expect} throws from then on. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  async send(message: ControlMessage): Promise<void> {
    await this.#link.send(message);
  }

  /**
   * The next message, which must be of one of these types.
   * @throws PeerAborted; DirtmapError `TIMED_OUT`, `UNEXPECTED_MESSAGE`, or the connection's; the signal's reason
   */
  async expect<Type extends ControlMessageType>(
    types: readonly Type[],
    ms: number,
    signal?: AbortSignal,
  ): Promise<ControlMessageOf<Type>> {
    const message = await within(ms, types.join(" or "), this.#next(), signal);
    if (!types.some((type) => type === message.type)) {
      throw new DirtmapError(`${message.type} arrived where ${types.join(" or ")} was due`, {
        code: "UNEXPECTED_MESSAGE",
        remedy: "use the same version on both sides",
      });
    }
    return message as ControlMessageOf<Type>;
  }

  /** Ends the connection in an orderly way. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#wakeReader?.();
    await this.#link.close();
  }

  async #next(): Promise<ControlMessage> {
    while (this.#queue.length === 0) {
      if (this.#lost.signal.aborted) throw this.#lost.signal.reason;
      await new Promise<void>((resolve) => {
        this.#wakeTaker = resolve;
      });
    }
    this.#wakeReader?.();
    return this.#queue.shift() as ControlMessage;
  }

  async #read(): Promise<void> {
    try {
      while (!this.#closing) {
        const message = await this.#link.receive();
        if (message.type === "ABORT") {
          throw new PeerAborted(message.message, { code: message.code, remedy: message.remedy });
        }
        this.#queue.push(message);
        this.#wakeTaker?.();
        while (this.#queue.length >= MAX_QUEUED && !this.#closing) {
          await new Promise<void>((resolve) => {
            this.#wakeReader = resolve;
          });
        }
      }
    } catch (error) {
      this.#lost.abort(error);
      this.#wakeTaker?.();
    }
  }
}
