import { P2P_STATES, RUNNING_STATES } from "../../devices/variant-driver/mig-state.js";
import { explain } from "../../errors.js";
import { MAX_LOGGED_RANGES } from "../../host/dma-logging-checks.js";
import type { DmaLoggingLimits } from "../../host/host.js";
import { hex, iovaOf, PAGE_SIZE } from "../../memory/address.js";
import { Lock } from "../../threads/lock.js";
import { UapiError } from "../../uapi/errno.js";
import {
  type MigState,
  SAVING_GROUP,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_PCI_REGION_INDEX,
  vfio_irq_set,
} from "../../uapi/vfio.js";
import {
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_USER_COMMAND,
  vfio_user_dma_unmap,
  vfio_user_region_access,
} from "../../uapi/vfio-user.js";
import { type ClientAccess, WritePathSwitch } from "../server/client-access.js";
import { ClientMemory, type DmaMode, type DmaRegion, type WritePath } from "../server/client-memory.js";
import type { Mover } from "../server/custody.js";
import { type DmaLog, type DmaLogUser, ServedLog } from "../server/dma-logging.js";
import { Movement } from "../server/movement.js";
import { refusal } from "../server/refusal.js";
import { LogAtServer } from "./log-at-server.js";
import { OwedCommands } from "./owed.js";
import type { ServerLink } from "./server-link.js";

/** Of a log that this proxy keeps: it sees the address of every write. */
const OWN_LOG: DmaLoggingLimits = {
  pageSizes: Array.from({ length: 19 }, (_, i) => PAGE_SIZE << i),
  maxRanges: MAX_LOGGED_RANGES,
  addressWidth: 52,
  readableWhen: "always",
};

/** Of a server's log, whose limits the protocol has no message for: what every server takes. */
const SERVERS_LOG: DmaLoggingLimits = {
  pageSizes: [PAGE_SIZE],
  maxRanges: 64,
  addressWidth: 64,
  readableWhen: "always",
};

export interface ProxiedDeviceOptions {
  readonly id: string;
  /** The path of the proxy's socket, for messages. */
  readonly socket: string;
  /** `messages`: the server is given none of the client's memory, and asks here for every read and write. */
  readonly dma: DmaMode;
  /** Another device is to be migrated here. */
  readonly incoming: boolean;
  readonly log: (line: string) => void;
}

/**
 * A device of somebody else's server, whoever is connected: what this proxy knows of it beside the server, and what a control
 * connection may do with it. The server sees one client all the time, whose memory and interrupts come and go.
 *
 * What holds: the server is asked for one change of state at a time, and by nobody else; so the state is known here.
 */
export class ProxiedDevice implements ClientAccess, Disposable {
  readonly id: string;
  readonly dma: DmaMode;
  readonly movement: Movement;
  /** The client's memory, as far as it came with descriptors: for what the server itself can't be asked for. */
  readonly memory = new ClientMemory("auto");
  readonly writePath = new WritePathSwitch(this.memory);
  readonly logging: DmaLog;
  /** The server's log; null: the log is kept here. */
  readonly serversLog: LogAtServer | null;
  readonly messages = { answered: 0, refused: 0, passed: 0 };
  server: ServerLink | null = null;
  readonly #options: ProxiedDeviceOptions;
  readonly #lock = new Lock();
  readonly #owed = new OwedCommands();
  /** Types of interrupts for which the client has set eventfds. */
  readonly #irqs = new Set<number>();
  #state: MigState = "RUNNING";
  /** Nothing has been read of the state since the device began to save it. */
  #isUnread = false;
  /** The configuration space as it was before STOP_COPY. */
  #config: Uint8Array | null = null;

  constructor(options: ProxiedDeviceOptions) {
    this.#options = options;
    this.id = options.id;
    this.dma = options.dma;
    const moved = {
      id: options.id,
      socket: options.socket,
      state: () => this.#state,
      moveTo: (next: MigState) => this.#moveTo(next),
      reset: () => this.#reset(),
    };
    this.movement = new Movement(moved, options);
    this.serversLog = options.dma === "messages" ? null : new LogAtServer(this, this.memory);
    this.logging = this.serversLog ?? new ServedLog(this.memory, OWN_LOG);
  }

