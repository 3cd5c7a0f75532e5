import type { DmaFault } from "../../devices/model.js";
import { explain } from "../../errors.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { Copier } from "../../memory/copier.js";
import { POLLIN, POLLOUT, PollSet } from "../../sys/poll.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_COMMAND,
  vfio_user_dma_access,
} from "../../uapi/vfio-user.js";
import { closeFds, type Message, type MessageSocket } from "../message-socket.js";
import { replyProblem } from "../replies.js";

/** A client that has not answered after this long stands still: the log says so. */
const SILENT_MS = 5000;

/** A wait that nothing bounds is looked at again after this long. */
const MAX_WAIT_MS = 60_000;

/** DMAs that were given up, and that the client may still answer; one that owes more is not going to. */
const MAX_ABANDONED = 1024;

/** Writes that are sent without waiting for one's answer; then for one's. */
const MAX_POSTED = 64;
/** A client may answer them although it need not, some time: it is told apart from one that answers what nobody asked. */
const MAX_UNASKED = 1024;

/** What is moved by one message at most, whatever the client takes. A device's DMA is of at most a page, what is rewritten of more. */
export const MAX_DMA_BYTES = 65_536;

const PAGE = BigInt(PAGE_SIZE);
const HEAD = vfio_user_dma_access.size;
const ADDRESS = vfio_user_dma_access.offsetOf("address");
const COUNT = vfio_user_dma_access.offsetOf("count");

/**
 * The server's own commands to its client, VFIO_USER_DMA_READ and _WRITE, on the client's connection or, in twin-socket
 * mode, on one of their own.
 *
 * A DMA is synchronous: the answer is waited for here. What the client asks for meanwhile is handed to `take`, which answers it
 * if it can, or holds it, to be done afterwards, in order.
 *
 * Writes can be posted, as PCI's are: they are sent in order without an answer, the last of them with one, once it is wanted
 * ({@link settle}). A client does its messages in their order, so that answer is all the others', too.
 *
 * A client that stands still (it is stopped, or its host is) is waited for as long as it is connected. QEMU never connects again,
 * so that to end its connection would cost the guest its device.
 */
