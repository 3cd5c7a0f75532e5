import { DirtmapError } from "../../errors.js";
import { POLLIN, POLLOUT } from "../../sys/poll.js";
import { connectTo, type UnixSocket } from "../../sys/unix-socket.js";
import { ERRNO, type ErrnoName, errnoName, UapiError } from "../../uapi/errno.js";
import { VFIO_USER_COMMAND, vfio_user_dma_access } from "../../uapi/vfio-user.js";
import { closeFds, type Message, MessageSocket } from "../message-socket.js";
import { replyProblem } from "../replies.js";
import { type Agreement, readAgreement, writeProposal } from "./agreement.js";
import { type Waited, waiter } from "./waiter.js";

/** How long a server may take to answer a command. */
const LIMIT_MS = 10_000;

/** Bytes of the largest message that is taken: what is transferred at most, and what is before it. */
const MAX_PAYLOAD = 2 ** 20 + 4096;

/** After something was sent or handled, the socket is looked at for this long before the event loop goes on. */
const SPIN_MS = 0.06;

/** Messages that are handled before the event loop goes on. */
const MAX_PER_TURN = 256;

/** Commands under way at a time: their ids have 16 bits, and must differ. */
const MAX_PENDING = 4096;

const DATA = vfio_user_dma_access.size;
const ADDRESS = vfio_user_dma_access.offsetOf("address");
const COUNT = vfio_user_dma_access.offsetOf("count");

/** The client's memory, as the server's own commands reach it. */
export interface DmaTarget {
  /** VFIO_USER_DMA_READ; returns null, or the errno that it is refused with. */
  read(address: bigint, into: Uint8Array): ErrnoName | null;
  /** VFIO_USER_DMA_WRITE */
  write(address: bigint, from: Uint8Array): ErrnoName | null;
}

/** What sends commands to a server, and waits for its answers: see {@link Connection.call}. */
export interface Caller {
  /** Why no more answers come; undefined while they do. */
  readonly failure: UapiError | undefined;
  call(command: number, what: string, payload: Uint8Array | null, fds?: readonly number[]): Promise<Uint8Array>;
}

interface Pending {
  readonly command: number;
  readonly request: Uint8Array | null;
  readonly what: string;
  readonly timer: NodeJS.Timeout;
  resolve(payload: Uint8Array): void;
  reject(error: Error): void;
}

export interface ConnectionOptions {
  /** Milliseconds; default 10 s. */
  readonly limitMs?: number;
}

/**
 * A client's connection to a vfio-user server. Several commands may be under way, their replies are matched by id, and
 * what the server asks for meanwhile (DMA_READ, DMA_WRITE) is answered.
 *
 * A server that goes away, does not answer in time, or says what can't be, is done with: every command that is under way,
 * and every later one, fails with the same error, and the socket is closed.
 */
export class Connection implements Caller, Disposable {
  readonly path: string;
  /** What the server takes. */
  agreement: Agreement = readAgreement(null);
  /** Memory that the server may reach by messages; null: none. */
  dma: DmaTarget | null = null;
  readonly #socket: MessageSocket;
  readonly #limitMs: number;
  readonly #waited: Waited;
  readonly #pending = new Map<number, Pending>();
  #id = 0;
  #failure: UapiError | undefined;

  private constructor(path: string, socket: UnixSocket, { limitMs = LIMIT_MS }: ConnectionOptions) {
    this.path = path;
    this.#limitMs = limitMs;
    this.#socket = new MessageSocket(socket, MAX_PAYLOAD);
    const messages = this.#socket;
    this.#waited = {
      fd: socket.fd,
      get events() {
        return messages.unsent ? POLLIN | POLLOUT : POLLIN;
      },
      ready: () => this.#turn(),
    };
    waiter.add(this.#waited);
  }

