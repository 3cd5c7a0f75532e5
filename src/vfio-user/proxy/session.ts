import { closeSync } from "node:fs";
import { DirtmapError, explain } from "../../errors.js";
import { getFeature, stateOf } from "../../host/device-feature.js";
import { PAGE_SIZE, pageOf } from "../../memory/address.js";
import { dup } from "../../sys/fd.js";
import { socketPair, type UnixSocket } from "../../sys/unix-socket.js";
import { UapiError } from "../../uapi/errno.js";
import {
  type MigState,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_IRQ_SET_DATA_EVENTFD,
  vfio_device_feature,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
  vfio_irq_set,
  vfio_precopy_info,
} from "../../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  VFIO_DEVICE_FEATURE_MASK,
  VFIO_USER_COMMAND,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  VFIO_USER_F_DMA_UNMAP_ALL,
  VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
} from "../../uapi/vfio-user.js";
import { closeFds, keptMessage, type Message, MessageSocket } from "../message-socket.js";
import type { Answer } from "../server/answer.js";
import { readClient, rewriteClient, switchWritePath, writeClient } from "../server/client-access.js";
import type { Mover } from "../server/custody.js";
import { deviceFeature, isProbe, LOG_FEATURES } from "../server/device-feature.js";
import { DmaChannel } from "../server/dma-channel.js";
import { regionToMap, unmapDma } from "../server/dma-commands.js";
import type { DmaLogUser } from "../server/dma-logging.js";
import { announceHandover } from "../server/handover.js";
import { agreeWith } from "../server/negotiation.js";
import { refusal, requestOf, sizedRequestOf } from "../server/refusal.js";
import { MAX_TRANSFER } from "../server/region-access.js";
import { checkMay, nameOf, type SessionKind } from "../server/rights.js";
import { LINES_OF_CLIENT, limited } from "../server/server-log.js";
import { HELD_LIMIT_MS, MAX_HELD, MAX_PAYLOAD, MAX_PER_TURN, VERSION_LIMIT_MS } from "../server/session-limits.js";
import { tellCounters } from "./counters.js";
import type { ProxiedDevice } from "./proxied-device.js";
import { IDS_BELOW, UnderWay } from "./under-way.js";

/** What the server has not taken yet: with more, the client is not heard. */
const MAX_AHEAD_BYTES = 4 * 2 ** 20;

/** A client that has not answered a DMA after this long stands still: the log says so. */
const DMA_LIMIT_MS = 4000;

/** The command was passed on, and its reply will be, too. */
const PASSED = Symbol("passed");

const { GET, SET, PROBE } = {
  GET: VFIO_DEVICE_FEATURE_GET,
  SET: VFIO_DEVICE_FEATURE_SET,
  PROBE: VFIO_DEVICE_FEATURE_PROBE,
};

/**
 * One client's connection to the proxy: the device's client, or one that controls. What is the server's business goes there as
 * it came. What concerns the migration, the log or the client's memory is taken note of on the way, or done here.
 *
 * Commands are begun in the order in which they come. One that is done here, and takes the server's answer, holds up the later
 * ones; those that are passed on do not.
 */
export class ProxySession implements DmaLogUser, Mover {
  readonly name: string;
  readonly kind: SessionKind;
  speaksDirtmap = false;
  maxTransfer = 0;
  readonly #socket: MessageSocket;
  readonly #device: ProxiedDevice;
  readonly #stop: number;
  readonly #log: (line: string) => void;
  readonly #background: (work: Promise<void>) => void;
  readonly #since = performance.now();
  #twin: MessageSocket | null = null;
  /** What the server, and this proxy, ask of the client. */
  #commands: UnderWay | null = null;
  #channel: DmaChannel | null = null;
  #maxFds = 0;
  #held: Message[] = [];
  #busy = false;
  /** Commands that were passed on and have no reply yet. */
  #waits = 0;
  #over = false;
  #wasSilent = false;

  constructor(options: {
    name: string;
    kind: SessionKind;
    /** Taken over. */
    socket: UnixSocket;
    device: ProxiedDevice;
    /** Readable when the proxy is to stop. */
    stop: number;
    log: (line: string) => void;
    /** Is told of work that goes on after {@link serve} has returned. */
    background: (work: Promise<void>) => void;
  }) {
    this.name = options.name;
    this.kind = options.kind;
    this.#socket = new MessageSocket(options.socket, MAX_PAYLOAD);
    this.#device = options.device;
    this.#stop = options.stop;
    this.#log = limited(options.log, LINES_OF_CLIENT);
    this.#background = options.background;
  }

