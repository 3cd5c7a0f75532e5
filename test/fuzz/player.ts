import { closeSync } from "node:fs";
import { POLLIN, PollSet } from "../../src/sys/poll.js";
import { UnixSocket } from "../../src/sys/unix-socket.js";
import { ERRNO, errnoName } from "../../src/uapi/errno.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_TYPE,
  VFIO_USER_F_TYPE_COMMAND,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_device_info,
  vfio_user_dma_access,
  vfio_user_header,
} from "../../src/uapi/vfio-user.js";
import { controlPath } from "../../src/vfio-user/control-path.js";
import { RawClient } from "../../src/vfio-user/raw-client.test.helper.js";
import type { ClientFiles } from "./client-files.js";
import { FuzzConnection, HANG_MS, HEADER_BYTES, type Received } from "./connection.js";
import { type DmaAnswer, MAIN, type MessageOperation, type Operation, type Slot } from "./operation.js";
import type { Expected, Oracle, Outcome } from "./oracle.js";

/** Messages that are under way at a time on a connection. */
const MAX_PENDING = 256;

/** A right VFIO_USER_DEVICE_GET_INFO. */
const GET_INFO = vfio_user_device_info.encode({ argsz: vfio_user_device_info.size });

const VERSION_CAPABILITY_TWIN = '"twin_socket":{"supported":true}';

/** The server did what it must not. */
export class Finding extends Error {}

interface Pending {
  readonly id: number;
  readonly message: MessageOperation;
  readonly expected: Expected;
}

interface Connected {
  readonly connection: FuzzConnection;
  /** In the order in which they were sent; those without a reply are done when a later one is. */
  pending: Pending[];
  /** What was sent makes the server close it. */
  closes: boolean;
  /** What the client said may have made the server close it. */
  mayClose: boolean;
}

/** How often what was answered in which way. */
export type Tally = Map<string, number>;

/**
 * Does operations against a server and holds its answers against the oracle's. Several messages may be under way on one
 * connection, as long as their answers are foreseen; between connections nothing is ordered, so that each waits for the
 * others.
 */
export class Player implements Disposable {
  readonly #path: string;
  readonly #oracle: Oracle;
  readonly #files: ClientFiles;
  readonly #tally: Tally;
  readonly #connected = new Map<Slot, Connected>();
  /** A client of the player's own: a round trip on it follows whatever the server was told before. */
  readonly #monitor: RawClient;
  #twin: FuzzConnection | undefined;
  #dmaAnswer: DmaAnswer = "right";
  messages = 0;

  constructor({ path, oracle, files, tally }: { path: string; oracle: Oracle; files: ClientFiles; tally: Tally }) {
    this.#path = path;
    this.#oracle = oracle;
    this.#files = files;
    this.#tally = tally;
    this.#monitor = RawClient.open(controlPath(path));
  }

  /** @throws Finding */
  perform(operation: Operation): void {
    switch (operation.kind) {
      case "connect":
        this.#connect(operation.on);
        break;
      case "disconnect":
        this.#disconnect(operation.on);
        break;
      case "break-off":
        this.#breakOff(operation);
        break;
      case "intrude":
        this.#intrude();
        break;
      case "fill":
        this.#files.fill(operation.file, operation.offset, operation.bytes);
        break;
      case "answer-dma":
        this.#dmaAnswer = operation.how;
        break;
      case "message":
        this.#send(operation);
        break;
    }
  }

  /** Resets the device: a run begins so, and goes on so where nobody knows which of the last commands were done. */
  reset(): void {
    this.#roundTrips(1, VFIO_USER_COMMAND.DEVICE_RESET);
    this.#oracle.reset();
  }

