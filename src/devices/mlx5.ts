import type { DeviceDescription } from "../host/description.js";
import type { ModelInfo } from "./model.js";
import { FIRST_MODEL_TAG, type ModelWiring, PciModel, pciRegions, REGION, registerView } from "./pci-model.js";
import { ReceivePath } from "./receive-path.js";
import { badState, type StateRecord } from "./records.js";

type Mlx5Description = Extract<DeviceDescription, { model: "mlx5" }>;

/** BAR 0: how many receive queues there are. Writing it changes the size of the device's state. */
export const MLX5_QUEUES_REGISTER = 0x10;
export const MLX5_MAX_QUEUES = 64;
const POWER_ON_QUEUES = 4;

const QUEUES_TAG = FIRST_MODEL_TAG;
/** Bytes of a queue's context in device memory. */
const CONTEXT_BYTES = 4096;
/** Words of a context: the queue's number, and its producer counter (low, high). */
const CONTEXT = { number: 0, produced: 1 } as const;

/** @param memoryBytes behind BAR 2; 0: none */
export function mlx5Info({ dmaLogging }: Mlx5Description, memoryBytes: number): ModelInfo {
  return {
    model: "mlx5",
    stateVersion: 1,
    mdev: false,
    regions: pciRegions(memoryBytes),
    irqs: [{ index: 2, name: "msix", count: MLX5_MAX_QUEUES }],
    migration: { stopCopy: true, p2p: true, preCopy: true },
    tracking: { tracksInternally: true, tracksThroughContainer: false },
    dmaLogging: {
      pageSizes: [...new Set(dmaLogging.pageSizes)].sort((a, b) => a - b),
      maxRanges: dmaLogging.maxRanges,
      addressWidth: dmaLogging.addressWidth,
      readableWhen: dmaLogging.readableWhen,
    },
    // RUNNING_P2P suspends the function as an initiator: no DMA at all, as the hardware does.
    separatesP2p: false,
  };
}

/**
 * A virtual function of a ConnectX NIC, with a page tracker of its own. Each receive queue has a context in device
 * memory, which is what its state consists of.
 */
export class Mlx5 extends PciModel {
  readonly #receive: ReceivePath;
  #contexts = queueContexts(POWER_ON_QUEUES);

  constructor(description: Mlx5Description, wiring: ModelWiring) {
    const { id, load } = description;
    super(
      mlx5Info(description, wiring.memory?.byteLength ?? 0),
      { vendor: 0x15b3, device: 0x101e, classCode: 0x020000 },
      wiring,
      { id, rate: load.rate },
    );
    this.#receive = new ReceivePath(this.dma, load.rate);
  }

  protected override open(): Promise<void> {
    return this.#receive.open();
  }

  protected override work(budgetMs: number): number {
    return this.#receive.run(budgetMs);
  }

  protected override wrote(units: number): void {
    super.wrote(units);
    this.#account(units);
  }

  override quiesce(): void {
    super.quiesce();
    this.#receive.stop();
  }

  override reset(): void {
    super.reset();
    this.#contexts = queueContexts(POWER_ON_QUEUES);
  }

  override regionWrite(region: number, offset: number, source: Uint8Array): void {
    super.regionWrite(region, offset, source);
    if (region !== REGION.BAR0) return;
    const queues = registerView(this.registers).getUint32(MLX5_QUEUES_REGISTER, true);
    if (queues !== this.#queues && queues >= 1 && queues <= MLX5_MAX_QUEUES) this.#contexts = queueContexts(queues);
  }

  override counters(): Record<string, number> {
    return { ...super.counters(), ...this.#receive.counters(), queues: this.#queues };
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#receive[Symbol.dispose]();
  }

  protected override refreshRegisters(): void {
    super.refreshRegisters();
    registerView(this.registers).setUint32(MLX5_QUEUES_REGISTER, this.#queues, true);
  }

  protected override ownRecords(): StateRecord[] {
    return [{ tag: QUEUES_TAG, optional: false, data: this.#contexts }];
  }

  protected override loadOwn(take: (tag: number) => Uint8Array): void {
    const contexts = take(QUEUES_TAG);
    const queues = contexts.byteLength / CONTEXT_BYTES;
    if (!Number.isInteger(queues) || queues < 1 || queues > MLX5_MAX_QUEUES) {
      throw badState(`queue contexts of ${contexts.byteLength} bytes`);
    }
    this.#contexts = contexts.slice();
  }

  get #queues(): number {
    return this.#contexts.byteLength / CONTEXT_BYTES;
  }

  /** Counts units to the queues, in turn. */
  #account(units: number): void {
    const view = new DataView(this.#contexts.buffer, this.#contexts.byteOffset);
    const queues = this.#queues;
    const each = Math.floor(units / queues);
    for (let queue = 0; queue < queues; queue++) {
      const more = each + (queue < units % queues ? 1 : 0);
      const at = queue * CONTEXT_BYTES + CONTEXT.produced * 4;
      if (more > 0) view.setBigUint64(at, view.getBigUint64(at, true) + BigInt(more), true);
    }
  }
}

function queueContexts(queues: number): Uint8Array {
  const contexts = new Uint8Array(queues * CONTEXT_BYTES);
  const view = new DataView(contexts.buffer);
  for (let queue = 0; queue < queues; queue++) view.setUint32(queue * CONTEXT_BYTES + CONTEXT.number * 4, queue, true);
  return contexts;
}