  /**
   * Connects, and agrees on the version.
   * @throws UsageError `BAD_SOCKET_PATH`; UapiError ENOENT or ECONNREFUSED where nobody listens, ECONNRESET where the
   * server turns us away, EPROTONOSUPPORT, EPROTO, ETIMEDOUT
   */
  static async open(path: string, options: ConnectionOptions = {}): Promise<Connection> {
    const connection = new Connection(path, connect(path), options);
    try {
      const reply = await connection.call(VFIO_USER_COMMAND.VERSION, "VFIO_USER_VERSION", writeProposal());
      connection.agreement = readAgreement(reply);
      return connection;
    } catch (error) {
      connection[Symbol.dispose]();
      throw error;
    }
  }

  /** Why it is over; undefined while it is not. */
  get failure(): UapiError | undefined {
    return this.#failure;
  }

  /**
   * Sends a command and waits for its reply, of which a copy is returned. It has the form that {@link replyProblem} demands.
   * @param what its name in messages
   * @param payload must not be changed until the reply has come: it is held against it
   * @param fds go along; they must stay open until the reply has come
   * @throws UapiError with the errno of an error reply; EPROTO for a reply that does not fit the command, after which the
   * connection goes on; what ended the connection
   */
  call(command: number, what: string, payload: Uint8Array | null, fds?: readonly number[]): Promise<Uint8Array> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#pending.size >= MAX_PENDING) {
      const remedy = `wait for answers: ${MAX_PENDING} commands are under way`;
      return Promise.reject(new UapiError("EAGAIN", { syscall: what, attempted: `ask ${this.path}`, remedy }));
    }
    do this.#id = (this.#id + 1) & 0xffff;
    while (this.#pending.has(this.#id));
    const id = this.#id;
    const reply = new Promise<Uint8Array>((resolve, reject) => {
      const timer = setTimeout(() => this.#late(what), this.#limitMs);
      this.#pending.set(id, { command, request: payload, what, timer, resolve, reject });
    });
    try {
      this.#socket.sendCommand(command, id, payload, fds);
    } catch (error) {
      this.#fail(this.#gone(error));
      return reply;
    }
    if (this.#socket.unsent) waiter.changed();
    // Most answers come sooner than a thread would wake up.
    this.#look(() => !this.#pending.has(id));
    return reply;
  }

  /** Closes it: commands under way fail with EBADF. */
  [Symbol.dispose](): void {
    this.#fail(
      new UapiError("EBADF", { syscall: "sendmsg", attempted: `use the connection to ${this.path}, which is closed` }),
    );
  }

  #late(what: string): void {
    this.#fail(
      new UapiError("ETIMEDOUT", {
        syscall: what,
        attempted: `wait for the server at ${this.path}, which has not answered for ${this.#limitMs} ms`,
        remedy: "see whether the server hangs, or is busy; start it again",
      }),
    );
  }

  /**
   * Handles what comes until `enough`, or until nothing has come for a moment. What was read together with a message is
   * always handled, too: the socket, which is empty then, would never tell of it.
   */
  #look(enough: () => boolean): void {
    let until = performance.now() + SPIN_MS;
    for (let handled = 0; this.#failure === undefined; ) {
      if (this.#step()) {
        if (++handled === MAX_PER_TURN) {
          setImmediate(() => this.#turn());
          return;
        }
        until = performance.now() + SPIN_MS;
      } else if (enough() || performance.now() >= until) return;
    }
  }

  #turn(): void {
    if (this.#failure !== undefined) return;
    try {
      this.#socket.flush();
    } catch (error) {
      this.#fail(this.#gone(error));
      return;
    }
    // A server whose DMA goes by messages has the next one ready soon.
    this.#look(() => false);
  }

  /** Handles one message; returns whether there was one. Does not throw. */
  #step(): boolean {
    try {
      const message = this.#socket.receive();
      if (message === undefined) return false;
      if (message === "closed") {
        this.#fail(this.#gone());
        return true;
      }
      if (message.isReply) this.#reply(message);
      else this.#serve(message);
      return true;
    } catch (error) {
      this.#fail(
        error instanceof DirtmapError && error.code === "PROTOCOL" ? this.#broken(error.message) : this.#gone(error),
      );
      return true;
    }
  }

  #reply(message: Message): void {
    // No command of ours is answered with a descriptor that we use.
    closeFds(message.fds);
    const pending = this.#pending.get(message.id);
    if (pending === undefined) {
      this.#fail(this.#broken(`a reply to command ${message.command} with id ${message.id}, which nobody asked`));
      return;
    }
    if (pending.command !== message.command) {
      this.#fail(this.#broken(`a reply to command ${message.command} where ${pending.what} was asked`));
      return;
    }
    this.#pending.delete(message.id);
    clearTimeout(pending.timer);
    if (message.error === 0) {
      const problem = replyProblem(pending.command, pending.request, message.payload);
      if (problem === null) pending.resolve(message.payload.slice());
      else {
        pending.reject(
          new UapiError("EPROTO", {
            syscall: pending.what,
            attempted: `understand the answer of the server at ${this.path}: ${problem}`,
            remedy: "mend the server, or use another",
          }),
        );
      }
    } else {
      const code = message.error > 0 ? errnoName(message.error) : "EIO";
      pending.reject(
        new UapiError(code, { syscall: pending.what, attempted: `have the server at ${this.path} do it` }),
      );
    }
  }

  /** A command of the server's own. */
  #serve(message: Message): void {
    closeFds(message.fds);
    const answer = this.#answer(message);
    if (message.noReply) return;
    if (typeof answer === "string") this.#socket.sendError(message, ERRNO[answer]);
    else this.#socket.sendReply(message, answer);
  }

  /** Does what the server asks; returns what it is answered, or the errno that it is refused with. */
  #answer({ command, payload }: Message): Uint8Array | ErrnoName {
    const { DMA_READ, DMA_WRITE } = VFIO_USER_COMMAND;
    if (command !== DMA_READ && command !== DMA_WRITE) return "ENOTTY";
    if (payload.byteLength < DATA) return "EINVAL";
    const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    const address = view.getBigUint64(ADDRESS, true);
    const count = view.getBigUint64(COUNT, true);
    if (count > BigInt(this.agreement.maxTransfer)) return "EINVAL";
    const bytes = Number(count);
    if (payload.byteLength !== DATA + (command === DMA_WRITE ? bytes : 0)) return "EINVAL";
    const head = payload.subarray(0, DATA);
    if (this.dma === null) return "EFAULT";
    if (command === DMA_WRITE) return this.dma.write(address, payload.subarray(DATA)) ?? head;
    const answer = this.#socket.outgoing(DATA + bytes);
    answer.set(head);
    return this.dma.read(address, answer.subarray(DATA)) ?? answer;
  }

  #gone(cause?: unknown): UapiError {
    const code = (cause as { code?: string } | undefined)?.code;
    const why = code === undefined || code === "EPIPE" || code === "ECONNRESET" ? "" : `: ${(cause as Error).message}`;
    return new UapiError("ECONNRESET", {
      syscall: "recvmsg",
      attempted: `use the server at ${this.path}, which has closed the connection${why}`,
      remedy: "see the server's log: it may have ended, or have another client (it has one at a time)",
      cause,
    });
  }

  #broken(what: string): UapiError {
    return new UapiError("EPROTO", {
      syscall: "recvmsg",
      attempted: `understand the server at ${this.path}: ${what}`,
      remedy: "use a server that speaks vfio-user 0.0",
    });
  }

  #fail(error: UapiError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.dma = null;
    waiter.remove(this.#waited);
    this.#socket[Symbol.dispose]();
    for (const { reject, timer } of this.#pending.values()) {
      clearTimeout(timer);
      reject(error);
    }
    this.#pending.clear();
  }
}

function connect(path: string): UnixSocket {
  try {
    return connectTo(path);
  } catch (error) {
    if (!(error instanceof UapiError)) throw error;
    const remedy: Partial<Record<ErrnoName, string>> = {
      ENOENT: "start the server: dirtmap device MODEL --socket PATH",
      ECONNREFUSED: "start the server: nobody listens at this socket",
      EACCES: "connect as the user who started the server, or have it started with --socket-group",
      EAGAIN: "wait: too many clients are knocking at the server",
    };
    const { syscall, code } = error;
    throw new UapiError(code, { syscall, attempted: `connect to ${path}`, remedy: remedy[code], cause: error });
  }
}
