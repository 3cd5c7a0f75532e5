import { z } from "zod";
import { PAGE_SIZE } from "../memory/address.js";
import { BufferRing, type PageSpan, type SlotOrder } from "./buffers.js";
import type { DeviceContext, DmaFault } from "./model.js";
import { badState } from "./records.js";
import { type StampTrail, StampWriter } from "./stamp.js";
import { TokenBucket } from "./token-bucket.js";

/** Every so many units, one goes to a peer's BAR as well. */
const UNITS_PER_P2P_UNIT = 8;

/** Shorter waits cost more in turns of the event loop than they gain in evenness. */
const MIN_WAIT_MS = 0.1;

/** Where a device may write, in the workload. */
export interface DmaTargets {
  /** Its buffers in guest memory; none: it is told later ({@link StampedDma.setBuffers}). */
  readonly buffers: readonly PageSpan[];
  /** Its corner of each peer's BAR, by the peer's id. */
  readonly p2p: readonly { readonly target: string; readonly pages: PageSpan }[];
}

const count = z.int().min(0);
/** How far a writer came, as it is saved. */
export const progressSchema = z.strictObject({
  lastSequence: count,
  epochs: z
    .array(z.strictObject({ incarnation: z.int().min(0).max(0xffffffff), firstSequence: count }))
    .min(1)
    .max(16),
});
const stateSchema = z.strictObject({
  memory: progressSchema,
  p2p: z.record(z.string(), progressSchema),
  units: count,
  bytes: count,
});

/** Bytes that the progress of one ring takes at most, as text: what is saved must not change its size as it grows. */
const PROGRESS_BYTES = 2048;

/**
 * The DMA of a device's workload: stamped units into its ring of buffers, paced to its rate, and some into its peers'
 * BARs. The numbering belongs to the workload: it survives a reset of the device.
 */
export class StampedDma {
  readonly #id: string;
  readonly #incarnation: number;
  readonly #blockSlots: number | undefined;
  #memory: StampWriter;
  readonly #peers: readonly { readonly target: string; readonly writer: StampWriter }[];
  readonly #bucket: TokenBucket;
  #context: DeviceContext | undefined;
  #units = 0;
  #bytes = 0;
  #faults = 0;
  #p2pUnits = 0;
  #p2pRefused = 0;
  #lastFault: DmaFault | null = null;
  #blocked = false;

