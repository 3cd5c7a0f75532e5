import { closeSync } from "node:fs";
import { DirtmapError, explain } from "../../errors.js";
import { socketPair, type UnixSocket } from "../../sys/unix-socket.js";
import { UapiError } from "../../uapi/errno.js";
import { DIRTMAP_COMMAND, VFIO_USER_COMMAND } from "../../uapi/vfio-user.js";
import { closeFds, keptMessage, type Message, MessageSocket } from "../message-socket.js";
import type { Answer } from "./answer.js";
import { readClient, rewriteClient, switchWritePath, writeClient } from "./client-access.js";
import { getCounters } from "./counters.js";
import type { Mover } from "./custody.js";
import { deviceFeature, FEATURES, isProbe } from "./device-feature.js";
import { getInfo, getRegionInfo, getRegionIoFds } from "./device-info.js";
import { DmaChannel } from "./dma-channel.js";
import { leavesMapped, mapDma, unmapDma } from "./dma-commands.js";
import type { DmaLogUser } from "./dma-logging.js";
import { announceHandover } from "./handover.js";
import { getIrqInfo, setIrqs } from "./irq-commands.js";
import { MigrationReader, writeMigrationData } from "./migration-data.js";
import { agreeWith } from "./negotiation.js";
import { refusal } from "./refusal.js";
import { RegionAccess } from "./region-access.js";
import { checkMay, nameOf, type SessionKind } from "./rights.js";
import type { ServedDevice } from "./served-device.js";
import { LINES_OF_CLIENT, limited } from "./server-log.js";
import { HELD_LIMIT_MS, MAX_HELD, MAX_PAYLOAD, MAX_PER_TURN, VERSION_LIMIT_MS } from "./session-limits.js";

/** Of the commands that wait while the client's answer to a DMA is waited for. */
const MAX_HELD_BYTES = 16 * 2 ** 20;

/** What became of a turn: nothing is left to do, there is more, or the connection is over. */
export type Turn = "waiting" | "more" | "over";

/** {@link HELD_LIMIT_MS} for a reset, which gives up whatever the DMA was for: long enough for a client that does answer meanwhile. */
const RESET_LIMIT_MS = 100;

/** Commands that don't meet the device's own work: they are answered even while its DMA waits for the client. */
const DURING_DMA: ReadonlySet<number> = new Set([
  VFIO_USER_COMMAND.DMA_MAP,
  VFIO_USER_COMMAND.DEVICE_GET_INFO,
  VFIO_USER_COMMAND.DEVICE_GET_REGION_INFO,
  VFIO_USER_COMMAND.DEVICE_GET_IRQ_INFO,
  VFIO_USER_COMMAND.DEVICE_SET_IRQS,
]);

/** And these, of a model that says so. */
const REGISTERS: ReadonlySet<number> = new Set([
  VFIO_USER_COMMAND.REGION_READ,
  VFIO_USER_COMMAND.REGION_WRITE,
  VFIO_USER_COMMAND.REGION_WRITE_MULTI,
]);

/**
 * One client's connection: agrees on the version, then answers commands in the order in which they come. A command that
 * fails is answered with an errno and changes nothing; a message that can't be understood ends the connection, never the
 * server.
 *
 * A client that does not read its replies is not listened to until it has: what waits for it is one reply.
 */
export class Session implements DmaLogUser, Mover {
  readonly name: string;
  readonly kind: SessionKind;
  readonly #socket: MessageSocket;
  readonly #device: ServedDevice;
  readonly #regions: RegionAccess;
  readonly #migration: MigrationReader;
  readonly #stop: number;
  readonly #log: (line: string) => void;
  readonly #since = performance.now();
  #channel: DmaChannel | undefined;
  #twin: MessageSocket | undefined;
  /** The client's end of the twin socket, until it is sent. */
  #twinEnd = -1;
  #held: Message[] = [];
  /** A command that was begun during a DMA and takes longer: nothing else is done before it is. */
  #begun: Promise<void> | undefined;
  #heldBytes = 0;
  #negotiated = false;
  speaksDirtmap = false;
  #over = false;

