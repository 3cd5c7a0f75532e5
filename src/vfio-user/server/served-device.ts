import { clockMonotonic } from "../../devices/clock.js";
import { MigrationDriver, type RunMode } from "../../devices/driver/migration-driver.js";
import type { DeviceContext, DeviceModel, DmaFault } from "../../devices/model.js";
import { MiB } from "../../memory/address.js";
import { ClientMemory } from "./client-memory.js";

/** What a device's state has at most: its memory and registers. */
const MAX_IMAGE_BYTES = 1024 * MiB;

/**
 * The device that a server serves: a model and the driver over it, whoever is connected. It outlives its clients: the
 * specification wants the device's state kept when one goes, and its memory and interrupts let go.
 */
export class ServedDevice implements DeviceContext, Disposable {
  readonly model: DeviceModel;
  readonly driver: MigrationDriver;
  readonly dma = new ClientMemory();
  #mode: RunMode = "running";
  #failure: string | undefined;

  private constructor(id: string, model: DeviceModel) {
    this.model = model;
    this.driver = new MigrationDriver({
      id,
      info: model.info,
      device: {
        setMode: async (mode) => this.#setMode(mode),
        save: async () => model.save(),
        load: async (state) => model.load(state),
        failure: undefined,
      },
      maxImage: MAX_IMAGE_BYTES,
    });
  }

  static async start(id: string, model: DeviceModel): Promise<ServedDevice> {
    const device = new ServedDevice(id, model);
    await model.start(device);
    return device;
  }

  /**
   * Lets the model work, if its state allows it. Returns the milliseconds until it wants to again, undefined where
   * nothing but a message can change that.
   */
  run(budgetMs: number): number | undefined {
    if (this.#failure !== undefined || this.#mode === "stopped") return undefined;
    if (this.#mode === "p2p-quiesced" && !this.model.info.separatesP2p) return undefined;
    return this.model.run(budgetMs);
  }

  /** VFIO_USER_DEVICE_RESET */
  reset(): Promise<void> {
    return this.driver.reset(async () => {
      this.model.reset();
      this.#failure = undefined;
    });
  }

  get p2pQuiesced(): boolean {
    return this.#mode === "p2p-quiesced";
  }

  raiseIrq(_index: number, _vector: number): void {}

  now(): bigint {
    return clockMonotonic();
  }

  async pin(): Promise<DmaFault | null> {
    return null;
  }

  async unpin(): Promise<void> {}

  fail(reason: string): void {
    this.#failure ??= reason;
    this.model.quiesce();
  }

  [Symbol.dispose](): void {
    this.model[Symbol.dispose]();
  }

  #setMode(mode: RunMode): void {
    this.#mode = mode;
    if (mode !== "running") this.model.quiesce();
  }
}
