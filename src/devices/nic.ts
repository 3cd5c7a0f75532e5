import type { DeviceDescription } from "../host/description.js";
import type { ModelInfo } from "./model.js";
import { type ModelWiring, PciModel, pciRegions } from "./pci-model.js";
import { ReceivePath } from "./receive-path.js";

type NicDescription = Extract<DeviceDescription, { model: "nic" }>;

/** @param memoryBytes behind BAR 2; 0: none */
export function nicInfo(memoryBytes: number): ModelInfo {
  return {
    model: "nic",
    stateVersion: 1,
    mdev: false,
    regions: pciRegions(memoryBytes),
    irqs: [{ index: 2, name: "msix", count: 4 }],
    migration: { stopCopy: true, p2p: true, preCopy: false },
    tracking: { tracksInternally: false, tracksThroughContainer: false },
    dmaLogging: null,
    separatesP2p: true,
  };
}

/** A plain NIC: it can migrate, but has no tracker of its own. It knows which of its DMA is P2P. */
export class Nic extends PciModel {
  readonly #receive: ReceivePath;

  constructor({ id, load }: NicDescription, wiring: ModelWiring) {
    super(nicInfo(wiring.memory?.byteLength ?? 0), { vendor: 0x1af4, device: 0x1041, classCode: 0x020000 }, wiring, {
      id,
      rate: load.rate,
    });
    this.#receive = new ReceivePath(this.dma, load.rate);
  }

  protected override open(): Promise<void> {
    return this.#receive.open();
  }

  protected override work(budgetMs: number): number {
    return this.#receive.run(budgetMs);
  }

  override quiesce(): void {
    super.quiesce();
    this.#receive.stop();
  }

  override counters(): Record<string, number> {
    return { ...super.counters(), ...this.#receive.counters() };
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#receive[Symbol.dispose]();
  }
}
