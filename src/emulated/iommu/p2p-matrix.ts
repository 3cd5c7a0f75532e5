import type { Port } from "../../iommufd/system-iommu.js";
import type { InFlight } from "../../memory/in-flight.js";

/**
 * Who may write into whose BARs, in shared memory: directed, since a device is often a target and rarely an initiator.
 * Device threads ask when a translation that ends in a BAR enters their IOTLB.
 */
export class P2pMatrix {
  /** Word initiator * ports + target. Post it, and wrap it again on the other thread. */
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly #ports: number;

  constructor(words: Int32Array<SharedArrayBuffer>) {
    this.words = words;
    this.#ports = Math.sqrt(words.length);
  }

  /** Nothing is allowed at first. */
  static allocate(ports: number): P2pMatrix {
    return new P2pMatrix(new Int32Array(new SharedArrayBuffer(ports * ports * 4)));
  }

  allowed(initiator: Port, target: Port): boolean {
    return Atomics.load(this.words, initiator * this.#ports + target) !== 0;
  }

  /** Changes one answer. Resolves when no DMA goes by the old one. */
  async set(inFlight: InFlight, initiator: Port, target: Port, allowed: boolean): Promise<void> {
    Atomics.store(this.words, initiator * this.#ports + target, allowed ? 1 : 0);
    await inFlight.invalidate([initiator]);
  }
}
