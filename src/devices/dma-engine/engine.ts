import { struct } from "../../uapi/struct.js";
import { VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import type { DeviceMemory } from "../device-memory.js";
import type { DeviceContext } from "../model.js";
import { badState, savedCount } from "../records.js";
import { Ring } from "./rings.js";
import {
  CAPABILITIES,
  CHAIN_STATUS,
  CONTROL,
  completion,
  DOORBELL,
  descriptor,
  FLAG,
  HALT,
  ID,
  REGISTER,
  REGISTERS_BYTES,
  STATUS,
  VECTOR,
  VERSION,
} from "./spec.js";
import { type Descriptor, problemOf, Transfer } from "./transfer.js";

/** With nothing to do, until a doorbell is rung. */
const IDLE_MS = 1000;

/** Of a completion record: its second half, with the pass, is written last. */
const HALF_RECORD = completion.size / 2;

/** Where a chain stands between two descriptors. */
const CHAIN = { NONE: 0, GOES_ON: 1, FAILED: 2 } as const;

/** Registers and progress, as they lie in the state. */
const savedEngine = struct("saved_engine", {
  control: "u32",
  status: "u32",
  error: "u32",
  ringEntries: "u32",
  ringPage: "u64",
  completionPage: "u64",
  completionEntries: "u32",
  ringHead: "u32",
  ringTail: "u32",
  completionHead: "u32",
  completionTail: "u32",
  pass: "u32",
  chain: "u32",
  /** Descriptors of the chain that were done. */
  descriptors: "u32",
  /** A descriptor is under way: the one below, of which `done` bytes were written. */
  underWay: "u32",
  done: "u32",
  chains: "u64",
  failedChains: "u64",
  bytes: "u64",
  descriptor,
});

export const ENGINE_STATE_BYTES = savedEngine.size;

/**
 * The engine: registers, doorbells, and the work on the ring.
 *
 * A descriptor is fetched once, and done in pieces of at most a page; between two pieces the device may be stopped, saved and
 * go on elsewhere. What was fetched and how far it came is therefore part of the state, and no piece is done twice. A chain is
 * begun only when its completion record has room.
 */
export class Engine {
  /** Since the last reset, here and on the devices that it came from. */
  chains = 0;
  failedChains = 0;
  bytes = 0;
  interrupts = 0;
  readonly #ring = new Ring(descriptor.size);
  readonly #completions = new Ring(completion.size);
  readonly #local: DeviceMemory;
  readonly #localBytes: number;
  readonly #transfer: Transfer;
  readonly #fetched = new Uint8Array(descriptor.size);
  #context: DeviceContext | undefined;
  #control = 0;
  #status = 0;
  #error: number = HALT.NONE;
  #pass = 1;
  #chain: number = CHAIN.NONE;
  #descriptors = 0;
  #work: Descriptor | undefined;
  #done = 0;
  /** Records were written of which an interrupt is to tell. */
  #unannounced = false;
  /** A piece is being done: what would stop it has to wait, since a register may be written in the middle of a DMA. */
  #busy = false;
  #disableDue = false;
  #resetDue = false;

  /** @param local BAR 2; cleared by a reset, once nothing is written to it any more */
  constructor(local: DeviceMemory) {
    this.#local = local;
    this.#localBytes = local.bytes.byteLength;
    this.#transfer = new Transfer(local.bytes);
  }

  start(context: DeviceContext): void {
    this.#context = context;
  }

  /** HALTED is set. */
  get hasFailed(): boolean {
    return (this.#status & STATUS.HALTED) !== 0;
  }

  /** See DeviceModel.showFailure. */
  showFailure(): void {
    this.#halt(HALT.INTERNAL_ERROR);
    this.#apply();
  }

  /** See DeviceModel.run. */
  run(budgetMs: number): number {
    const until = performance.now() + budgetMs;
    for (;;) {
      const worked = this.#step();
      this.#apply();
      if (!worked || performance.now() >= until) {
        this.#announce();
        return worked ? 0 : IDLE_MS;
      }
    }
  }

  /** Registers of BAR 0. */
  read(offset: number, target: Uint8Array): void {
    const registers = new Uint8Array(REGISTERS_BYTES);
    const view = new DataView(registers.buffer);
    const u32 = (at: number, value: number) => view.setUint32(at, value, true);
    const u64 = (at: number, value: bigint) => view.setBigUint64(at, value, true);
    u32(REGISTER.ID, ID);
    u32(REGISTER.VERSION, VERSION);
    u32(REGISTER.CAPABILITIES, CAPABILITIES);
    u32(REGISTER.LOCAL_BYTES, this.#localBytes);
    u32(REGISTER.CONTROL, this.#control);
    u32(REGISTER.STATUS, this.#status | (this.#isInChain ? STATUS.BUSY : 0));
    u32(REGISTER.ERROR, this.#error);
    u64(REGISTER.RING_BASE, BigInt(this.#ring.page) << 12n);
    u32(REGISTER.RING_ENTRIES, this.#ring.entries);
    u32(REGISTER.RING_HEAD, this.#ring.head);
    u64(REGISTER.COMPLETION_BASE, BigInt(this.#completions.page) << 12n);
    u32(REGISTER.COMPLETION_ENTRIES, this.#completions.entries);
    u32(REGISTER.COMPLETION_TAIL, this.#completions.tail);
    u64(REGISTER.CHAINS, BigInt(this.chains));
    u64(REGISTER.BYTES, BigInt(this.bytes));
    target.fill(0);
    target.set(registers.subarray(offset, offset + target.byteLength));
  }

  /** A write of 4 or 8 bytes, aligned to 4; others do nothing. */
  write(offset: number, source: Uint8Array): void {
    for (const [at, value] of dwords(offset, source)) this.#writeDword(at, value);
  }

  readDoorbells(offset: number, target: Uint8Array): void {
    const doorbells = new Uint32Array(2);
    doorbells[DOORBELL.RING_TAIL / 4] = this.#ring.tail;
    doorbells[DOORBELL.COMPLETION_HEAD / 4] = this.#completions.head;
    target.fill(0);
    target.set(new Uint8Array(doorbells.buffer).subarray(offset, offset + target.byteLength));
  }

  writeDoorbells(offset: number, source: Uint8Array): void {
    for (const [at, value] of dwords(offset, source)) this.#ringDoorbell(at, value);
  }

  /** As after power-on. */
  reset(): void {
    this.#resetDue = true;
    this.#apply();
  }

  save(): Uint8Array {
    return savedEngine.encode({
      control: this.#control,
      status: this.#status,
      error: this.#error,
      ringEntries: this.#ring.entries,
      ringPage: BigInt(this.#ring.page),
      completionPage: BigInt(this.#completions.page),
      completionEntries: this.#completions.entries,
      ringHead: this.#ring.head,
      ringTail: this.#ring.tail,
      completionHead: this.#completions.head,
      completionTail: this.#completions.tail,
      pass: this.#pass,
      chain: this.#chain,
      descriptors: this.#descriptors,
      underWay: this.#work === undefined ? 0 : 1,
      done: this.#done,
      chains: BigInt(this.chains),
      failedChains: BigInt(this.failedChains),
      bytes: BigInt(this.bytes),
      descriptor: this.#work ?? {},
    });
  }

  /** @param data ENGINE_STATE_BYTES. @throws DirtmapError `BAD_DEVICE_STATE` for what can't be; then nothing has changed */
  load(data: Uint8Array): void {
    const saved = savedEngine.decode(data);
    const ring = new Ring(descriptor.size);
    const completions = new Ring(completion.size);
    ring.page = Number(saved.ringPage);
    ring.entries = saved.ringEntries;
    ring.head = saved.ringHead;
    ring.tail = saved.ringTail;
    completions.page = Number(saved.completionPage);
    completions.entries = saved.completionEntries;
    completions.head = saved.completionHead;
    completions.tail = saved.completionTail;
    this.#check(saved, ring, completions);
    const [chains, failedChains, bytes] = [saved.chains, saved.failedChains, saved.bytes].map(savedCount);
    Object.assign(this.#ring, ring);
    Object.assign(this.#completions, completions);
    this.#control = saved.control;
    this.#status = saved.status;
    this.#error = saved.error;
    this.#pass = saved.pass;
    this.#chain = saved.chain;
    this.#descriptors = saved.descriptors;
    this.#work = saved.underWay === 0 ? undefined : saved.descriptor;
    this.#done = saved.done;
    this.chains = chains;
    this.failedChains = failedChains;
    this.bytes = bytes;
    // An interrupt may have been lost on the way: one too many does no harm.
    this.#unannounced = completions.head !== completions.tail;
  }

  get #isReady(): boolean {
    return (this.#status & (STATUS.READY | STATUS.HALTED)) === STATUS.READY;
  }

  get #isInChain(): boolean {
    return this.#work !== undefined || this.#chain !== CHAIN.NONE;
  }

  get #host(): DeviceContext {
    if (this.#context === undefined) throw new Error("a DMA engine that works before its start");
    return this.#context;
  }

  /** A descriptor's fetch, or a piece of its data; false where there is nothing to do. */
  #step(): boolean {
    if (!this.#isReady) return false;
    this.#busy = true;
    try {
      return this.#work === undefined ? this.#fetch() : this.#move(this.#work);
    } finally {
      this.#busy = false;
    }
  }

  #fetch(): boolean {
    const ring = this.#ring;
    if (ring.waiting === 0 || (this.#chain === CHAIN.NONE && !this.#completions.hasRoom)) return false;
    const { page, offset } = ring.place(ring.head);
    if (this.#host.dma.read(page, offset, this.#fetched, 0, descriptor.size) !== null) {
      this.#halt(HALT.RING_FAULT);
      return true;
    }
    const fetched = descriptor.decode(this.#fetched);
    ring.head = ring.next(ring.head);
    if (this.#chain === CHAIN.FAILED) {
      // The rest of a chain that has ended: its record was written.
      if ((fetched.flags & FLAG.CHAIN) === 0) this.#chain = CHAIN.NONE;
      return true;
    }
    const problem = problemOf(fetched, this.#localBytes);
    if (problem !== CHAIN_STATUS.SUCCESS) {
      this.#endChain(fetched, problem);
      return true;
    }
    this.#work = fetched;
    this.#done = 0;
    return true;
  }

  #move(work: Descriptor): boolean {
    const piece = this.#transfer.piece(work, this.#done, this.#host.dma);
    if ("status" in piece) {
      this.#endChain(work, piece.status);
      return true;
    }
    this.#done += piece.bytes;
    this.bytes += piece.bytes;
    if (this.#done < work.length) return true;
    this.#descriptors++;
    if ((work.flags & FLAG.CHAIN) === 0) this.#endChain(work, CHAIN_STATUS.SUCCESS);
    else {
      this.#work = undefined;
      this.#done = 0;
      this.#chain = CHAIN.GOES_ON;
    }
    return true;
  }

  /** Writes the chain's record. Its second half holds the pass: a driver that sees that sees the rest. */
  #endChain(last: Descriptor, status: number): void {
    const record = completion.encode({
      tag: last.tag,
      bytes: this.#done,
      descriptors: this.#descriptors,
      status,
      pass: this.#pass,
    });
    const ring = this.#completions;
    const { page, offset } = ring.place(ring.tail);
    const { dma } = this.#host;
    const isWritten =
      dma.write(page, offset, record, 0, HALF_RECORD) === null &&
      dma.write(page, offset + HALF_RECORD, record, HALF_RECORD, HALF_RECORD) === null;
    const goesOn = status !== CHAIN_STATUS.SUCCESS && (last.flags & FLAG.CHAIN) !== 0;
    this.#chain = goesOn ? CHAIN.FAILED : CHAIN.NONE;
    this.#work = undefined;
    this.#done = 0;
    this.#descriptors = 0;
    if (!isWritten) {
      this.#halt(HALT.COMPLETION_FAULT);
      return;
    }
    ring.tail = ring.next(ring.tail);
    if (ring.tail === 0) this.#pass = 3 - this.#pass;
    if (status !== CHAIN_STATUS.SUCCESS) this.failedChains++;
    if (status !== CHAIN_STATUS.SUCCESS || (last.flags & FLAG.INTERRUPT) !== 0) this.#unannounced = true;
    this.chains++;
  }

  #halt(error: number): void {
    this.#status |= STATUS.HALTED;
    this.#error = error;
    this.#interrupt(VECTOR.ERROR);
  }

  /** One interrupt tells of all records since the last. */
  #announce(): void {
    if (!this.#unannounced) return;
    this.#unannounced = false;
    this.#interrupt(VECTOR.COMPLETION);
  }

  #interrupt(vector: number): void {
    this.interrupts++;
    this.#host.raiseIrq(VFIO_PCI_IRQ_INDEX.MSIX, vector);
  }

  #writeDword(offset: number, value: number): void {
    if (offset === REGISTER.CONTROL) {
      this.#configure(value);
      return;
    }
    // The rings stay where they are while the engine uses them, which it may do until a DMA has ended.
    if (this.#control !== 0 || this.#status !== 0) return;
    switch (offset) {
      case REGISTER.RING_BASE:
        this.#ring.page = withLow(this.#ring.page, value);
        return;
      case REGISTER.RING_BASE + 4:
        this.#ring.page = withHigh(this.#ring.page, value);
        return;
      case REGISTER.RING_ENTRIES:
        this.#ring.entries = value;
        return;
      case REGISTER.COMPLETION_BASE:
        this.#completions.page = withLow(this.#completions.page, value);
        return;
      case REGISTER.COMPLETION_BASE + 4:
        this.#completions.page = withHigh(this.#completions.page, value);
        return;
      case REGISTER.COMPLETION_ENTRIES:
        this.#completions.entries = value;
    }
  }

  #configure(value: number): void {
    const before = this.#control;
    this.#control = value & CONTROL.ENABLE;
    // One that halted while it was disabled is disabled again: that clears STATUS and ERROR.
    if (this.#control === before && (this.#control !== 0 || this.#status === 0)) return;
    if (this.#control === 0) this.#disableDue = true;
    this.#apply();
    if (this.#control !== 0 && !this.#disableDue) this.#enable();
  }

  #ringDoorbell(offset: number, value: number): void {
    if (!this.#isReady) return;
    if (offset === DOORBELL.RING_TAIL) {
      if (value < this.#ring.entries) this.#ring.tail = value;
      else this.#halt(HALT.BAD_DOORBELL);
    } else if (offset === DOORBELL.COMPLETION_HEAD) {
      const ring = this.#completions;
      const taken = (value - ring.head + ring.entries) % ring.entries;
      if (value < ring.entries && taken <= ring.waiting) ring.head = value;
      else this.#halt(HALT.BAD_DOORBELL);
    }
  }

  /** What was asked for in the middle of a DMA takes effect. */
  #apply(): void {
    if (this.#busy) return;
    if (this.#resetDue) {
      this.#stop();
      this.#local.clear();
      this.#control = 0;
      this.chains = 0;
      this.failedChains = 0;
      this.bytes = 0;
      Object.assign(this.#ring, { page: 0, entries: 0 });
      Object.assign(this.#completions, { page: 0, entries: 0 });
      this.#resetDue = false;
    } else if (this.#disableDue) {
      this.#stop();
      // It may have been enabled again since.
      if (this.#control !== 0) this.#enable();
    }
    this.#disableDue = false;
  }

  #enable(): void {
    if (this.#ring.isPossible && this.#completions.isPossible) this.#status = STATUS.READY;
    else this.#halt(HALT.BAD_CONFIGURATION);
  }

  /** What was under way is given up, without a record. */
  #stop(): void {
    this.#status = 0;
    this.#error = HALT.NONE;
    for (const ring of [this.#ring, this.#completions]) {
      ring.head = 0;
      ring.tail = 0;
    }
    this.#pass = 1;
    this.#chain = CHAIN.NONE;
    this.#descriptors = 0;
    this.#work = undefined;
    this.#done = 0;
    this.#unannounced = false;
  }

  #check(saved: ReturnType<typeof savedEngine.decode>, ring: Ring, completions: Ring): void {
    const isReady = (saved.status & STATUS.READY) !== 0;
    const isEnabled = saved.control === CONTROL.ENABLE;
    if ((saved.control !== 0 && !isEnabled) || (saved.status & ~(STATUS.READY | STATUS.HALTED)) !== 0) {
      throw badState("its control or status register can't be");
    }
    if (saved.error > HALT.INTERNAL_ERROR || (saved.error !== HALT.NONE) !== ((saved.status & STATUS.HALTED) !== 0)) {
      throw badState(`it has halted for reason ${saved.error}`);
    }
    if ((isReady && !isEnabled) || (saved.pass !== 1 && saved.pass !== 2))
      throw badState("it is ready and not enabled");
    if (saved.ringPage >= 1n << 52n || saved.completionPage >= 1n << 52n) throw badState("its rings are nowhere");
    for (const each of [ring, completions]) {
      const stands = isReady
        ? each.isPossible && each.head < each.entries && each.tail < each.entries
        : each.tail === 0;
      if (!stands || (!isReady && each.head !== 0)) {
        throw badState(`a ring of ${each.entries} entries, from ${each.head} to ${each.tail}`);
      }
    }
    const inChain = saved.underWay !== 0 || saved.chain !== CHAIN.NONE;
    if (saved.underWay > 1 || saved.chain > CHAIN.FAILED || (inChain && !isReady)) throw badState("its chain can't be");
    if (saved.underWay === 0 && saved.done !== 0) throw badState("it is inside of no descriptor");
    // Its record needs the room that was there when it began.
    if (inChain && saved.chain !== CHAIN.FAILED && !completions.hasRoom) throw badState("its chain has no room to end");
    if (saved.underWay === 0) return;
    const isWhole = problemOf(saved.descriptor, this.#localBytes) === CHAIN_STATUS.SUCCESS;
    if (!isWhole || saved.done >= saved.descriptor.length || saved.chain === CHAIN.FAILED) {
      throw badState(`it is ${saved.done} bytes into a descriptor that can't be`);
    }
  }
}

/** The aligned dwords of an access; none where it is not one of 4 or 8 bytes. */
function* dwords(offset: number, source: Uint8Array): Generator<[number, number]> {
  if (offset % 4 !== 0 || (source.byteLength !== 4 && source.byteLength !== 8)) return;
  const view = new DataView(source.buffer, source.byteOffset, source.byteLength);
  for (let at = 0; at < source.byteLength; at += 4) yield [offset + at, view.getUint32(at, true)];
}

/** A page whose address has another low half; bits 0 to 11 of an address are 0. */
function withLow(page: number, low: number): number {
  return Math.floor(page / 2 ** 20) * 2 ** 20 + (low >>> 12);
}

function withHigh(page: number, high: number): number {
  return high * 2 ** 20 + (page % 2 ** 20);
}
