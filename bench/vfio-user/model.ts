import type { DeviceContext, DeviceModel, ModelInfo } from "../../src/devices/model.js";
import type { ServedDevice } from "../../src/vfio-user/server/served-device.js";

/** Registers of BAR 0 by which a client has pages marked as written: see client.c. */
const FIRST = 0x10;
const STEP = 0x18;
const COUNT = 0x20;
const BAR_BYTES = 4096;

const INFO: ModelInfo = {
  model: "bench",
  stateVersion: 1,
  mdev: false,
  regions: [{ index: 0, name: "bar0", bytes: BAR_BYTES, readable: true, writeable: true }],
  irqs: [],
  migration: null,
  tracking: { tracksInternally: true, tracksThroughContainer: false },
  dmaLogging: { pageSizes: [4096], maxRanges: 16, addressWidth: 64, readableWhen: "always" },
  separatesP2p: false,
};

/**
 * The device that client.c measures. It marks pages without writing them, as libvfio-user-server.c does: 64 GiB of which
 * every page is written would have to be there.
 */
export class BenchModel implements DeviceModel {
  readonly info = INFO;
  readonly busMaster = true;
  readonly #bar = new Uint8Array(BAR_BYTES);
  readonly #view = new DataView(this.#bar.buffer);
  #device: ServedDevice | undefined;

  async start(context: DeviceContext): Promise<void> {
    // What serves a model is a ServedDevice: here alone a model looks behind its context.
    this.#device = context as ServedDevice;
  }

  run(): number {
    return 1000;
  }

  quiesce(): void {}

  reset(): void {
    this.#bar.fill(0);
  }

  save(): Uint8Array {
    return new Uint8Array(0);
  }

  load(): void {}

  regionRead(_region: number, offset: number, target: Uint8Array): void {
    for (let i = 0; i < target.byteLength; i++) target[i] = this.#bar[offset + i];
  }

  regionWrite(_region: number, offset: number, source: Uint8Array): void {
    for (let i = 0; i < source.byteLength; i++) this.#bar[offset + i] = source[i];
    if (offset === COUNT) this.#mark();
  }

  counters(): Record<string, number> {
    return {};
  }

  [Symbol.dispose](): void {}

  #mark(): void {
    const at = (register: number) => Number(this.#view.getBigUint64(register, true));
    const [first, step, count] = [at(FIRST), at(STEP), at(COUNT)];
    const log = this.#device?.memory.log;
    for (let i = 0; i < count; i++) log?.mark(first + i * step);
  }
}