  /**
   * @param rate megabytes (10^6) per second; @param blockSlots see {@link BufferRing}
   * @param order of a device that has one of its own; absent: round a ring of its buffers
   */
  constructor(
    options: {
      id: string;
      incarnation: number;
      rate: number;
      blockSlots?: number | undefined;
      order?: SlotOrder | undefined;
    } & DmaTargets,
  ) {
    const { id, incarnation, rate, buffers, p2p, blockSlots, order } = options;
    this.#id = id;
    this.#incarnation = incarnation;
    this.#blockSlots = blockSlots;
    this.#memory = new StampWriter(id, incarnation, order ?? new BufferRing(buffers, blockSlots));
    this.#peers = p2p.map(({ target, pages }) => ({
      target,
      writer: new StampWriter(id, incarnation, new BufferRing([pages])),
    }));
    this.#bucket = new TokenBucket(rate * 1e6, PAGE_SIZE);
  }

  bind(context: DeviceContext): void {
    this.#context = context;
  }

  /** Writes to other buffers from now on, with numbers that begin anew: the new buffers hold no unit. None: it is idle. */
  setBuffers(buffers: readonly PageSpan[]): void {
    this.#memory = new StampWriter(this.#id, this.#incarnation, new BufferRing(buffers, this.#blockSlots));
  }

  /** The page in which the next unit's payload is laid, from STAMP_BYTES on. */
  get staging(): Uint8Array {
    return this.#memory.staging;
  }

  get ring(): SlotOrder {
    return this.#memory.ring;
  }

  get nextSlot(): number {
    return this.#memory.nextSlot;
  }

  get lastSequence(): number {
    return this.#memory.lastSequence;
  }

  /** A slice of work begins: takes the time once, for the pacing and for all stamps of the slice. */
  beginSlice(): void {
    const now = this.#bound.now();
    this.#bucket.refill(now);
    this.#memory.setTime(now);
    for (const { writer } of this.#peers) writer.setTime(now);
  }

  /** The rate allows another page now. */
  get ready(): boolean {
    return this.#bucket.wait(PAGE_SIZE, 1) === 0;
  }

  /**
   * Milliseconds until another page may be written; at most `most`. Of a write that was blocked, `most`: a device that
   * is detached should not fill the IOMMU's event log.
   */
  wait(most: number): number {
    return this.#blocked ? most : Math.max(this.#bucket.wait(PAGE_SIZE, most), MIN_WAIT_MS);
  }

  /** The device stops: time that passes from here on is not caught up. */
  pause(): void {
    this.#bucket.pause();
  }

  /**
   * Writes the staged payload as the next unit. False where the rate doesn't allow it yet, or where the write was
   * blocked: then the same number is tried again. It counts among the units of the buffers that it was written to, even if the
   * driver has given others meanwhile.
   */
  write(payloadBytes: number): boolean {
    this.#blocked = this.ring.slots === 0;
    if (this.#blocked || !this.#bucket.take(PAGE_SIZE)) return false;
    const memory = this.#memory;
    const bytes = memory.stamp(payloadBytes);
    const { dma, p2pQuiesced } = this.#bound;
    const fault = dma.write(memory.nextPage, 0, memory.staging, 0, bytes);
    if (fault !== null) {
      this.#faults++;
      this.#lastFault = fault;
      this.#blocked = true;
      return false;
    }
    memory.commit();
    this.#units++;
    this.#bytes += bytes;
    if (!p2pQuiesced && this.#peers.length > 0 && this.#units % UNITS_PER_P2P_UNIT === 0) this.#writePeer(payloadBytes);
    return true;
  }

  /** Why the last blocked write was blocked. */
  get lastFault(): DmaFault | null {
    return this.#lastFault;
  }

  trail(): StampTrail {
    return this.#memory.trail();
  }

  /** The saved state's size is the same at all times. */
  save(): Uint8Array {
    const progress = ({ lastSequence, epochs }: StampWriter) => ({ lastSequence, epochs });
    const text = JSON.stringify({
      memory: progress(this.#memory),
      p2p: Object.fromEntries(this.#peers.map(({ target, writer }) => [target, progress(writer)])),
      units: this.#units,
      bytes: this.#bytes,
    });
    const data = new Uint8Array(PROGRESS_BYTES * (1 + this.#peers.length)).fill(0x20);
    new TextEncoder().encodeInto(text, data);
    return data;
  }

  /** @throws DirtmapError `BAD_DEVICE_STATE` */
  load(data: Uint8Array): void {
    const state = stateSchema.safeParse(parseJson(new TextDecoder().decode(data)));
    if (!state.success) throw badState("the DMA engine's part is malformed");
    const { memory, p2p, units, bytes } = state.data;
    for (const { target } of this.#peers) {
      if (p2p[target] === undefined) throw badState(`it has no P2P ring for '${target}'`);
    }
    this.#memory.resumeAfter(memory.lastSequence, memory.epochs);
    for (const { target, writer } of this.#peers) writer.resumeAfter(p2p[target].lastSequence, p2p[target].epochs);
    this.#units = units;
    this.#bytes = bytes;
  }

  counters(): Record<string, number> {
    return {
      units: this.#units,
      bytes: this.#bytes,
      lastSequence: this.#memory.lastSequence,
      slots: this.#memory.ring.slots,
      faults: this.#faults,
      p2pUnits: this.#p2pUnits,
      p2pRefused: this.#p2pRefused,
    };
  }

  get #bound(): DeviceContext {
    if (this.#context === undefined) throw new Error("a device's DMA before its start");
    return this.#context;
  }

  #writePeer(payloadBytes: number): void {
    const { writer } = this.#peers[(this.#units / UNITS_PER_P2P_UNIT) % this.#peers.length];
    writer.staging.set(this.#memory.staging);
    const bytes = writer.stamp(payloadBytes);
    if (this.#bound.dma.write(writer.nextPage, 0, writer.staging, 0, bytes) === null) {
      writer.commit();
      this.#p2pUnits++;
    } else this.#p2pRefused++;
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
