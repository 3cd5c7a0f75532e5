import type { IrqInfo } from "../../host/host.js";
import { VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import type { DeviceContext } from "../model.js";
import type { PciConfig } from "../pci-config.js";
import type { Queues } from "./queues.js";

/**
 * The controller's interrupts (NVM Express 1.4, 7.5): MSI-X, MSI or INTx, whichever its function has.
 *
 * A message tells of all that a completion queue was given since the last. INTx is a level: asserted while any completion queue
 * has entries that the guest has not taken. It is let go while the device is stopped, since it follows from the queues, here and
 * where they are loaded.
 */
export class Interrupts {
  /** Messages sent, or times that INTx was asserted. */
  raised = 0;
  /** INTMS: vectors that are masked. Of no effect with MSI-X, where it is not to be used. */
  mask = 0;
  readonly #irq: IrqInfo;
  readonly #config: PciConfig;
  #context: DeviceContext | undefined;
  #stopped = false;

  constructor(irq: IrqInfo, config: PciConfig) {
    this.#irq = irq;
    this.#config = config;
  }

  start(context: DeviceContext): void {
    this.#context = context;
  }

  /** Vectors that a completion queue can have. */
  get vectors(): number {
    return this.#irq.count;
  }

  /** Entries were posted, or taken, or what the guest allows has changed. */
  update(queues: Queues, isReady: boolean): void {
    if (this.#stopped) return;
    if (this.#isLine) {
      this.#setLine(isReady && this.#isDue(queues));
      return;
    }
    for (const queue of queues.completion) {
      if (queue === undefined || !queue.unannounced || this.#isMasked(queue.vector)) continue;
      queue.unannounced = false;
      if (queue.interrupts) this.#raise(queue.vector);
    }
  }

  /** As {@link update}, without raising any. */
  lower(queues: Queues, isReady: boolean): void {
    if (this.#isLine && !(isReady && this.#isDue(queues))) this.#setLine(false);
  }

  /** The device stops, until {@link resume}. */
  quiesce(): void {
    if (this.#isLine) this.#setLine(false);
    this.#stopped = true;
  }

  resume(): void {
    this.#stopped = false;
  }

  get #isLine(): boolean {
    return this.#irq.index === VFIO_PCI_IRQ_INDEX.INTX;
  }

  #isDue({ completion }: Queues): boolean {
    if (this.#isMasked(0) || !this.#config.intxEnabled) return false;
    return completion.some((queue) => queue?.interrupts === true && queue.head !== queue.tail);
  }

  #isMasked(vector: number): boolean {
    return this.#irq.index !== VFIO_PCI_IRQ_INDEX.MSIX && (this.mask & (1 << vector)) !== 0;
  }

  #setLine(asserted: boolean): void {
    if (asserted === this.#config.intxAsserted) return;
    this.#config.intxAsserted = asserted;
    if (asserted) this.#raise(0);
    else this.#context?.lowerIntx?.();
  }

  #raise(vector: number): void {
    this.raised++;
    this.#context?.raiseIrq(this.#irq.index, vector);
  }
}