  /** Sockets, to be polled: its own, and the one on which it answers the server's commands. */
  get socket(): MessageSocket {
    return this.#socket;
  }

  get twin(): MessageSocket | null {
    return this.#twin;
  }

  get announces(): boolean {
    return this.speaksDirtmap;
  }

  /** Null until it has agreed on the version. */
  get commands(): UnderWay {
    if (this.#commands === null) throw new Error("a client that has not said its version");
    return this.#commands;
  }

  /** The server may ask it. */
  get isReady(): boolean {
    return this.#commands !== null && !this.#over;
  }

  get isOver(): boolean {
    return this.#over;
  }

  /** It takes no more commands for the moment, and is not to be polled for any. */
  get isFull(): boolean {
    const { server } = this.#device;
    if (this.#socket.unsent || this.#held.length >= MAX_HELD) return true;
    return server !== null && (server.commands.isFull || server.socket.unsentBytes > MAX_AHEAD_BYTES);
  }

  /** Messages are here already, of which no poll will tell. */
  get hasMore(): boolean {
    return !this.#over && !this.isFull && this.#socket.hasBuffered;
  }

  /**
   * Ends a client that has not said its version. One that doesn't answer a DMA is only told of: QEMU never connects again, so a
   * guest would lose its device if a QEMU that stood still were disconnected.
   */
  checkTime(now: number): void {
    if (this.#over) return;
    if (this.#commands === null && now - this.#since > VERSION_LIMIT_MS) {
      this.end(`it has not said its version for ${VERSION_LIMIT_MS} ms`);
      return;
    }
    const isSilent = this.#commands?.isLate(now) === true;
    if (isSilent && !this.#wasSilent) this.#log(`${this.name} has not answered a DMA for ${DMA_LIMIT_MS} ms`);
    this.#wasSilent = isSilent;
    if (this.#waits > 0 || this.#busy) this.#commands?.giveUp(now - HELD_LIMIT_MS);
  }

  /** Handles what has come. Does not throw. */
  serve(): void {
    if (this.#over) return;
    try {
      if (this.#socket.unsent) this.#socket.flush();
      this.#channel?.resume();
      for (let turn = 0; turn < MAX_PER_TURN && !this.isFull && !this.#over; turn++) {
        const message = turn === 0 ? this.#socket.receive() : this.#socket.buffered();
        if (message === undefined) return;
        if (message === "closed") this.end(null);
        else this.#take(message);
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Handles what has come on the socket of the server's commands. Does not throw. */
  serveTwin(): void {
    if (this.#over || this.#twin === null) return;
    try {
      if (this.#twin.unsent) this.#twin.flush();
      for (let turn = 0; turn < MAX_PER_TURN && !this.#over; turn++) {
        const message = turn === 0 ? this.#twin.receive() : this.#twin.buffered();
        if (message === undefined) return;
        if (message === "closed") this.end("it has closed its twin socket");
        else if (message.isReply) this.#takeReply(message);
        else {
          closeFds(message.fds);
          this.end("it sent a command on the socket that is for the server's own");
        }
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  /** The connection is of no more use. @param why null: the client has left without a word */
  end(why: string | null): void {
    if (this.#over) return;
    this.#over = true;
    if (why !== null) this.#log(`${this.name} is closed: ${why}`);
  }

  /** Closes it, and ends what it had. Does not throw. */
  async close(): Promise<void> {
    this.#over = true;
    for (const { fds } of this.#held.splice(0)) closeFds(fds);
    this.#twin?.[Symbol.dispose]();
    this.#socket[Symbol.dispose]();
    const gone = new UapiError("ECONNRESET", {
      syscall: "recvmsg",
      attempted: `have ${this.name} answer, which is gone`,
    });
    this.#commands?.fail(gone);
    if (this.kind === "main") await this.#device.forgetClient();
    await this.#device.release(this);
    if (this.kind === "main") this.#device.movement.noteMeanwhile(this.name, "gone");
  }

  #take(message: Message): void {
    if (message.isReply) this.#takeReply(message);
    else if (this.#busy || this.#held.length > 0) this.#held.push(keptMessage(message));
    else this.#dispatch(message);
  }

  #takeReply(message: Message): void {
    if (message.id >= IDS_BELOW && this.#channel?.takeLate(message) === true) return;
    if (this.#commands === null) throw new DirtmapError("a reply to nothing", { code: "PROTOCOL" });
    this.#commands.take(message);
    if (this.#commands.broken !== undefined) throw this.#commands.broken;
  }

  #dispatch(message: Message): void {
    let answer: Answer | Promise<Answer> | typeof PASSED;
    try {
      answer = this.#run(message);
    } catch (error) {
      this.#refuse(message, error);
      return;
    }
    if (answer === PASSED) return;
    if (!(answer instanceof Promise)) {
      this.#reply(message, answer);
      return;
    }
    this.#busy = true;
    const done = answer.then(
      (value) => this.#reply(message, value),
      (error: unknown) => this.#refuse(message, error),
    );
    this.#background(done.then(() => this.#goOn()).catch((error: unknown) => this.#fail(error)));
  }

  /** What was held is done next. */
  #goOn(): void {
    this.#busy = false;
    while (!this.#busy && !this.#over) {
      const message = this.#held.shift();
      if (message === undefined) return;
      this.#dispatch(message);
    }
  }

  #run(message: Message): Answer | Promise<Answer> | typeof PASSED {
    if (this.#commands === null) return this.#version(message);
    checkMay(message, this);
    const device = this.#device;
    switch (message.command) {
      case VFIO_USER_COMMAND.REGION_READ:
        return device.state === "STOP_COPY" ? this.#passRead(message) : this.#pass(message);
      case VFIO_USER_COMMAND.DMA_MAP:
        return this.#map(message);
      case VFIO_USER_COMMAND.DMA_UNMAP:
        return this.#unmap(keptMessage(message));
      case VFIO_USER_COMMAND.DEVICE_SET_IRQS:
        return this.#setIrqs(message);
      case VFIO_USER_COMMAND.DEVICE_RESET:
        return device.reset(this).then(() => null);
      case VFIO_USER_COMMAND.DEVICE_FEATURE:
        return this.#feature(message);
      case VFIO_USER_COMMAND.VERSION:
        throw refusal("EINVAL", nameOf(message.command), "agree on the version again", "connect anew");
      case VFIO_USER_COMMAND.MIG_DATA_READ:
        device.noteDataRead();
        return this.#pass(message);
      case DIRTMAP_COMMAND.COUNTERS:
        return tellCounters(keptMessage(message), device);
      case DIRTMAP_COMMAND.PRECOPY_INFO:
        return this.#precopyInfo(message);
      case DIRTMAP_COMMAND.HANDOVER:
        return announceHandover(message, device.movement.custody, this);
      case DIRTMAP_COMMAND.WRITE_PATH:
        return this.#switchWritePath(message);
      case DIRTMAP_COMMAND.CLIENT_READ:
        return readClient(message, device, this.#socket);
      case DIRTMAP_COMMAND.CLIENT_WRITE:
        return writeClient(message, device);
      case DIRTMAP_COMMAND.CLIENT_REWRITE:
        return rewriteClient(message, device);
      default:
        return this.#pass(message);
    }
  }

  #pass(message: Message, answered?: (reply: Message) => void): typeof PASSED {
    const { id, command, noReply } = message;
    this.#device.messages.passed++;
    const { commands } = this.#device.connected();
    if (!noReply) this.#waits++;
    commands.pass(message, (reply) => {
      this.#waits--;
      if (this.#over) {
        if (reply !== null) closeFds(reply.fds);
        return;
      }
      try {
        // A server that is gone takes the device's client along; a control connection stays.
        if (reply === null)
          this.#refuse({ ...message, id, command, fds: [] }, this.#device.server?.commands.failure ?? gone());
        else {
          answered?.(reply);
          closeFds(reply.fds.splice(this.#maxFds));
          this.#socket.pass(reply, id);
        }
      } catch (error) {
        this.#fail(error);
      }
    });
    return PASSED;
  }

  /** Of a device in STOP_COPY: what the server refuses of the configuration space is known here. */
  #passRead(message: Message): typeof PASSED {
    const { id, command } = message;
    const request = message.payload.slice();
    this.#device.connected().commands.pass(message, (reply) => {
      if (this.#over || reply === null) return;
      const known = reply.error === 0 ? null : this.#device.configReply(request);
      try {
        if (known === null) this.#socket.pass(reply, id);
        else this.#socket.sendReply({ id, command }, known);
      } catch (error) {
        this.#fail(error);
      }
    });
    return PASSED;
  }

  /** The region is known here before the server has it: its DMA there may come before its answer. */
  async #map(message: Message): Promise<null> {
    const kept = keptMessage(message);
    const region = regionToMap(kept);
    const device = this.#device;
    if (this.#channel === null) throw new Error("a command before the version");
    const fd = kept.fds.at(0);
    device.memory.map(region, fd === undefined ? undefined : dup(fd), this.#channel);
    try {
      const shared = device.dma === "messages" ? [] : kept.fds;
      await device.connected().commands.call(kept.command, nameOf(kept.command), withoutWay(kept, shared), shared);
    } catch (error) {
      if (device.memory.has(region.page, region.pages)) device.memory.unmap(region.page, region.pages);
      throw error;
    }
    return null;
  }

  async #unmap({ command, payload }: Message): Promise<Answer> {
    const device = this.#device;
    const { flags, address, size } = requestOf(vfio_user_dma_unmap, payload, nameOf(command));
    if (device.serversLog === null && (flags & VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP) !== 0) {
      // The log is kept here: the server is told of the unmapping alone.
      const plain = vfio_user_dma_unmap.encode({ argsz: vfio_user_dma_unmap.size, address, size });
      await device.connected().commands.call(command, nameOf(command), plain);
      return unmapDma({ payload }, device, { socket: this.#socket, user: this });
    }
    const all = (flags & VFIO_USER_F_DMA_UNMAP_ALL) !== 0;
    const first = pageOf(address);
    const regions = device.memory.regions().filter(({ page }) => all || page === first);
    for (const region of regions) device.noteUnmapping(region);
    const answer = await device.connected().commands.call(command, nameOf(command), payload);
    if (all) device.memory.clear();
    else if (device.memory.has(first, Number(size / BigInt(PAGE_SIZE)))) {
      device.memory.unmap(first, Number(size / BigInt(PAGE_SIZE)));
    }
    return answer;
  }

  #setIrqs(message: Message): Promise<null> | typeof PASSED {
    if (message.payload.byteLength >= vfio_irq_set.size) {
      const { flags, index } = vfio_irq_set.decode(message.payload);
      if ((flags & VFIO_IRQ_SET_DATA_EVENTFD) !== 0) this.#device.noteIrqs(index);
    }
    if (!this.#device.isStopped) return this.#pass(message);
    const { payload, fds } = keptMessage(message);
    return this.#device.setIrqsWhileStopped(payload, fds);
  }

  #feature(message: Message): Promise<Answer> | typeof PASSED {
    const { flags } = requestOf(vfio_device_feature, message.payload, nameOf(message.command));
    const feature = flags & VFIO_DEVICE_FEATURE_MASK;
    if (LOG_FEATURES.has(feature)) {
      return deviceFeature(keptMessage(message), LOG_FEATURES, {
        device: this.#device,
        user: this,
        socket: this.#socket,
      });
    }
    const sets = (flags & (GET | SET | PROBE)) === SET;
    if (feature !== VFIO_DEVICE_FEATURE.MIG_DEVICE_STATE || !sets) return this.#pass(message);
    return this.#setState(message.payload.slice());
  }

  async #setState(request: Uint8Array): Promise<Uint8Array> {
    const what = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE";
    const { device_state } = requestOf(vfio_device_feature_mig_state, request.subarray(vfio_device_feature.size), what);
    const next: MigState | undefined = stateOf(device_state);
    if (next === undefined) throw refusal("EINVAL", what, `go to state ${device_state}`, "there is none");
    if (this.#device.connected().facts.migration === null) {
      throw refusal("ENOTTY", what, `move '${this.#device.id}' to ${next}`, "its server can't migrate it");
    }
    await this.#device.setState(next, this);
    return request;
  }

  /** A server has no message for it: all of the state may have changed. */
  async #precopyInfo({ payload }: Message): Promise<Uint8Array> {
    const what = "VFIO_MIG_GET_PRECOPY_INFO";
    sizedRequestOf(vfio_precopy_info, payload, what);
    const { state } = this.#device;
    if (state !== "PRE_COPY" && state !== "PRE_COPY_P2P") {
      throw refusal("EINVAL", what, "ask how much pre-copy data there is", "go to a PRE_COPY state first");
    }
    const { features, facts } = this.#device.connected();
    let bytes = 0n;
    if (facts.dataSize) {
      const call = { syscall: what, attempted: "ask for the size of the state" };
      const layout = vfio_device_feature_mig_data_size;
      bytes = (await getFeature(features, "MIG_DATA_SIZE", layout, call)).stop_copy_length;
    }
    const values = this.#device.isUnread ? { initial_bytes: bytes } : { dirty_bytes: bytes };
    return vfio_precopy_info.encode({ argsz: vfio_precopy_info.size, ...values });
  }

  #switchWritePath(message: Message): Uint8Array {
    if (!this.#device.writePaths.includes("messages")) {
      throw refusal(
        "EOPNOTSUPP",
        "write path",
        `choose how the writes of '${this.#device.id}' go, whose server has the memory's descriptors`,
        "start the proxy with --dma messages, or track the device by its log",
      );
    }
    return switchWritePath(message, this.#device, this);
  }

  #version(message: Message): Answer {
    // Whatever is wrong, there is nothing more to say on this connection.
    this.#over = true;
    const { agreement, answer, mismatch } = agreeWith(message, this.kind, this.#device.connected().limits);
    if (mismatch !== null) {
      this.#log(`${this.name} is closed: ${mismatch.problem}; ${mismatch.remedy}`);
      return answer;
    }
    let twinEnd = -1;
    if (agreement.twinSocket) {
      const [own, client] = socketPair();
      this.#twin = new MessageSocket(own, MAX_PAYLOAD);
      twinEnd = client.fd;
    }
    this.#maxFds = agreement.maxFds;
    this.maxTransfer = Math.min(MAX_TRANSFER, agreement.maxTransfer);
    const commands = new UnderWay(this.#twin ?? this.#socket, this.name, DMA_LIMIT_MS);
    this.#commands = commands;
    this.#channel = new DmaChannel({
      socket: commands.socket,
      maxTransfer: this.maxTransfer,
      stop: this.#stop,
      take: this.#twin === null ? (command) => this.#hold(command) : null,
      broken: (why) => this.end(why),
      silent: (ms) => this.#log(`${this.name} has not answered a DMA for ${ms} ms: who controls the device waits`),
      others: { below: IDS_BELOW, take: (reply) => commands.take(reply) },
    });
    if (this.kind === "main") this.#device.memory.channel = this.#channel;
    this.speaksDirtmap = agreement.dirtmap !== null;
    this.#over = false;
    return twinEnd < 0 ? answer : { payload: answer, fds: [twinEnd] };
  }

  /** A command came while a control connection's access to this client's memory waits for its answer. */
  #hold(message: Message): number {
    if (this.#held.length >= MAX_HELD) {
      closeFds(message.fds);
      throw new DirtmapError(`it sends commands and does not answer a DMA: ${MAX_HELD} wait`, { code: "PROTOCOL" });
    }
    this.#held.push(keptMessage(message));
    // It is not busy: nothing but this would have them done.
    if (!this.#busy) this.#background(Promise.resolve().then(() => this.#goOn()));
    return message.noReply ? Number.POSITIVE_INFINITY : HELD_LIMIT_MS;
  }

  #reply(message: Message, answer: Answer): void {
    this.#device.messages.answered++;
    closeFds(message.fds);
    const isPlain = answer === null || answer instanceof Uint8Array;
    const fds = isPlain ? [] : [...answer.fds];
    try {
      if (!message.noReply && !this.#closed) this.#socket.sendReply(message, isPlain ? answer : answer.payload, fds);
    } catch (error) {
      this.#fail(error);
    } finally {
      // The first reply of a connection: there is room for it.
      for (const fd of fds) closeSync(fd);
    }
  }

  #refuse(message: Message, error: unknown): void {
    closeFds(message.fds);
    if (!(error instanceof UapiError)) {
      this.#fail(error);
      return;
    }
    this.#device.messages.refused++;
    if (!isProbe(message)) this.#log(`${this.name}: ${explain(error)}`);
    try {
      if (!message.noReply && !this.#closed) this.#socket.sendError(message, error.errno);
    } catch (failure) {
      this.#fail(failure);
    }
  }

  get #closed(): boolean {
    return this.#over && this.#commands !== null;
  }

  #fail(error: unknown): void {
    // A client that is gone without a word is no mistake.
    const code = (error as { code?: string }).code;
    this.end(code === "EPIPE" || code === "ECONNRESET" || code === "EBADF" ? null : explain(error));
  }
}

function gone(): UapiError {
  return refusal("ENOTCONN", "proxy", "reach the device's server, which is gone", "start it again");
}

/** The request for the server: how a file is to be reached means nothing where none goes along. */
function withoutWay({ payload, fds }: Message, shared: readonly number[]): Uint8Array {
  if (shared.length === fds.length) return payload;
  const request = payload.slice();
  const flags = vfio_user_dma_map.decode(payload).flags & (VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE);
  new DataView(request.buffer).setUint32(vfio_user_dma_map.offsetOf("flags"), flags, true);
  new DataView(request.buffer).setBigUint64(vfio_user_dma_map.offsetOf("offset"), 0n, true);
  return request;
}