  /** Waits for all answers. @throws Finding where one doesn't come, or memory was written that is not mapped */
  settle(): void {
    for (const slot of [...this.#connected.keys()]) this.#settle(slot);
    const trespass = this.#files.trespass();
    if (trespass !== undefined) throw new Finding(trespass);
  }

  /** Ends all connections, and waits until the server has noticed. @throws Finding */
  leave(): void {
    for (const slot of [...this.#connected.keys()]) {
      this.#settle(slot);
      if (this.#connected.has(slot)) this.#disconnect(slot);
    }
  }

  [Symbol.dispose](): void {
    this.#twin?.[Symbol.dispose]();
    for (const { connection } of this.#connected.values()) connection[Symbol.dispose]();
    this.#monitor[Symbol.dispose]();
  }

  #of(slot: Slot): Connected {
    const connected = this.#connected.get(slot);
    if (connected === undefined) throw new Error(`connection ${slot} is not there`);
    return connected;
  }

  #connect(slot: Slot): void {
    if (this.#connected.has(slot)) return;
    const path = slot === MAIN ? this.#path : controlPath(this.#path);
    this.#connected.set(slot, {
      connection: FuzzConnection.connect(path),
      pending: [],
      closes: false,
      mayClose: false,
    });
    this.#oracle.connect(slot);
    this.#roundTrips(2);
  }

  #disconnect(slot: Slot): void {
    for (const other of [...this.#connected.keys()]) if (other !== slot) this.#settle(other);
    if (!this.#connected.has(slot)) return;
    const { connection, pending } = this.#of(slot);
    // What was sent and not answered is done, or not: nobody knows. That is not predicted, so it is waited for, but for
    // commands that leave nothing behind.
    if (pending.some(({ message }) => LASTING.has(message.command))) this.#settle(slot);
    if (!this.#connected.has(slot)) return;
    connection[Symbol.dispose]();
    this.#forget(slot, pending.length);
  }

  #breakOff({ on, bytes, descriptors }: Operation & { kind: "break-off" }): void {
    this.#settle(on);
    if (!this.#connected.has(on)) return;
    this.#of(on).connection.send(
      bytes,
      descriptors.map((name) => this.#files.fd(name)),
    );
    this.#disconnect(on);
  }

  /** The connection is closed at this end, or at the server's. */
  #forget(slot: Slot, underWay: number): void {
    this.#of(slot).connection[Symbol.dispose]();
    this.#connected.delete(slot);
    if (slot === MAIN) {
      this.#twin?.[Symbol.dispose]();
      this.#twin = undefined;
    }
    this.#roundTrips(3 + underWay);
    this.#oracle.disconnect(slot);
  }

  /** The server looks at all connections before it answers one of them twice. */
  #roundTrips(count: number, command: number = VFIO_USER_COMMAND.DEVICE_GET_INFO): void {
    try {
      for (let i = 0; i < count; i++) {
        const id = this.#monitor.send(command, GET_INFO);
        for (const until = performance.now() + HANG_MS; ; ) {
          if (this.#received(this.#monitor, id)) break;
          if (performance.now() > until) throw new Error(`the server said nothing for ${HANG_MS} ms`);
        }
      }
    } catch (error) {
      throw new Finding(`on a connection of somebody else: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** Looks for a reply on the monitor, and meanwhile serves DMA on the device's connection. */
  #received(monitor: RawClient, id: number): boolean {
    this.#serveDma();
    const set = new PollSet([
      { fd: monitor.socket.fd, events: POLLIN },
      { fd: this.#connected.get(MAIN)?.connection.fd ?? -1, events: POLLIN },
      { fd: this.#twin?.fd ?? -1, events: POLLIN },
    ]);
    set.wait(100);
    const message = monitor.socket.receive();
    if (message === "closed") throw new Error("it was closed");
    return message !== undefined && message.id === id;
  }

  /** Handles what has come on the device's connection, and on its twin. */
  #serveDma(): void {
    if (this.#connected.has(MAIN)) this.#take(MAIN);
    this.#takeTwin();
  }

  #intrude(): void {
    this.#settle(MAIN);
    // Where the first may be gone by then, the second is the first.
    if (this.#connected.get(MAIN)?.mayClose !== false) return;
    using second = FuzzConnection.connect(this.#path);
    for (const until = performance.now() + HANG_MS; !second.isClosed; ) {
      if (second.receive() !== undefined) throw new Finding("a second client was answered");
      if (performance.now() > until) throw new Finding("a second client was not refused");
      this.#serveDma();
      second.wait(20);
    }
  }

  #send(message: MessageOperation): void {
    const { on, command, flags, payload, descriptors, cuts, size, waits } = message;
    for (const slot of [...this.#connected.keys()]) if (slot !== on) this.#settle(slot);
    if (this.#connected.get(MAIN)?.connection.isClosed === true) this.#settle(MAIN);
    const connected = this.#connected.get(on);
    if (connected === undefined) return;
    const { connection } = connected;
    const id = connection.takeId();
    const bytes = new Uint8Array(HEADER_BYTES + payload.byteLength);
    const header = { msg_id: id, cmd: command, msg_size: size ?? bytes.byteLength, flags, error: 0 };
    vfio_user_header.encode(header, bytes);
    bytes.set(payload, HEADER_BYTES);
    const expected = this.#oracle.expect(message);
    // Commands that wait for the end of a DMA by messages are lost with the connection.
    if (expected.closes && this.#oracle.hasMessages) this.#settle(on);
    if (!this.#connected.has(on)) return;
    const fds = descriptors.map((name) => this.#files.fd(name));
    let at = 0;
    for (const cut of [...cuts, bytes.byteLength]) {
      connection.send(bytes.subarray(at, cut), at === 0 ? fds : [], () => this.#takeTwin());
      at = cut;
    }
    this.messages++;
    connected.pending.push({ id, message, expected });
    connected.closes ||= expected.closes;
    const asksForTwin = command === VFIO_USER_COMMAND.VERSION && Buffer.from(payload).includes(VERSION_CAPABILITY_TWIN);
    if (
      waits ||
      asksForTwin ||
      expected.closes ||
      expected.observe !== undefined ||
      connected.pending.length >= MAX_PENDING
    ) {
      this.#settle(on);
    }
  }

  /** Waits until what is under way on a connection is answered; where it ends, the connection is forgotten. */
  #settle(slot: Slot): void {
    const connected = this.#of(slot);
    const { connection } = connected;
    for (const until = performance.now() + HANG_MS; ; ) {
      this.#serveDma();
      if (slot !== MAIN && this.#connected.has(slot)) this.#take(slot);
      if (!this.#connected.has(slot)) return;
      const { closes } = connected;
      // The device's own work, and what its client answered to it, may end the connection at any time.
      if (connection.isClosed) {
        const left = connected.pending.filter(({ expected }) => expected.outcomes.length > 0);
        if (!closes && !connected.mayClose) throw new Finding(`the connection was closed${at(connected.pending[0])}`);
        if (left.length > 0 && !connected.mayClose) throw new Finding(`it was closed without an answer${at(left[0])}`);
        const underWay = connected.mayClose ? connected.pending.length : 0;
        this.#finish(connected.pending);
        this.#forget(slot, underWay);
        if (underWay > 0) this.reset();
        return;
      }
      if (!closes && connected.pending.every(({ expected }) => expected.outcomes.length === 0)) {
        if (connected.pending.length === 0) return;
        // They have no answers: a command that has one is done after them.
        this.#barrier(slot);
        return;
      }
      if (performance.now() > until) {
        throw new Finding(
          closes
            ? `the connection was not closed${at(connected.pending.at(-1))}`
            : `no answer${at(connected.pending[0])}`,
        );
      }
      const set = new PollSet([
        { fd: connection.fd, events: POLLIN },
        { fd: this.#connected.get(MAIN)?.connection.fd ?? -1, events: POLLIN },
        { fd: this.#twin?.fd ?? -1, events: POLLIN },
      ]);
      set.wait(100);
    }
  }

  #barrier(on: Slot): void {
    const { DEVICE_GET_INFO } = VFIO_USER_COMMAND;
    this.#send({
      kind: "message",
      on,
      command: DEVICE_GET_INFO,
      flags: 0,
      payload: GET_INFO,
      descriptors: [],
      cuts: [],
      waits: true,
    });
  }

  /** Takes what has come on a connection. */
  #take(slot: Slot): void {
    const connected = this.#of(slot);
    for (;;) {
      const message = connected.connection.receive();
      if (message === undefined) return;
      if ((message.flags & VFIO_USER_F_TYPE) === VFIO_USER_F_TYPE_COMMAND) {
        if (slot !== MAIN) throw new Finding(`the server sent command ${message.command} to one who controls`);
        this.#answerDma(message, connected.connection);
      } else this.#check(message, connected, slot);
    }
  }

  #takeTwin(): void {
    for (;;) {
      const twin = this.#twin;
      const message = twin?.receive();
      if (twin === undefined || message === undefined) return;
      this.#answerDma(message, twin);
    }
  }

  #check(reply: Received, connected: Connected, slot: Slot): void {
    const { pending } = connected;
    const index = pending.findIndex(({ id, expected }) => id === reply.id && expected.outcomes.length > 0);
    const [entry] = index < 0 ? [] : pending.splice(index, 1);
    if (entry === undefined) throw new Finding(`a reply to ${reply.id}, which was not asked or wants none`);
    const { message, expected } = entry;
    const wrong = (what: string) => new Finding(`${what}${at(entry)}`);
    if (reply.command !== message.command) throw wrong(`the reply is one to command ${reply.command}`);
    const isError = (reply.flags & VFIO_USER_F_ERROR) !== 0;
    if ((reply.flags & VFIO_USER_F_TYPE) !== VFIO_USER_F_TYPE_REPLY || isError !== (reply.error !== 0)) {
      throw wrong(`the reply's flags are ${reply.flags}, its error ${reply.error}`);
    }
    const outcome: Outcome = isError ? errnoName(reply.error) : "none";
    count(this.#tally, `${nameOf(message.command)} ${outcome}`);
    if (!expected.outcomes.includes(outcome)) throw wrong(`${outcome} instead of ${expected.outcomes.join(" or ")}`);
    if (isError && reply.payload.byteLength > 0) throw wrong("an error with a payload");
    if (!isError && expected.bytes !== undefined && reply.payload.byteLength !== expected.bytes) {
      throw wrong(`${reply.payload.byteLength} bytes instead of ${expected.bytes}`);
    }
    const mistake = isError ? undefined : expected.check?.(reply.payload);
    if (mistake !== undefined) throw wrong(mistake);
    // Those before it that want no answer are done, too.
    this.#finish(
      pending.splice(0, pending.slice(0, index).every(({ expected: e }) => e.outcomes.length === 0) ? index : 0),
    );
    this.#finish([entry]);
    expected.observe?.(outcome, reply.payload);
    this.#takeDescriptors(reply, message, slot);
  }

  #finish(done: readonly Pending[]): void {
    for (const { expected } of done) expected.done?.();
  }

  #takeDescriptors({ fds, flags }: Received, { command }: MessageOperation, slot: Slot): void {
    const keeps = command === VFIO_USER_COMMAND.VERSION && slot === MAIN && (flags & VFIO_USER_F_ERROR) === 0;
    for (const [index, fd] of fds.entries()) {
      if (keeps && index === 0) this.#twin = new FuzzConnection(new UnixSocket(fd));
      else closeSync(fd);
    }
  }

  /** A DMA_READ or DMA_WRITE of the server's: right, if it is of memory that it was given. */
  #answerDma({ id, command, payload }: Received, connection: FuzzConnection): void {
    const { DMA_READ, DMA_WRITE } = VFIO_USER_COMMAND;
    const { size: head } = vfio_user_dma_access;
    if ((command !== DMA_READ && command !== DMA_WRITE) || payload.byteLength < head) {
      throw new Finding(`the server sent command ${command} with ${payload.byteLength} bytes`);
    }
    const { address, count: bytes } = vfio_user_dma_access.decode(payload);
    const isWrite = command === DMA_WRITE;
    count(this.#tally, `server's ${isWrite ? "DMA_WRITE" : "DMA_READ"} ${this.#dmaAnswer}`);
    if (payload.byteLength !== head + (isWrite ? Number(bytes) : 0) || bytes === 0n) {
      throw new Finding(
        `the server ${isWrite ? "wrote" : "read"} ${bytes} bytes in a message of ${payload.byteLength}`,
      );
    }
    if (!this.#oracle.mayAccess(address, bytes, isWrite)) {
      throw new Finding(
        `the server ${isWrite ? "wrote" : "read"} ${bytes} bytes at 0x${address.toString(16)}, which it may not`,
      );
    }
    const how = this.#dmaAnswer;
    const main = this.#connected.get(MAIN);
    if (main !== undefined && !["right", "refused"].includes(how)) {
      main.mayClose = true;
      this.#oracle.mayLose(MAIN);
    }
    if (how === "hangs-up") {
      this.#dmaAnswer = "right";
      main?.connection[Symbol.dispose]();
      return;
    }
    const answered = isWrite ? head : head + Number(bytes);
    const size = how === "wrong-count" ? Math.max(0, answered - 1) : answered;
    const reply = new Uint8Array(HEADER_BYTES + (how === "refused" ? 0 : size));
    vfio_user_header.encode(
      {
        msg_id: how === "wrong-id" ? (id + 1) & 0xffff : id,
        cmd: how === "wrong-command" ? command ^ 1 : command,
        msg_size: reply.byteLength,
        flags: VFIO_USER_F_TYPE_REPLY | (how === "refused" ? VFIO_USER_F_ERROR : 0),
        error: how === "refused" ? ERRNO.EFAULT : 0,
      },
      reply,
    );
    if (how !== "refused") reply.set(payload.subarray(0, Math.min(head, size)), HEADER_BYTES);
    // The next one is answered as it should be: a connection that ends at once tells little.
    if (!["right", "refused"].includes(how)) this.#dmaAnswer = "right";
    connection.send(reply);
  }
}

/** Commands whose effect outlives the connection, or decides what others are answered. */
const LASTING: ReadonlySet<number> = new Set([
  VFIO_USER_COMMAND.VERSION,
  VFIO_USER_COMMAND.DEVICE_RESET,
  VFIO_USER_COMMAND.DEVICE_FEATURE,
  VFIO_USER_COMMAND.MIG_DATA_READ,
  VFIO_USER_COMMAND.MIG_DATA_WRITE,
]);

const NAMES = new Map<number, string>(Object.entries(VFIO_USER_COMMAND).map(([name, number]) => [number, name]));

function nameOf(command: number): string {
  return NAMES.get(command) ?? "other";
}

function at(pending: Pending | undefined): string {
  return pending === undefined ? "" : `, on ${nameOf(pending.message.command)} (message ${pending.id})`;
}

function count(tally: Tally, what: string): void {
  tally.set(what, (tally.get(what) ?? 0) + 1);
}