export class DmaChannel {
  readonly #socket: MessageSocket;
  readonly #maxBytes: number;
  readonly #take: ((command: Message) => number) | null;
  readonly #broken: (why: string) => void;
  readonly #silent: (ms: number) => void;
  readonly #others: { readonly below: number; take(reply: Message): void } | null;
  readonly #waitToRead: PollSet;
  readonly #waitToSend: PollSet;
  readonly #request: Uint8Array;
  readonly #view: DataView;
  readonly #copier = new Copier();
  #id = 0;
  #address = 0n;
  #usable = true;
  /** Replies to what was given up may still come: its command by its id. */
  readonly #abandoned = new Map<number, number>();
  /** A DMA was given up, since a command waits: there is no use in another before that is answered. */
  #stalled = false;
  /** Bytes of the posted write that is still here, in the frame of requests, to be sent with what follows on it; 0: none. */
  #heldBytes = 0;
  #heldAddress = 0n;
  /** Posted writes since the last answer. */
  #posted: { readonly address: bigint; readonly bytes: number }[] = [];
  /** Ids of posted writes, the oldest first. */
  readonly #unasked = new Set<number>();
  /** A posted write was refused. */
  #refused = false;
  /** The id of the last of those that were given up. */
  #owed: number | null = null;

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
    /** The client is gone, or breaks the protocol; called once. */
    broken: (why: string) => void;
    /** The client has not answered a DMA for so long; called once for each. */
    silent: (ms: number) => void;
    /** Takes replies with ids below this one: somebody else asks on the same socket. Default: nobody does. */
    others?: { readonly below: number; take(reply: Message): void };
  }) {
    const { socket, maxTransfer, stop, take, broken, silent, others = null } = options;
    this.#socket = socket;
    this.#maxBytes = Math.min(maxTransfer, MAX_DMA_BYTES);
    this.#take = take;
    this.#broken = broken;
    this.#silent = silent;
    this.#others = others;
    const wait = (events: number) =>
      new PollSet([
        { fd: stop, events: POLLIN },
        { fd: socket.fd, events },
      ]);
    this.#waitToRead = wait(POLLIN);
    this.#waitToSend = wait(POLLIN | POLLOUT);
    this.#request = socket.frame(HEAD + MAX_DMA_BYTES);
    this.#view = new DataView(this.#request.buffer, this.#request.byteOffset);
  }

  write(address: bigint, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    this.#sendHeld();
    for (let done = 0; done < bytes; done += this.#maxBytes) {
      const count = Math.min(this.#maxBytes, bytes - done);
      this.#put(0, source, from + done, count);
      const reply = this.#ask(VFIO_USER_COMMAND.DMA_WRITE, address + BigInt(done), count);
      if (typeof reply === "string") return reply;
      closeFds(reply.fds);
    }
    return null;
  }

  /** A write that has happened once {@link settle} returns, after all that was written or posted before. */
  post(address: bigint, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    for (let done = 0; done < bytes; ) {
      const at = address + BigInt(done);
      // What begins inside a page stays apart: a guest may look at such a piece for what it wrote before it.
      const goesOn = this.#heldBytes > 0 && at === this.#heldAddress + BigInt(this.#heldBytes) && at % PAGE === 0n;
      if (!goesOn || this.#heldBytes === this.#maxBytes) {
        const fault = this.#makeRoom();
        if (fault !== null) return fault;
        this.#heldAddress = at;
      }
      const count = Math.min(this.#maxBytes - this.#heldBytes, bytes - done);
      this.#put(this.#heldBytes, source, from + done, count);
      this.#heldBytes += count;
      done += count;
    }
    return null;
  }

  /**
   * Waits until all that was posted has happened.
   * @returns the fault of any of it; `detached`, too, where it may not have happened yet: see {@link owes}
   */
  settle(): DmaFault | null {
    const bytes = this.#heldBytes;
    if (bytes === 0) return null;
    this.#heldBytes = 0;
    this.#posted.push({ address: this.#heldAddress, bytes });
    const reply = this.#ask(VFIO_USER_COMMAND.DMA_WRITE, this.#heldAddress, bytes);
    this.#posted = [];
    if (reply === "detached") {
      this.#owed = this.#id;
      return reply;
    }
    this.#owed = null;
    const refused = this.#refused || typeof reply === "string";
    this.#refused = false;
    if (typeof reply !== "string") closeFds(reply.fds);
    return refused ? "not-mapped" : null;
  }

  /** Posted writes were given up, and may not have happened yet: until the client answers them, or later ones. */
  get owes(): boolean {
    return this.#owed !== null && this.#abandoned.has(this.#owed);
  }

  read(address: bigint, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    this.#sendHeld();
    for (let done = 0; done < bytes; done += this.#maxBytes) {
      const count = Math.min(this.#maxBytes, bytes - done);
      const reply = this.#ask(VFIO_USER_COMMAND.DMA_READ, address + BigInt(done), count);
      if (typeof reply === "string") return reply;
      closeFds(reply.fds);
      target.set(reply.payload.subarray(HEAD), to + done);
    }
    return null;
  }

  /** True if the DMA that is under way while a command is taken, or one that was posted, reaches any of these bytes. */
  reaches(start: bigint, size: bigint): boolean {
    const isIn = (address: bigint, bytes: number) => address < start + size && address + BigInt(bytes) > start;
    return isIn(this.#address, 1) || this.#posted.some(({ address, bytes }) => isIn(address, bytes));
  }

  /** Commands that were held are being answered: DMA may be tried again. */
  resume(): void {
    this.#stalled = false;
  }

  /** A reply came while none was waited for; false where it is not one to a DMA that was given up. */
  takeLate({ id, command, fds, error }: Message): boolean {
    if (command === VFIO_USER_COMMAND.DMA_WRITE && this.#unasked.delete(id)) this.#refused ||= error !== 0;
    else if (this.#abandoned.get(id) === command) this.#abandoned.delete(id);
    else return false;
    closeFds(fds);
    return true;
  }

  #put(at: number, source: Uint8Array, from: number, bytes: number): void {
    this.#copier.copy(this.#request, HEAD + at, source, from, bytes);
  }

  /** For the next posted write; waits if there are many, or the client takes none. */
  #makeRoom(): DmaFault | null {
    if (!this.#usable || this.#stalled) return "detached";
    if (this.#posted.length >= MAX_POSTED || this.#socket.unsent) return this.settle();
    this.#sendHeld();
    return this.#usable ? null : "detached";
  }

  #sendHeld(): void {
    const bytes = this.#heldBytes;
    if (bytes === 0) return;
    this.#heldBytes = 0;
    this.#posted.push({ address: this.#heldAddress, bytes });
    try {
      this.#send(VFIO_USER_COMMAND.DMA_WRITE, this.#heldAddress, bytes, { posted: true });
    } catch (error) {
      this.#fail(explain(error));
    }
    this.#unasked.add(this.#id);
    for (const oldest of this.#unasked) {
      if (this.#unasked.size <= MAX_UNASKED) break;
      this.#unasked.delete(oldest);
    }
  }

  /** Sends a command and waits for its reply. */
  #ask(command: number, address: bigint, count: number): Message | DmaFault {
    if (!this.#usable || this.#stalled) return "detached";
    try {
      return this.#reply(command, this.#send(command, address, count));
    } catch (error) {
      return this.#fail(explain(error));
    }
  }

  /** What a write writes lies in the frame already. @throws UapiError of the socket */
  #send(command: number, address: bigint, count: number, { posted = false } = {}): Uint8Array {
    do this.#id = Math.max((this.#id + 1) & 0xffff, this.#others?.below ?? 0);
    while (this.#abandoned.has(this.#id) || this.#unasked.has(this.#id));
    this.#address = address;
    this.#view.setBigUint64(ADDRESS, address, true);
    this.#view.setUint32(COUNT, count, true);
    this.#view.setUint32(COUNT + 4, 0, true);
    const payload = this.#request.subarray(0, HEAD + (command === VFIO_USER_COMMAND.DMA_WRITE ? count : 0));
    const flags = VFIO_USER_F_TYPE_COMMAND | (posted ? VFIO_USER_F_NO_REPLY : 0);
    this.#socket.send({ id: this.#id, command, flags }, payload);
    return payload;
  }

  #reply(command: number, request: Uint8Array): Message | DmaFault {
    /** When the log is to say that the client is silent. */
    let silentAt = 0;
    let giveUpAt = Number.POSITIVE_INFINITY;
    for (;;) {
      const message = this.#socket.receive();
      if (message === "closed") return this.#fail("it has closed its connection in the middle of DMA");
      if (message === undefined) {
        const now = performance.now();
        if (silentAt === 0) silentAt = now + SILENT_MS;
        if (now >= giveUpAt) return this.#giveUp(command);
        if (now >= silentAt) {
          this.#silent(SILENT_MS);
          silentAt = Number.POSITIVE_INFINITY;
        }
        const set = this.#socket.unsent ? this.#waitToSend : this.#waitToRead;
        set.wait(Math.ceil(Math.min(silentAt, giveUpAt, now + MAX_WAIT_MS) - now));
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
        silentAt = 0;
      } else if (message.id !== this.#id && this.takeLate(message)) silentAt = 0;
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
