import { PAGE_SHIFT, type PageNumber } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import { clockMonotonic } from "./clock.js";
import type { DeviceContext, DeviceModel, DmaFault, DmaPort } from "./model.js";

/*
 * For tests of the models alone: a host without an IOMMU, in this thread, whose DMA goes straight to guest memory.
 */

export class FlatPort implements DmaPort {
  /** The next writes are answered with this fault. */
  fault: DmaFault | null = null;
  /** Called once, in the middle of the next write: what a driver does meanwhile. */
  meanwhile: (() => void) | null = null;
  /** Pages that were written, in order. */
  readonly written: PageNumber[] = [];
  readonly #memory: GuestMemory;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  write(page: PageNumber, offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    if (this.fault !== null) return this.fault;
    const target = this.#find(page);
    if (target === null) return "not-mapped";
    target.u8.set(source.subarray(from, from + bytes), target.at + offset);
    const { meanwhile } = this;
    this.meanwhile = null;
    meanwhile?.();
    this.written.push(page);
    return null;
  }

  read(page: PageNumber, offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    const source = this.#find(page);
    if (source === null) return "not-mapped";
    target.set(source.u8.subarray(source.at + offset, source.at + offset + bytes), to);
    return null;
  }

  #find(page: PageNumber): { u8: Uint8Array; at: number } | null {
    const region = this.#memory.regions.find(({ firstPage, pages }) => page >= firstPage && page < firstPage + pages);
    if (region === undefined) return null;
    return {
      u8: this.#memory.arenas[region.arena].u8,
      at: (region.arenaPage + page - region.firstPage) * 2 ** PAGE_SHIFT,
    };
  }
}

export class FlatContext implements DeviceContext {
  p2pQuiesced = false;
  readonly dma: FlatPort;
  readonly failures: string[] = [];
  readonly pinned = new Set<PageNumber>();
  mostPinned = 0;
  interrupts = 0;

  constructor(memory: GuestMemory) {
    this.dma = new FlatPort(memory);
  }

  raiseIrq(): void {
    this.interrupts++;
  }

  now(): bigint {
    return clockMonotonic();
  }

  async pin(page: PageNumber, pages: number): Promise<DmaFault | null> {
    for (let i = 0; i < pages; i++) this.pinned.add(page + i);
    this.mostPinned = Math.max(this.mostPinned, this.pinned.size);
    return null;
  }

  async unpin(page: PageNumber, pages: number): Promise<void> {
    for (let i = 0; i < pages; i++) this.pinned.delete(page + i);
  }

  fail(reason: string): void {
    this.failures.push(reason);
  }
}

/** Runs a model until `done`, or fails after `limitMs`. */
export async function runUntil(model: DeviceModel, done: () => boolean, limitMs = 15_000): Promise<void> {
  const until = performance.now() + limitMs;
  while (!done()) {
    if (performance.now() > until) throw new Error(`not done after ${limitMs} ms: ${JSON.stringify(model.counters())}`);
    const wait = model.run(1);
    await new Promise((resolve) => (wait > 0 ? setTimeout(resolve, wait) : setImmediate(resolve)));
  }
}
