import type { DmaLog } from "../../devices/dma-log.js";
import type { DmaFault, DmaPort } from "../../devices/model.js";
import type { IommuFormatName } from "../../host/description.js";
import type { Port } from "../../iommufd/system-iommu.js";
import { PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { openArena } from "../../memory/arena.js";
import { Copier } from "../../memory/copier.js";
import { InFlight } from "../../memory/in-flight.js";
import { type PhysicalArena, PhysicalMemory } from "../physical-memory.js";
import { EventLog } from "./event-log.js";
import { type PageTableFormat, READ, WRITE } from "./format.js";
import { FORMATS } from "./formats.js";
import { Iotlb, LOGGED, PEER, RECORDED } from "./iotlb.js";
import { P2pMatrix } from "./p2p-matrix.js";
import { PortCounters } from "./port-counters.js";
import { Walker } from "./walker.js";

/** What a device thread is posted for one port: plain data and shared memory. */
export interface DmaWiring {
  readonly format: IommuFormatName;
  /** The arena of the page tables and the device table. */
  readonly tables: WebAssembly.Memory;
  /** Index of the first word of the port's device-table entry in that arena. */
  readonly deviceEntry: number;
  readonly port: Port;
  readonly inFlight: Int32Array<SharedArrayBuffer>;
  readonly physical: readonly PhysicalArena[];
  readonly p2p: Int32Array<SharedArrayBuffer>;
  readonly events: Int32Array<SharedArrayBuffer>;
  readonly counters: Float64Array<SharedArrayBuffer>;
  /** Entries of the IOTLB; rounded down to a power of two. */
  readonly iotlb: number;
}

/** Places where a test can hold a DMA up. */
export interface DmaHooks {
  /** Between the translation, which records the write, and the store. */
  readonly afterTranslate?: (page: PageNumber) => void;
  /** Between the walker's look at a leaf and its compare-and-swap. */
  readonly beforeRecord?: () => void;
}

/**
 * A device's way to memory through the system IOMMU, on the device's thread.
 *
 * Each DMA is bracketed by its in-flight words: whoever invalidates raises the flush generation, and then waits for the
 * DMA that began before. One that begins later finds the generation moved, drops its IOTLB and reads its device-table
 * entry anew.
 */
export class IommuDmaPort implements DmaPort {
  readonly port: Port;
  readonly counters: PortCounters;
  /** While the device may not do peer-to-peer DMA, whatever the matrix says. */
  p2pQuiesced = false;

  readonly #format: PageTableFormat;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #deviceEntry: number;
  readonly #inFlight: InFlight;
  readonly #memories: readonly Uint8Array<SharedArrayBuffer>[];
  /** Per arena: the port that owns the BAR, or -1 for RAM. */
  readonly #owners: Int32Array;
  readonly #p2p: P2pMatrix;
  readonly #events: EventLog;
  readonly #walker: Walker;
  readonly #copier = new Copier();
  readonly #afterTranslate: ((page: PageNumber) => void) | undefined;

  #log: DmaLog | null = null;
  #root = 0;
  #updates = false;
  /** What an entry's flags must have for a write. */
  #writeFlags = WRITE;
  /** Its generation is also the one that the device-table entry was read under. */
  readonly #iotlb: Iotlb;

  constructor(wiring: DmaWiring, hooks: DmaHooks = {}) {
    this.port = wiring.port;
    this.counters = new PortCounters(wiring.counters);
    this.#format = FORMATS[wiring.format];
    this.#words = openArena(wiring.tables).i32;
    this.#deviceEntry = wiring.deviceEntry;
    this.#inFlight = new InFlight(wiring.inFlight);
    const { arenas } = PhysicalMemory.open(wiring.physical);
    this.#memories = arenas.map(({ u8 }) => u8);
    this.#owners = Int32Array.from(arenas, ({ owner }) => (owner.kind === "bar" ? owner.port : -1));
    this.#p2p = new P2pMatrix(wiring.p2p);
    this.#events = new EventLog(wiring.events);
    this.#walker = new Walker(this.#format, this.#words, hooks.beforeRecord);
    this.#afterTranslate = hooks.afterTranslate;
    this.#iotlb = new Iotlb(wiring.iotlb);
    this.#load(this.#inFlight.begin(this.port));
    this.#inFlight.end(this.port);
  }

  /** The device's own log, while DMA logging is on. */
  get log(): DmaLog | null {
    return this.#log;
  }

  set log(log: DmaLog | null) {
    this.#log = log;
    this.#iotlb.clearFlag(LOGGED);
  }

  write(page: PageNumber, offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    checkSpan(offset, source, from, bytes);
    const iotlb = this.#iotlb;
    const slot = iotlb.slotOf(page);
    this.#begin();
    const hit = iotlb.hits(slot, page, this.#writeFlags);
    const fault = hit ? this.#mayReach(slot) : this.#translate(slot, page, true);
    if (fault === null) {
      this.#afterTranslate?.(page);
      this.#copier.copy(this.#memories[iotlb.arenas[slot]], iotlb.offsets[slot] + offset, source, from, bytes);
      if (this.#log !== null && (iotlb.flags[slot] & LOGGED) === 0) {
        this.#log.mark(page);
        iotlb.flags[slot] |= LOGGED;
      }
    }
    this.#inFlight.end(this.port);
    if (fault === null) this.counters.countWrite(bytes);
    else this.#report(page, true, fault);
    return fault;
  }

  read(page: PageNumber, offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    checkSpan(offset, target, to, bytes);
    const iotlb = this.#iotlb;
    const slot = iotlb.slotOf(page);
    this.#begin();
    const hit = iotlb.hits(slot, page, READ);
    const fault = hit ? this.#mayReach(slot) : this.#translate(slot, page, false);
    if (fault === null) {
      this.#afterTranslate?.(page);
      this.#copier.copy(target, to, this.#memories[iotlb.arenas[slot]], iotlb.offsets[slot] + offset, bytes);
    }
    this.#inFlight.end(this.port);
    if (fault === null) this.counters.countRead(bytes);
    else this.#report(page, false, fault);
    return fault;
  }

  /** A DMA begins: what was cached under another flush generation is gone. */
  #begin(): void {
    const generation = this.#inFlight.begin(this.port);
    if (generation !== this.#iotlb.generation) this.#load(generation);
  }

  #load(generation: number): void {
    this.#iotlb.generation = generation;
    const { root, updates } = this.#format.loadDeviceEntry(this.#words, this.#deviceEntry);
    this.#root = root;
    this.#updates = updates;
    this.#writeFlags = updates ? WRITE | RECORDED : WRITE;
  }

  /** Walks, and fills the page's slot of the IOTLB. */
  #translate(slot: number, page: PageNumber, write: boolean): DmaFault | null {
    if (this.#root === 0) return "detached";
    const walker = this.#walker;
    const fault = walker.walk(this.#root, page, write, this.#updates);
    if (fault !== null) return fault;
    const memory = this.#memories[walker.addressHigh];
    // A table that points to no memory: nothing answers on the bus.
    if (memory === undefined || walker.addressLow + PAGE_SIZE > memory.length) return "not-mapped";
    const owner = this.#owners[walker.addressHigh];
    if (owner >= 0 && owner !== this.port && !this.#p2p.allowed(this.port, owner)) return "p2p-refused";
    const recorded = write || !this.#updates ? RECORDED : 0;
    const peer = owner >= 0 && owner !== this.port ? PEER : 0;
    this.#iotlb.fill(slot, page, walker.addressHigh, walker.addressLow, walker.permissions | recorded | peer);
    return this.#mayReach(slot);
  }

  #mayReach(slot: number): DmaFault | null {
    return this.p2pQuiesced && (this.#iotlb.flags[slot] & PEER) !== 0 ? "p2p-refused" : null;
  }

  #report(page: PageNumber, write: boolean, fault: DmaFault): void {
    this.counters.countFault();
    this.#events.append(this.port, page, write, fault);
  }
}

/** The caller's buffer, before the DMA begins: what throws in the midst of one would hang all readers. */
function checkSpan(offset: number, buffer: Uint8Array, at: number, bytes: number): void {
  if (!(offset >= 0 && at >= 0 && bytes >= 0 && offset + bytes <= PAGE_SIZE && at + bytes <= buffer.length)) {
    throw new RangeError(`a DMA of ${bytes} bytes at offset ${offset} of a page, from ${at} of ${buffer.length} bytes`);
  }
}
