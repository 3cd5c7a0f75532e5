import type { DmaFault } from "../../devices/model.js";
import { POLLIN, POLLOUT, PollSet } from "../../sys/poll.js";
import { VFIO_USER_COMMAND, VFIO_USER_F_TYPE_COMMAND, vfio_user_dma_access } from "../../uapi/vfio-user.js";
import { closeFds, type Message, type MessageSocket } from "../message-socket.js";
import { replyProblem } from "../replies.js";

/** A client that has not answered after this long is not going to: its DMA ends, and so does its connection. */
const LIMIT_MS = 5000;

/** DMAs that were given up, and that the client may still answer; one that owes more is not going to. */
const MAX_ABANDONED = 1024;

/** What is moved by one message at most, whatever the client takes. A device's DMA is of at most a page, what is rewritten of more. */
export const MAX_DMA_BYTES = 65_536;

const ADDRESS = vfio_user_dma_access.offsetOf("address");
const COUNT = vfio_user_dma_access.offsetOf("count");

/**
 * The server's own commands to its client, VFIO_USER_DMA_READ and _WRITE, on the client's connection or, in twin-socket
 * mode, on one of their own.
 *
 * A DMA is synchronous: the answer is waited for here, for a bounded time. What the client asks for meanwhile is handed
 * to `take`, which answers it if it can, or holds it, to be done afterwards, in order.
 */
export class DmaChannel {
  readonly #socket: MessageSocket;
  readonly #maxBytes: number;
  readonly #take: ((command: Message) => number) | null;
  readonly #broken: (why: string) => void;
  readonly #others: { readonly below: number; take(reply: Message): void } | null;
  readonly #waitToRead: PollSet;
  readonly #waitToSend: PollSet;
  readonly #request: Uint8Array;
  readonly #view: DataView;
  #id = 0;
  #address = 0n;
  #usable = true;
  /** Replies to what was given up may still come: its command by its id. */
  readonly #abandoned = new Map<number, number>();
  /** A DMA was given up, since a command waits: there is no use in another before that is answered. */
  #stalled = false;

  constructor(options: {
    socket: MessageSocket;
    /** The client's max_data_xfer_size. */
    maxTransfer: number;
    /** A descriptor that becomes readable when the server is to stop: it ends a wait. */
    stop: number;
    /**
     * Takes a command of the client; returns for how many milliseconds the DMA may still be waited for: not for long where
     * the command has to wait for its end, and the client maybe for the command. Null: the socket is for the server's
     * commands alone.
     */
    take: ((command: Message) => number) | null;
    /** The client is gone, or does not answer; called once. */
    broken: (why: string) => void;
    /** Takes replies with ids below this one: somebody else asks on the same socket. Default: nobody does. */
    others?: { readonly below: number; take(reply: Message): void };
  }) {
    const { socket, maxTransfer, stop, take, broken, others = null } = options;
    this.#socket = socket;
    this.#maxBytes = Math.min(maxTransfer, MAX_DMA_BYTES);
    this.#take = take;
    this.#broken = broken;
    this.#others = others;
    const wait = (events: number) =>
      new PollSet([
        { fd: stop, events: POLLIN },
        { fd: socket.fd, events },
      ]);
    this.#waitToRead = wait(POLLIN);
    this.#waitToSend = wait(POLLIN | POLLOUT);
    this.#request = socket.frame(vfio_user_dma_access.size + MAX_DMA_BYTES);
    this.#view = new DataView(this.#request.buffer, this.#request.byteOffset);
  }