  get state(): MigState {
    return this.#state;
  }

  get isStopped(): boolean {
    return !RUNNING_STATES.has(this.#state) && !P2P_STATES.has(this.#state);
  }

  /** See VFIO_MIG_GET_PRECOPY_INFO: what was never read is `initial_bytes`. */
  get isUnread(): boolean {
    return this.#isUnread;
  }

  /** A client reads the device's state. */
  noteDataRead(): void {
    this.#isUnread = false;
  }

  /** Null: nobody logs. */
  get dmaLogging(): DmaLoggingLimits | null {
    if (this.serversLog === null) return OWN_LOG;
    return this.serversLog.isSupported ? SERVERS_LOG : null;
  }

  /** How the device's writes may be made to reach memory: a server that has descriptors writes as it likes. */
  get writePaths(): readonly WritePath[] {
    return this.dma === "messages" ? ["direct", "messages"] : ["direct"];
  }

  /** @throws UapiError ENOTCONN while there is none */
  connected(): ServerLink {
    if (this.server !== null) return this.server;
    throw refusal("ENOTCONN", "proxy", `reach the server of '${this.id}', which is gone`, "start it again");
  }

  /** The server has been found out about. */
  async attach(server: ServerLink): Promise<void> {
    this.#state = await server.state();
    this.server = server;
    const { migration, log, twin } = server.facts;
    const lacks: string[] = [];
    if (migration === null) lacks.push("can't be migrated");
    else if (!migration.stopCopy) lacks.push("can't save its state");
    else if (!migration.preCopy) lacks.push("sends no state before it is stopped");
    if (!log && this.dma === "auto")
      lacks.push("is not tracked: its server has no log (--dma messages tracks it here)");
    if (!twin && this.dma === "messages") lacks.push("has its DMA on the socket of its commands");
    this.#options.log(`'${this.id}' is at ${server.path}${lacks.length === 0 ? "" : `; it ${lacks.join(", and ")}`}`);
    if (this.#state !== "RUNNING") this.#options.log(`'${this.id}' is in ${this.#state}, as its server has it`);
    if (this.movement.waitsForState && migration === null) {
      this.#options.log(`'${this.id}' waits for a state that its server can't load`);
    }
  }

  /** The server is gone, with the device's state. */
  detach(): void {
    this.server = null;
    this.movement.begin(this.#options);
    this.serversLog?.forget();
    this.#owed[Symbol.dispose]();
    this.#config = null;
  }

  /** See {@link Movement.setState}. */
  setState(next: MigState, user: Mover): Promise<void> {
    return this.#lock.run(() => this.movement.setState(next, user));
  }

  /** See {@link Movement.reset}. */
  reset(user: Mover & { readonly kind: "main" | "control" }): Promise<void> {
    return this.#lock.run(() => this.movement.reset(user));
  }

  /** Asks the server where the device is. */
  async refresh(): Promise<MigState> {
    this.#state = await this.connected().state();
    return this.#state;
  }

  /** A connection is over: its log, its choice of a write path and its migration end. Does not throw. */
  async release(user: Mover & DmaLogUser): Promise<void> {
    await this.logging.release(user);
    this.writePath.release(user);
    await this.#lock.run(() => this.movement.release(user));
  }

  /** The client has given the server eventfds of this type. */
  noteIrqs(index: number): void {
    this.#irqs.add(index);
  }

  /** VFIO_USER_DEVICE_SET_IRQS while the device is stopped: what the server refuses then is done when it runs. */
  async setIrqsWhileStopped(payload: Uint8Array, fds: readonly number[]): Promise<null> {
    const command = VFIO_USER_COMMAND.DEVICE_SET_IRQS;
    try {
      await this.connected().commands.call(command, "VFIO_USER_DEVICE_SET_IRQS", payload, fds);
    } catch (error) {
      if (this.server === null || !(error instanceof UapiError) || error.code !== "EINVAL") throw error;
      this.#owed.add(command, payload, fds);
    }
    return null;
  }

  /**
   * A reply to a read of the configuration space in STOP_COPY, which libvfio-user refuses; null: nothing is known. QEMU is asked
   * for the device's PCI state then.
   */
  configReply(request: Uint8Array): Uint8Array | null {
    const { size: head } = vfio_user_region_access;
    if (this.#config === null || this.#state !== "STOP_COPY" || request.byteLength < head) return null;
    const { region, offset, count } = vfio_user_region_access.decode(request);
    const end = offset + BigInt(count);
    if (region !== VFIO_PCI_REGION_INDEX.CONFIG || end > BigInt(this.#config.byteLength)) return null;
    const reply = new Uint8Array(head + count);
    reply.set(request.subarray(0, head));
    reply.set(this.#config.subarray(Number(offset), Number(end)), head);
    return reply;
  }

  /** The client has gone: its memory and interrupts go, the device's state stays. Does not throw. */
  async forgetClient(): Promise<void> {
    const regions = this.memory.regions();
    const irqs = [...this.#irqs];
    this.#irqs.clear();
    // Interrupts first: a device that runs would fault without its memory, and say so.
    for (const index of irqs) {
      const flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
      const payload = vfio_irq_set.encode({ argsz: vfio_irq_set.size, flags, index });
      await this.#takeAway(VFIO_USER_COMMAND.DEVICE_SET_IRQS, payload, `interrupts of type ${index}`);
    }
    for (const region of regions) {
      const [address, size] = [iovaOf(region.page), BigInt(region.pages * PAGE_SIZE)];
      const payload = vfio_user_dma_unmap.encode({ argsz: vfio_user_dma_unmap.size, address, size });
      this.serversLog?.lose(region);
      await this.#takeAway(VFIO_USER_COMMAND.DMA_UNMAP, payload, `its memory at ${hex(address)}`);
    }
    this.memory.clear();
    this.memory.channel = null;
  }

  /** The server has written the client's memory by a message that the client has answered. */
  noteWrite(address: bigint, bytes: number): void {
    if (bytes === 0) return;
    this.memory.noteWrite(address, bytes);
    this.serversLog?.written?.add(address, bytes);
  }

  /** A region is about to be unmapped. */
  noteUnmapping(region: DmaRegion): void {
    this.serversLog?.lose(region);
  }

  [Symbol.dispose](): void {
    this.#owed[Symbol.dispose]();
    this.memory[Symbol.dispose]();
  }

  async #moveTo(next: MigState): Promise<void> {
    const server = this.connected();
    if (next === "STOP_COPY" && this.#config === null) this.#config = await server.readConfig().catch(() => null);
    const wasSaving = SAVING_GROUP.has(this.#state);
    try {
      await server.requestState(next);
      this.#state = next;
      if (!wasSaving) this.#isUnread = SAVING_GROUP.has(next);
    } catch (error) {
      this.#state = await server.state().catch(() => this.#state);
      throw error;
    } finally {
      if (this.#state !== "STOP_COPY") this.#config = null;
      if (!this.isStopped) await this.#pay();
    }
  }

  /** libvfio-user takes no reset of a device that is stopped, and leaves the migration state as it was. */
  async #reset(): Promise<void> {
    const server = this.connected();
    await this.logging.end();
    try {
      await server.reset();
    } catch (error) {
      if (this.server === null || !this.isStopped || this.#state === "RESUMING") throw error;
      await server.requestState("RESUMING");
      await server.reset();
    }
    this.#config = null;
    this.#state = await server.state();
    if (this.#state !== "RUNNING") await this.#moveTo("RUNNING");
    this.movement.custody.clear();
    await this.#pay();
  }

  async #pay(): Promise<void> {
    if (this.#owed.count === 0 || this.server === null) return;
    const failed = (what: string, error: unknown) =>
      this.#options.log(`${what}, put off while '${this.id}' was stopped, is refused: ${explain(error)}`);
    await this.#owed.pay(this.server.commands, failed);
  }

  async #takeAway(command: number, payload: Uint8Array, what: string): Promise<void> {
    const { server } = this;
    if (server === null) return;
    try {
      await server.commands.call(command, what, payload);
    } catch (error) {
      if (this.isStopped) this.#owed.add(command, payload);
      else if (this.server !== null) this.#options.log(`the server does not let go of ${what}: ${explain(error)}`);
    }
  }
}
