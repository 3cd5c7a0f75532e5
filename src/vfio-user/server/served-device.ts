import { clockMonotonic } from "../../devices/clock.js";
import { Containment } from "../../devices/containment.js";
import { MigrationDriver, type RunMode } from "../../devices/driver/migration-driver.js";
import type { DeviceContext, DeviceModel, DmaFault } from "../../devices/model.js";
import { MiB } from "../../memory/address.js";
import { type MigState, VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import { ClientMemory, type DmaMode } from "./client-memory.js";
import { ServedLog } from "./dma-logging.js";
import { Irqs } from "./irqs.js";

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
  /** Commands that were answered, and those that were refused. */
  readonly messages = { answered: 0, refused: 0 };
  #mode: RunMode = "running";

  private constructor({ id, model, dma, onFailure }: ServedDeviceOptions) {
    this.id = id;
    this.model = model;
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

  /**
   * Lets the model work, if its state and its guest's driver allow it. Returns the milliseconds until it wants to again,
   * undefined where nothing but a message can change that.
   */
  run(budgetMs: number): number | undefined {
    if (this.failure !== undefined || this.#mode === "stopped" || !this.model.busMaster) return undefined;
    if (this.#mode === "p2p-quiesced" && !this.model.info.separatesP2p) return undefined;
    const wait = this.contained.run(budgetMs);
    return this.failure === undefined ? wait : undefined;
  }

  /** VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET. */
  async setState(next: MigState): Promise<void> {
    await this.driver.setState(next);
  }

  /** VFIO_USER_DEVICE_RESET: also ends DMA logging and the migration's session. */
  reset(): Promise<void> {
    return this.driver.reset(async () => {
      await this.logging.end();
      this.contained.reset();
    });
  }

  get p2pQuiesced(): boolean {
    return this.#mode === "p2p-quiesced";
  }

  raiseIrq(index: number, vector: number): void {
    this.irqs.raise(index, vector);
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
  forgetClient(): void {
    this.memory.clear();
    this.irqs.clear();
  }

  [Symbol.dispose](): void {
    this.model[Symbol.dispose]();
    this.irqs.clear();
    this.memory[Symbol.dispose]();
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
  /** The model can't go on. */
  readonly onFailure: (reason: string) => void;
}