  constructor(options: {
    name: string;
    kind: SessionKind;
    /** Taken over. */
    socket: UnixSocket;
    device: ServedDevice;
    /** Readable when the server is to stop. */
    stop: number;
    log: (line: string) => void;
  }) {
    this.name = options.name;
    this.kind = options.kind;
    this.#socket = new MessageSocket(options.socket, MAX_PAYLOAD);
    this.#device = options.device;
    this.#regions = new RegionAccess(options.device);
    this.#migration = new MigrationReader(options.device);
    this.#stop = options.stop;
    this.#log = limited(options.log, LINES_OF_CLIENT);
  }

  get fd(): number {
    return this.#socket.fd;
  }

  /** True while it waits for the client to read, and takes no more commands. */
  get unsent(): boolean {
    return this.#socket.unsent;
  }

  /** A client that speaks Dirtmap's own commands says so before it gives a machine up. */
  get announces(): boolean {
    return this.speaksDirtmap;
  }

  /** True for one that is to be closed: a DMA found it gone, or it has not said its version in time. */
  get isOver(): boolean {
    if (!this.#over && !this.#negotiated && performance.now() - this.#since > VERSION_LIMIT_MS) {
      this.#over = true;
      this.#log(`${this.name} is closed: it has not said its version for ${VERSION_LIMIT_MS} ms`);
    }
    return this.#over;
  }

  /** Commands wait that came during a DMA, or together with its answer: no poll will tell of them. */
  get hasHeld(): boolean {
    const waits = this.#held.length > 0 || this.#begun !== undefined || this.#socket.hasBuffered;
    return !this.#socket.unsent && waits;
  }

