import { DatagramQueue } from "./datagrams.js";
import { feedPlan } from "./feed.js";
import { PAYLOAD_BYTES, STAMP_BYTES } from "./stamp.js";
import type { StampedDma } from "./stamped-dma.js";

/** How often an idle NIC looks for datagrams, in milliseconds. */
const POLL_MS = 1;
/** Units between two looks at the clock. */
const UNITS_PER_LOOK = 8;

/**
 * The receive path of a NIC: datagrams from its socket, cut to the size of a buffer, written to guest memory by DMA. A
 * datagram in the middle of its delivery when the device stops is dropped whole; its units that were written stay.
 */
export class ReceivePath implements Disposable {
  readonly #queue = new DatagramQueue();
  readonly #dma: StampedDma;
  readonly #copies: number;
  #datagram: Buffer | undefined;
  #at = 0;
  #copy = 0;
  #port = 0;

  /** @param rate megabytes (10^6) per second that the NIC writes */
  constructor(dma: StampedDma, rate: number) {
    this.#dma = dma;
    this.#copies = feedPlan(rate).copies;
  }

  async open(): Promise<void> {
    this.#port = await this.#queue.open();
  }

  /** See DeviceModel.run. */
  run(budgetMs: number): number {
    this.#queue.accepting = true;
    const dma = this.#dma;
    dma.beginSlice();
    const until = performance.now() + budgetMs;
    for (let units = 1; ; units++) {
      const datagram = this.#next();
      if (datagram === undefined) return POLL_MS;
      const end = Math.min(this.#at + PAYLOAD_BYTES, datagram.length);
      datagram.copy(dma.staging, STAMP_BYTES, this.#at, end);
      if (!dma.write(end - this.#at)) return dma.wait(POLL_MS);
      this.#at = end;
      if (units % UNITS_PER_LOOK === 0 && performance.now() > until) return 0;
    }
  }

  /** The link goes down. */
  stop(): void {
    this.#queue.accepting = false;
    this.#queue.clear();
    this.#datagram = undefined;
  }

  counters(): Record<string, number> {
    return {
      udpPort: this.#port,
      datagrams: this.#queue.received,
      datagramsDropped: this.#queue.dropped,
      copiesPerDatagram: this.#copies,
    };
  }

  [Symbol.dispose](): void {
    this.#queue[Symbol.dispose]();
  }

  /** The datagram that has bytes left to write, in this copy or the next. */
  #next(): Buffer | undefined {
    if (this.#datagram !== undefined && this.#at >= this.#datagram.length) {
      this.#at = 0;
      if (++this.#copy === this.#copies) this.#datagram = undefined;
    }
    if (this.#datagram === undefined) {
      this.#datagram = this.#queue.shift();
      this.#at = 0;
      this.#copy = 0;
    }
    return this.#datagram;
  }
}