  write(address: bigint, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    for (let done = 0; done < bytes; done += this.#maxBytes) {
      const count = Math.min(this.#maxBytes, bytes - done);
      for (let i = 0; i < count; i++) this.#request[vfio_user_dma_access.size + i] = source[from + done + i];
      const reply = this.#ask(VFIO_USER_COMMAND.DMA_WRITE, address + BigInt(done), count, count);
      if (typeof reply === "string") return reply;
      closeFds(reply.fds);
    }
    return null;
  }

  read(address: bigint, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    for (let done = 0; done < bytes; done += this.#maxBytes) {
      const count = Math.min(this.#maxBytes, bytes - done);
      const reply = this.#ask(VFIO_USER_COMMAND.DMA_READ, address + BigInt(done), count, 0);
      if (typeof reply === "string") return reply;
      closeFds(reply.fds);
      target.set(reply.payload.subarray(vfio_user_dma_access.size), to + done);
    }
    return null;
  }

  /** Of the last DMA: the one that is under way while a command is taken. */
  get address(): bigint {
    return this.#address;
  }

  /** Commands that were held are being answered: DMA may be tried again. */
  resume(): void {
    this.#stalled = false;
  }

  /** A reply came while none was waited for; false where it is not one to a DMA that was given up. */
  takeLate({ id, command, fds }: Message): boolean {
    if (this.#abandoned.get(id) !== command) return false;
    this.#abandoned.delete(id);
    closeFds(fds);
    return true;
  }

  /** Sends a command and waits for its reply. */
  #ask(command: number, address: bigint, count: number, dataBytes: number): Message | DmaFault {
    if (!this.#usable || this.#stalled) return "detached";
    do this.#id = Math.max((this.#id + 1) & 0xffff, this.#others?.below ?? 0);
    while (this.#abandoned.has(this.#id));
    this.#address = address;
    this.#view.setBigUint64(ADDRESS, address, true);
    this.#view.setUint32(COUNT, count, true);
    this.#view.setUint32(COUNT + 4, 0, true);
    const payload = this.#request.subarray(0, vfio_user_dma_access.size + dataBytes);
    try {
      this.#socket.send({ id: this.#id, command, flags: VFIO_USER_F_TYPE_COMMAND }, payload);
      return this.#reply(command, payload);
    } catch (error) {
      return this.#fail(error instanceof Error ? error.message : String(error));
    }
  }

  #reply(command: number, request: Uint8Array): Message | DmaFault {
    let until = 0;
    let giveUpAt = Number.POSITIVE_INFINITY;
    for (;;) {
      const message = this.#socket.receive();
      if (message === "closed") return this.#fail("it has closed its connection in the middle of DMA");
      if (message === undefined) {
        const now = performance.now();
        if (until === 0) until = now + LIMIT_MS;
        if (now >= until) return this.#fail(`it has not answered a DMA for ${LIMIT_MS} ms`);
        if (now >= giveUpAt) return this.#giveUp(command);
        const set = this.#socket.unsent ? this.#waitToSend : this.#waitToRead;
        set.wait(Math.ceil(Math.min(until, giveUpAt) - now));
        if (set.events(0) !== 0) return "detached";
        this.#socket.flush();
      } else if (!message.isReply) {
        if (this.#take === null) {
          closeFds(message.fds);
          return this.#fail("it sent a command on the socket that is for the server's own");
        }
        giveUpAt = Math.min(giveUpAt, performance.now() + this.#take(message));
      } else if (this.#others !== null && message.id < this.#others.below) {
        this.#others.take(message);
        until = 0;
      } else if (message.id !== this.#id && this.takeLate(message)) until = 0;
      else if (message.id !== this.#id || message.command !== command) {
        closeFds(message.fds);
        return this.#fail(`it answered command ${message.command} with id ${message.id}, which nobody asked`);
      } else if (message.error !== 0) {
        closeFds(message.fds);
        // The client knows its memory: what it refuses is not there.
        return "not-mapped";
      } else {
        const problem = replyProblem(command, request, message.payload);
        if (problem === null) return message;
        closeFds(message.fds);
        return this.#fail(`its answer to a DMA can't be: ${problem}`);
      }
    }
  }

  #giveUp(command: number): DmaFault {
    if (this.#abandoned.size >= MAX_ABANDONED) return this.#fail(`it has left ${MAX_ABANDONED} DMAs unanswered`);
    this.#abandoned.set(this.#id, command);
    this.#stalled = true;
    return "detached";
  }

  #fail(why: string): DmaFault {
    if (this.#usable) {
      this.#usable = false;
      this.#broken(why);
    }
    return "detached";
  }
}