  /**
   * Answers what has come, up to a number of messages. Does not throw.
   * @param wait for the first of them to come, for a moment
   */
  serve(wait = false): Turn | Promise<Turn> {
    if (this.#begun !== undefined) return this.#finishBegun().then(() => (this.#over ? "over" : "more"));
    this.#channel?.resume();
    try {
      for (let turn = 0; turn < MAX_PER_TURN; turn++) {
        if (this.#socket.unsent) this.#socket.flush();
        if (this.#socket.unsent) return "waiting";
        const message = turn === 0 ? this.#next(true, wait) : this.#next(false, false);
        if (message === undefined) return this.#over ? "over" : "waiting";
        if (message === "closed") return "over";
        const answering = this.#answer(message);
        if (answering !== undefined)
          return answering.then(
            () => (this.#over ? "over" : "more"),
            (error) => this.#end(error),
          );
        if (this.#over) return "over";
      }
      return "more";
    } catch (error) {
      return this.#end(error);
    }
  }

  /**
   * Closes the connection, and ends what the client had: its log, its migration ({@link Custody}) and, of the device's
   * client, memory and interrupts. The migration is last: the device may run again by then.
   * @param serverEnds and the device with it
   */
  async close({ serverEnds = false } = {}): Promise<void> {
    this.#over = true;
    await this.#finishBegun();
    await this.#device.logging.release(this);
    this.#device.writePath.release(this);
    if (this.kind === "main") this.#device.forgetClient(this.name);
    if (!serverEnds) await this.#device.movement.release(this);
    for (const { fds } of this.#held) closeFds(fds);
    this.#held = [];
    this.#twin?.[Symbol.dispose]();
    this.#closeTwinEnd();
    this.#socket[Symbol.dispose]();
  }

  /** The next message, of those that were held, then of those that came. @param look at the socket, too */
  #next(look: boolean, wait: boolean): Message | undefined | "closed" {
    const held = this.#held.length === 0 ? undefined : this.#held.shift();
    if (held === undefined) return look ? this.#socket.receive(wait) : this.#socket.buffered();
    this.#heldBytes -= held.payload.byteLength;
    return held;
  }

  /** Answers a command; where that takes a promise, returns it. @throws UapiError of the socket, DirtmapError `PROTOCOL` */
  #answer(message: Message): Promise<void> | undefined {
    if (message.isReply) {
      if (this.#channel?.takeLate(message)) return undefined;
      closeFds(message.fds);
      throw new DirtmapError("a reply to nothing", { code: "PROTOCOL" });
    }
    let answer: Answer | Promise<Answer>;
    try {
      answer = this.#run(message);
    } catch (error) {
      this.#refuse(message, error);
      return undefined;
    }
    if (answer instanceof Promise) {
      return answer.then(
        (done) => this.#reply(message, done),
        (error) => this.#refuse(message, error),
      );
    }
    this.#reply(message, answer);
    return undefined;
  }

  #run(message: Message): Answer | Promise<Answer> {
    if (!this.#negotiated) return this.#version(message);
    const { command } = message;
    checkMay(message, this);
    switch (command) {
      case VFIO_USER_COMMAND.REGION_READ:
        return this.#regions.read(message, this.#socket);
      case VFIO_USER_COMMAND.REGION_WRITE:
        return this.#regions.write(message, this.#socket);
      case VFIO_USER_COMMAND.REGION_WRITE_MULTI:
        return this.#regions.writeMulti(message);
      case VFIO_USER_COMMAND.DMA_MAP:
        return mapDma(message, this.#device, this.#dmaChannel);
      case VFIO_USER_COMMAND.DMA_UNMAP:
        return unmapDma(message, this.#device, { socket: this.#socket, user: this });
      case VFIO_USER_COMMAND.DEVICE_GET_INFO:
        return getInfo(message);
      case VFIO_USER_COMMAND.DEVICE_GET_REGION_INFO:
        return getRegionInfo(message, this.#device);
      case VFIO_USER_COMMAND.DEVICE_GET_REGION_IO_FDS:
        return getRegionIoFds(message);
      case VFIO_USER_COMMAND.DEVICE_GET_IRQ_INFO:
        return getIrqInfo(message, this.#device.irqs);
      case VFIO_USER_COMMAND.DEVICE_SET_IRQS:
        return setIrqs(message, this.#device.irqs);
      case VFIO_USER_COMMAND.DEVICE_RESET:
        return this.#device.movement.reset(this).then(() => null);
      case VFIO_USER_COMMAND.DEVICE_FEATURE:
        return deviceFeature(message, FEATURES, { device: this.#device, user: this, socket: this.#socket });
      case VFIO_USER_COMMAND.MIG_DATA_READ:
        return this.#migration.read(message, this.#socket);
      case VFIO_USER_COMMAND.MIG_DATA_WRITE:
        return writeMigrationData(message, this.#device);
      case DIRTMAP_COMMAND.COUNTERS:
        return getCounters(message, this.#device);
      case DIRTMAP_COMMAND.PRECOPY_INFO:
        return this.#migration.precopyInfo(message);
      case DIRTMAP_COMMAND.HANDOVER:
        return announceHandover(message, this.#device.movement.custody, this);
      case DIRTMAP_COMMAND.WRITE_PATH:
        return switchWritePath(message, this.#device, this);
      case DIRTMAP_COMMAND.CLIENT_READ:
        return readClient(message, this.#device, this.#socket);
      case DIRTMAP_COMMAND.CLIENT_WRITE:
        return writeClient(message, this.#device);
      case DIRTMAP_COMMAND.CLIENT_REWRITE:
        return rewriteClient(message, this.#device);
      case VFIO_USER_COMMAND.VERSION:
        throw refusal("EINVAL", nameOf(command), "agree on the version again", "connect anew");
      default:
        throw refusal("ENOTTY", nameOf(command), "do what no client asks a server", "see the specification");
    }
  }

  #version(message: Message): Answer {
    // Whatever is wrong, there is nothing more to say on this connection.
    this.#over = true;
    const { agreement, answer, mismatch } = agreeWith(message, this.kind);
    const canTwin = agreement.twinSocket;
    if (mismatch !== null) {
      // It learns of it from the answer, and the operator of this side from the log.
      this.#log(`${this.name} is closed: ${mismatch.problem}; ${mismatch.remedy}`);
      return answer;
    }
    let socket = this.#socket;
    if (canTwin) {
      const [own, client] = socketPair();
      this.#twin = new MessageSocket(own, MAX_PAYLOAD);
      this.#twinEnd = client.fd;
      socket = this.#twin;
    }
    this.#channel = new DmaChannel({
      socket,
      maxTransfer: agreement.maxTransfer,
      stop: this.#stop,
      take: canTwin ? null : (message) => this.#takeDuringDma(message),
      broken: (why) => {
        this.#over = true;
        this.#log(`${this.name} is closed: ${why}`);
      },
      silent: (ms) =>
        this.#log(
          `${this.name} has not answered a DMA for ${ms} ms: the device, and who controls it, wait until it does`,
        ),
    });
    if (this.kind === "main") this.#device.memory.channel = this.#channel;
    this.#negotiated = true;
    this.speaksDirtmap = agreement.dirtmap !== null;
    if (this.kind === "main" && !this.speaksDirtmap) this.#device.noteVmm(this.name);
    this.#over = false;
    return canTwin ? { payload: answer, fds: [this.#twinEnd] } : answer;
  }

  get #dmaChannel(): DmaChannel {
    if (this.#channel === undefined) throw new Error("a command before the version");
    return this.#channel;
  }

  /**
   * A command came while a DMA's answer was waited for: answers it if that touches nothing that the DMA is part of, else
   * holds it. Returns how long the DMA may be waited for, in milliseconds: a client may wait for a command that is held
   * without serving DMA.
   */
  #takeDuringDma(message: Message): number {
    if (this.#isFree(message) && this.#held.length === 0 && this.#begun === undefined) {
      this.#begun = this.#answer(message);
      return Number.POSITIVE_INFINITY;
    }
    this.#hold(message);
    if (message.noReply) return Number.POSITIVE_INFINITY;
    return message.command === VFIO_USER_COMMAND.DEVICE_RESET ? RESET_LIMIT_MS : HELD_LIMIT_MS;
  }

  /** A command that can be done in the middle of the DMA that is under way. */
  #isFree(message: Message): boolean {
    const { command } = message;
    if (command === VFIO_USER_COMMAND.DMA_UNMAP) return leavesMapped(message, this.#dmaChannel);
    return DURING_DMA.has(command) || (REGISTERS.has(command) && this.#device.model.registersDuringDma === true);
  }

  async #finishBegun(): Promise<void> {
    try {
      await this.#begun;
    } catch (error) {
      // The client may be gone by now.
      this.#end(error);
    }
    this.#begun = undefined;
  }

  /** @throws DirtmapError `PROTOCOL` for too many */
  #hold(message: Message): void {
    this.#heldBytes += message.payload.byteLength;
    if (this.#held.length >= MAX_HELD || this.#heldBytes > MAX_HELD_BYTES) {
      closeFds(message.fds);
      throw new DirtmapError(`it sends commands and does not answer a DMA: ${this.#held.length} wait`, {
        code: "PROTOCOL",
      });
    }
    this.#held.push(keptMessage(message));
  }

  #reply(message: Message, answer: Answer): void {
    this.#device.messages.answered++;
    closeFds(message.fds);
    if (message.noReply) return;
    if (answer === null || answer instanceof Uint8Array) this.#socket.sendReply(message, answer);
    else this.#socket.sendReply(message, answer.payload, answer.fds);
    if (this.#twinEnd >= 0 && !this.#socket.unsent) this.#closeTwinEnd();
  }

  #refuse(message: Message, error: unknown): void {
    closeFds(message.fds);
    if (error instanceof DirtmapError && !(error instanceof UapiError)) throw error;
    this.#device.messages.refused++;
    if (error instanceof UapiError) {
      // Asking whether a device has a feature is no mistake: it is how one finds out.
      if (!isProbe(message)) this.#log(`${this.name}: ${explain(error)}`);
      if (!message.noReply) this.#socket.sendError(message, error.errno);
      return;
    }
    // A bug in a model must not take its server down: the device has failed.
    this.#device.fail(error instanceof Error ? (error.stack ?? error.message) : String(error));
    if (!message.noReply) this.#socket.sendError(message, refusal("EIO", "", "").errno);
  }

  #end(error: unknown): "over" {
    this.#over = true;
    // A client that is gone without a word is no mistake.
    const code = (error as { code?: string }).code;
    if (code !== "EPIPE" && code !== "ECONNRESET") this.#log(`${this.name} is closed: ${explain(error)}`);
    return "over";
  }

  #closeTwinEnd(): void {
    if (this.#twinEnd >= 0) closeSync(this.#twinEnd);
    this.#twinEnd = -1;
  }
}
