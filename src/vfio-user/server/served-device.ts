import { clockMonotonic } from "../../devices/clock.js";
import { Containment } from "../../devices/containment.js";
import type { DeviceContext, DeviceModel, DmaFault } from "../../devices/model.js";
import { MigrationDriver, type RunMode } from "../../devices/variant-driver/migration-driver.js";
import { MiB } from "../../memory/address.js";
import { type MigState, VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import { WritePathSwitch } from "./client-access.js";
import { ClientMemory, type DmaMode } from "./client-memory.js";
import { ServedLog } from "./dma-logging.js";
import { Irqs } from "./irqs.js";
import { Movement } from "./movement.js";

/** What a device's state has at most: its memory and registers. */
const MAX_IMAGE_BYTES = 1024 * MiB;

/**
 * The device that a server serves: a model and the driver over it, whoever is connected. It outlives its clients: the
 * specification wants the device's state kept when one goes, and its memory and interrupts let go.
 */
export class ServedDevice implements DeviceContext, Disposable {
  readonly id: string;
  readonly model: DeviceModel;
  /** The model's registers, and its work. */
  readonly contained: Containment;
  readonly driver: MigrationDriver;
  readonly memory: ClientMemory;
  readonly irqs: Irqs;
  readonly logging: ServedLog;
  readonly writePath: WritePathSwitch;
  readonly movement: Movement;
  /** Commands that were answered, and those that were refused. */
  readonly messages = { answered: 0, refused: 0 };
  #mode: RunMode = "running";
  /** Interrupts that tell of writes of which it is not known whether the client has done them. */
  readonly #owed = new Map<string, { readonly index: number; readonly vector: number }>();
  #toldVmm = false;
  readonly #log: (line: string) => void;

  private constructor({
    id,
    model,
    dma,
    onFailure,
    log = () => {},
    socket = "SOCKET",
    incoming = false,
  }: ServedDeviceOptions) {
    this.id = id;
    this.model = model;
    this.#log = log;
    this.contained = new Containment(model, {
      failed: (reason, guestSees) => {
        onFailure(reason);
        // A VMM may end its guest for it, which could have helped itself.
        if (!guestSees) this.irqs.raise(VFIO_PCI_IRQ_INDEX.ERR, 0);
      },
      revived: () => {},
    });
    this.memory = new ClientMemory(dma);
    this.irqs = new Irqs(model.info.irqs);
    this.logging = new ServedLog(this.memory, model.info.dmaLogging);
    this.writePath = new WritePathSwitch(this.memory);
    const failure = () => this.failure;
    this.driver = new MigrationDriver({
      id,
      info: model.info,
      device: {
        setMode: async (mode) => this.#setMode(mode),
        save: async () => model.save(),
        load: async (state) => model.load(state),
        get failure() {
          return failure();
        },
      },
      maxImage: MAX_IMAGE_BYTES,
    });
    const moved = {
      id,
      socket,
      state: () => (model.info.migration === null ? "RUNNING" : this.driver.state),
      moveTo: (next: MigState) => this.driver.setState(next),
      reset: () => this.#reset(),
    };
    this.movement = new Movement(moved, { incoming, log });
  }

  /** Starts the model. @throws what its `start` throws */
  static async start(options: ServedDeviceOptions): Promise<ServedDevice> {
    const device = new ServedDevice(options);
    try {
      await options.model.start(device);
      return device;
    } catch (error) {
      device[Symbol.dispose]();
      throw error;
    }
  }

  get dma(): ClientMemory {
    return this.memory;
  }

  get failure(): string | undefined {
    return this.contained.failure;
  }

  /** It does no DMA at all: its migration state says so. */
  get isStopped(): boolean {
    return this.#mode === "stopped";
  }

  /**
   * Lets the model work, if its state and its guest's driver allow it. Returns the milliseconds until it wants to again,
   * undefined where nothing but a message can change that.
   */
  run(budgetMs: number): number | undefined {
    if (this.failure !== undefined || this.#mode === "stopped" || !this.model.busMaster) return undefined;
    if (this.movement.waitsForState) return undefined;
    if (this.#mode === "p2p-quiesced" && !this.model.info.separatesP2p) return undefined;
    this.#raiseOwed();
    this.memory.posts = this.model.postsWrites === true;
    const wait = this.contained.run(budgetMs);
    this.memory.posts = false;
    this.memory.settle();
    return this.failure === undefined ? wait : undefined;
  }

  /**
   * The device's one client is no Dirtmap: a VMM. What becomes of its guest can't be seen from here, so that its operator is told
   * beforehand, once.
   */
  noteVmm(name: string): void {
    if (this.#toldVmm || this.movement.waitsForState || this.model.info.migration === null) return;
    this.#toldVmm = true;
    this.#log(
      `${name} uses '${this.id}'; if it is QEMU, its own migration says 'completed' and loses the device (tried with 11.1): ` +
        "move its guest by `dirtmap migrate --qmp`",
    );
  }

  get p2pQuiesced(): boolean {
    return this.#mode === "p2p-quiesced";
  }

  /** What it tells of is in memory by then. */
  raiseIrq(index: number, vector: number): void {
    this.memory.settle();
    if (this.memory.channel?.owes === true) this.#owed.set(`${index} ${vector}`, { index, vector });
    else this.irqs.raise(index, vector);
  }

  /** A client that was given up has answered. */
  #raiseOwed(): void {
    if (this.#owed.size === 0 || this.memory.channel?.owes === true) return;
    for (const { index, vector } of this.#owed.values()) this.irqs.raise(index, vector);
    this.#owed.clear();
  }

  lowerIntx(): void {
    this.#owed.delete(`${VFIO_PCI_IRQ_INDEX.INTX} 0`);
    this.irqs.lowerIntx();
  }

  now(): bigint {
    return clockMonotonic();
  }

  /** The client's memory needs no pinning: it is the client's, mapped or not. */
  async pin(): Promise<DmaFault | null> {
    return null;
  }

  async unpin(): Promise<void> {}

  fail(reason: string): void {
    this.contained.fail(reason);
  }

  /** The client has gone: its memory and interrupts go, the device's state stays. */
  forgetClient(name: string): void {
    this.memory.clear();
    this.memory.channel = null;
    this.#owed.clear();
    this.irqs.clear();
    this.movement.noteMeanwhile(name, "gone");
  }

  [Symbol.dispose](): void {
    this.model[Symbol.dispose]();
    this.irqs.clear();
    this.memory[Symbol.dispose]();
  }

  #reset(): Promise<void> {
    return this.driver.reset(async () => {
      await this.logging.end();
      this.contained.reset();
      this.movement.custody.clear();
    });
  }

  #setMode(mode: RunMode): void {
    this.#mode = mode;
    if (mode !== "running") this.model.quiesce();
  }
}

export interface ServedDeviceOptions {
  readonly id: string;
  /** Taken over. */
  readonly model: DeviceModel;
  readonly dma: DmaMode;
  /** Another device is to be migrated here: see {@link Movement.waitsForState}. Default: false. */
  readonly incoming?: boolean;
  /** The path of its socket, for messages. */
  readonly socket?: string;
  /** Takes lines about what became of the device, as opposed to what clients do wrong. Default: nobody does. */
  readonly log?: (line: string) => void;
  /** The model can't go on. */
  readonly onFailure: (reason: string) => void;
}
