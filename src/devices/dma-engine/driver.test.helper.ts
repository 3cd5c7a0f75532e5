import { type DrivenDevice, TestGuest } from "../guest.test.helper.js";
import { DmaEngine } from "./dma-engine.js";
import { CONTROL, completion, DOORBELL, descriptor, FLAG, OPCODE, REGISTER, STATUS } from "./spec.js";

/*
 * For tests: what a guest's driver of the DMA engine does.
 */

const BAR2 = 2;

/** Of an engine's BAR 2, in tests. */
export const LOCAL_BYTES = 64 * 1024;

/** Slices of work after which a chain that is not complete hangs. */
const MAX_SLICES = 1000;

/** A descriptor: what is left out is 0. Addresses are of bytes; the opcode is a copy's. */
export interface DescriptorFields {
  readonly opcode?: number;
  readonly flags?: number;
  readonly length?: number;
  readonly source?: number | bigint;
  readonly destination?: number | bigint;
  readonly tag?: number;
  readonly reserved?: number;
  readonly reserved2?: number;
}

export type Completion = ReturnType<typeof completion.decode>;

/** An engine whose local memory no one else maps. */
export function createEngine(): DmaEngine {
  return new DmaEngine({ memory: new Uint8Array(LOCAL_BYTES) });
}

/** The guest: its memory and rings, which stay as they are when the device under it is replaced by another. */
export class EngineGuest<Device extends DrivenDevice = DmaEngine> extends TestGuest<Device> {
  ring = { base: 0, entries: 0, tail: 0 };
  completions = { base: 0, entries: 0, head: 0, pass: 1 };
  #nextTag = 1;

  /** A started engine that is enabled. */
  static async start(
    rings: { entries?: number; completions?: number } = {},
    device = createEngine(),
  ): Promise<EngineGuest> {
    const guest = new EngineGuest(device);
    await device.start(guest.context);
    guest.enable(rings);
    return guest;
  }

  /** Makes the rings, and switches the engine on. */
  enable({ entries = 64, completions = 64 }: { entries?: number; completions?: number } = {}): void {
    this.enableBusMaster();
    this.ring = { base: this.allocate(entries * descriptor.size), entries, tail: 0 };
    this.completions = { base: this.allocate(completions * completion.size), entries: completions, head: 0, pass: 1 };
    this.setRegister(REGISTER.RING_BASE, this.ring.base);
    this.setRegister(REGISTER.RING_BASE + 4, 0);
    this.setRegister(REGISTER.RING_ENTRIES, entries);
    this.setRegister(REGISTER.COMPLETION_BASE, this.completions.base);
    this.setRegister(REGISTER.COMPLETION_BASE + 4, 0);
    this.setRegister(REGISTER.COMPLETION_ENTRIES, completions);
    this.setRegister(REGISTER.CONTROL, CONTROL.ENABLE);
    if (this.register(REGISTER.STATUS) !== STATUS.READY) throw new Error("the engine is not ready");
  }

  /** True where this many descriptors more fit. */
  hasRoom(count = 1): boolean {
    const { entries, tail } = this.ring;
    const used = (tail - this.register(REGISTER.RING_HEAD) + entries) % entries;
    return used + count < entries;
  }

  /** Writes a descriptor into the ring; the doorbell is rung by {@link ringDoorbell}. Returns its tag. */
  queue(fields: DescriptorFields): number {
    const tag = fields.tag ?? this.#nextTag++;
    const { source = 0, destination = 0, opcode = OPCODE.COPY, ...rest } = fields;
    const { base, entries, tail } = this.ring;
    const bytes = descriptor.encode({
      ...rest,
      opcode,
      source: BigInt(source),
      destination: BigInt(destination),
      tag,
    });
    this.at(base + tail * descriptor.size, descriptor.size).set(bytes);
    this.ring.tail = (tail + 1) % entries;
    return tag;
  }

  /** Writes descriptors as one chain; returns the tag of the last. */
  queueChain(all: readonly DescriptorFields[]): number {
    return all
      .map((fields, i) =>
        this.queue(i < all.length - 1 ? { ...fields, flags: (fields.flags ?? 0) | FLAG.CHAIN } : fields),
      )
      .reduce((_, tag) => tag);
  }

  ringDoorbell(): void {
    this.setRegister(DOORBELL.RING_TAIL, this.ring.tail, BAR2);
  }

  /** Takes records that were written, and frees their places. */
  take(most = Number.POSITIVE_INFINITY): Completion[] {
    const ring = this.completions;
    const taken: Completion[] = [];
    while (taken.length < most) {
      const record = completion.decode(this.at(ring.base + ring.head * completion.size, completion.size));
      if (record.pass !== ring.pass) break;
      taken.push(record);
      ring.head = (ring.head + 1) % ring.entries;
      if (ring.head === 0) ring.pass = 3 - ring.pass;
    }
    if (taken.length > 0) this.setRegister(DOORBELL.COMPLETION_HEAD, ring.head, BAR2);
    return taken;
  }

  /** Does one chain, and returns its record. */
  execute(...chain: readonly DescriptorFields[]): Completion {
    this.queueChain(chain);
    this.ringDoorbell();
    for (let slice = 0; slice < MAX_SLICES; slice++) {
      this.device.run(1);
      const record = this.take().at(-1);
      if (record !== undefined) return record;
    }
    throw new Error("a chain was not completed");
  }

  /** Pages of random contents. */
  random(bytes: number, seed = 1): number {
    const at = this.allocate(bytes);
    const memory = this.at(at, bytes);
    let x = seed;
    for (let i = 0; i < bytes; i++) {
      x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
      memory[i] = x >>> 24;
    }
    return at;
  }

  /** True where two stretches of memory are equal. */
  equal(a: number, b: number, bytes: number): boolean {
    return Buffer.compare(this.at(a, bytes), this.at(b, bytes)) === 0;
  }

  /** Reads and writes BAR 2 behind its doorbells. */
  local(offset: number, bytes: number): Uint8Array {
    const data = new Uint8Array(bytes);
    this.device.regionRead(BAR2, offset, data);
    return data;
  }

  setLocal(offset: number, data: Uint8Array): void {
    this.device.regionWrite(BAR2, offset, data);
  }
}
