import { closeSync } from "node:fs";
import type { RegionInfo } from "../host/host.js";
import { fixedBits } from "../host/pci-shape.js";
import type { ReplaySchedule } from "../host/replay-schedule.js";
import { hex, PAGE_SIZE, pageOf } from "../memory/address.js";
import type { PageSpan, SlotOrder } from "./buffers.js";
import { DeviceMemory } from "./device-memory.js";
import type { DeviceContext, DeviceModel, MappableRegion, ModelInfo } from "./model.js";
import { badState, decodeRecords, encodeRecords, type StateRecord } from "./records.js";
import type { StampTrail } from "./stamp.js";
import { type DmaTargets, StampedDma } from "./stamped-dma.js";

/** Region indices of vfio-pci (VFIO_PCI_BAR0_REGION_INDEX …). */
export const REGION = { BAR0: 0, BAR2: 2, CONFIG: 7 } as const;

/** Bytes of the register BAR. */
export const REGISTER_BYTES = 4096;
const CONFIG_BYTES = 256;

/** Registers that every model has: little-endian u32 at these offsets of BAR 0. */
export const REGISTER = {
  /** Read-only: the last unit's sequence number, low and high half. */
  SEQUENCE_LOW: 0x00,
  SEQUENCE_HIGH: 0x04,
  /** Read and write; means nothing to the device. */
  SCRATCH: 0x08,
  /** See {@link STATUS}. */
  STATUS: 0x0c,
  /**
   * Writing n makes the device use the first n entries of the buffer table, and number its units from 1 again; 0: the
   * buffers that it was made with. Reads as the number in use: a table that can't be changes nothing. A write to an entry
   * in use makes it 0: what the device uses is what the table says, here and where its state is loaded.
   */
  BUFFERS: 0x40,
  /** The buffer table: per entry the first byte's IOVA and the length (u64 each), whole pages; no two overlap. */
  BUFFER_TABLE: 0x100,
} as const;

/** Bits of REGISTER.STATUS. */
export const STATUS = {
  /** Read-only: the device has failed, and does nothing before a reset. */
  FAILED: 1 << 0,
  /** Writing 1 resets the device: all is as after power-on. Reads as 0. */
  RESET: 1 << 1,
} as const;

/** Bytes of an entry of the buffer table, and how many it has at most. */
export const BUFFER_ENTRY_BYTES = 16;
const MAX_BUFFER_PAGES = 2 ** 40 / PAGE_SIZE;
export const MAX_BUFFERS = (REGISTER_BYTES - REGISTER.BUFFER_TABLE) / BUFFER_ENTRY_BYTES;

/** The command register of the configuration space, and its Bus Master Enable bit (PCI Local Bus 3.0, 6.2.2). */
export const PCI_COMMAND = 0x04;
export const PCI_COMMAND_MASTER = 1 << 2;

/** Tags of an image's records. Models number their own from 16. */
const TAG = { IDENTITY: 1, CONFIG: 2, DMA: 3, MEMORY: 4 } as const;
export const FIRST_MODEL_TAG = 16;

/** Interrupt moderation: one interrupt tells of all that was written in this time. */
const INTERRUPT_MODERATION_MS = 10;

/** What a model is made from besides its description. All but `memory` can be posted to a thread. */
export interface ModelWiring extends DmaTargets {
  /** Of the machine instance: told apart in stamps. 32 bits. */
  readonly incarnation: number;
  /** Of contents that are made up. */
  readonly seed: number;
  /** What lies behind BAR 2, where peers write, in whole pages; null: it has none. */
  readonly memory: Uint8Array | null;
  /** A file that holds `memory`, for users to map it from; the model closes it. Absent: it can't be mapped. */
  readonly memoryFile?: number;
  /** What a `replay` device writes, and when. */
  readonly replay?: ReplaySchedule;
  /** Another machine's device is to move here: what both use, such as a disk's file, is the other's until it has. */
  readonly incoming?: boolean;
}

/** PCI ids of a model's function. */
export interface PciIds {
  readonly vendor: number;
  readonly device: number;
  /** Base class, subclass and interface: 0x020000 is an Ethernet controller. */
  readonly classCode: number;
}

/** The regions of a model with `memoryBytes` behind BAR 2 (0: none). */
export function pciRegions(memoryBytes: number): RegionInfo[] {
  const region = (index: number, name: string, bytes: number): RegionInfo => ({
    index,
    name,
    bytes,
    readable: true,
    writeable: true,
  });
  return [
    region(REGION.BAR0, "bar0", REGISTER_BYTES),
    ...(memoryBytes > 0 ? [region(REGION.BAR2, "bar2", memoryBytes)] : []),
    region(REGION.CONFIG, "config", CONFIG_BYTES),
  ];
}

/**
 * What all models have in common: a PCI function with a configuration space, registers in BAR 0, perhaps memory in
 * BAR 2, and stamped DMA. The mdev model looks like one to its guest, too.
 */
export abstract class PciModel implements DeviceModel {
  readonly info: ModelInfo;
  /** What a driver changes in the middle of a DMA, the work that is under way finds at its next step. */
  readonly registersDuringDma = true;
  readonly mappable: readonly MappableRegion[];
  protected readonly dma: StampedDma;
  protected readonly registers = new Uint8Array(REGISTER_BYTES);
  /** The buffers that it was made with. */
  readonly #ownBuffers: readonly PageSpan[];
  /** False: it has an order of its own, and its pages are not for a driver to choose. */
  readonly #takesBuffers: boolean;
  /** Entries of the buffer table that are in use. */
  #buffersUsed = 0;
  readonly #powerOnConfig: Uint8Array;
  /** Bits of the configuration space that no driver changes: what the function is. */
  readonly #fixedConfig: Uint8Array;
  readonly #config = new Uint8Array(CONFIG_BYTES);
  readonly #memory: DeviceMemory;
  #context: DeviceContext | undefined;
  #failed = false;
  /** Units were written of which no interrupt has told the guest. */
  #unannounced = false;
  #interruptedAt = 0;

  constructor(
    info: ModelInfo,
    ids: PciIds,
    wiring: ModelWiring,
    load: { id: string; rate: number; blockSlots?: number; order?: SlotOrder },
  ) {
    this.info = info;
    const { memoryFile } = wiring;
    this.mappable = memoryFile === undefined ? [] : [{ region: REGION.BAR2, fd: memoryFile, offset: 0, areas: null }];
    this.#memory = new DeviceMemory(wiring.memory ?? new Uint8Array(0));
    this.dma = new StampedDma({ ...load, incarnation: wiring.incarnation, buffers: wiring.buffers, p2p: wiring.p2p });
    this.#ownBuffers = wiring.buffers;
    this.#takesBuffers = load.order === undefined;
    this.#powerOnConfig = configSpace(ids);
    this.#fixedConfig = fixedBits(this.#powerOnConfig);
    this.#config.set(this.#powerOnConfig);
  }

  async start(context: DeviceContext): Promise<void> {
    this.#context = context;
    this.dma.bind(context);
    await this.open();
  }

  get hasFailed(): boolean {
    return this.#failed;
  }

  showFailure(): void {
    this.#failed = true;
  }

  run(budgetMs: number): number {
    const before = this.dma.lastSequence;
    const wait = this.work(budgetMs);
    const units = this.dma.lastSequence - before;
    if (units > 0) this.wrote(units);
    this.#interrupt();
    return wait;
  }

  /** The model's part of {@link run}. */
  protected abstract work(budgetMs: number): number;

  /** A slice wrote this many units. */
  protected wrote(_units: number): void {
    this.#unannounced = true;
  }

  /** Opens the outside end: a socket, a file. */
  protected async open(): Promise<void> {}

  quiesce(): void {
    this.dma.pause();
    this.#unannounced = false;
  }

  reset(): void {
    this.quiesce();
    this.#failed = false;
    this.registers.fill(0);
    this.#useBuffers(0);
    this.#config.set(this.#powerOnConfig);
    this.#memory.clear();
  }

  save(): Uint8Array<ArrayBuffer> {
    const record = (tag: number, data: Uint8Array): StateRecord => ({ tag, optional: false, data });
    const config = new Uint8Array(CONFIG_BYTES + REGISTER_BYTES);
    config.set(this.#config);
    config.set(this.registers, CONFIG_BYTES);
    return encodeRecords([
      record(TAG.IDENTITY, this.#identity()),
      record(TAG.CONFIG, config),
      record(TAG.DMA, this.dma.save()),
      ...this.ownRecords(),
      // The last: it grows as the memory is used.
      record(TAG.MEMORY, this.#memory.save()),
    ]);
  }

  load(state: Uint8Array): void {
    const records = new Map<number, Uint8Array>();
    for (const { tag, data } of decodeRecords(state)) {
      if (records.has(tag)) throw badState(`record ${tag} is there twice`);
      records.set(tag, data);
    }
    const take = (tag: number, bytes?: number): Uint8Array => {
      const data = records.get(tag);
      if (data === undefined) throw badState(`record ${tag} is missing`);
      if (bytes !== undefined && data.byteLength !== bytes) {
        throw badState(`record ${tag} has ${data.byteLength} bytes instead of ${bytes}`);
      }
      return data;
    };
    const identity = this.#identity();
    if (Buffer.compare(take(TAG.IDENTITY, identity.byteLength), identity) !== 0) {
      throw badState(`it is not of a ${this.info.model} with state version ${this.info.stateVersion}`);
    }
    const config = take(TAG.CONFIG, CONFIG_BYTES + REGISTER_BYTES);
    const other = this.#fixedConfig.findIndex((fixed, at) => ((config[at] ^ this.#powerOnConfig[at]) & fixed) !== 0);
    if (other >= 0) throw badState(`its configuration space differs at ${hex(other)}, where nothing can be written`);
    const memory = take(TAG.MEMORY);
    this.loadOwn(take);
    this.#config.set(config.subarray(0, CONFIG_BYTES));
    this.registers.set(config.subarray(CONFIG_BYTES));
    this.#useBuffers(registerView(this.registers).getUint32(REGISTER.BUFFERS, true));
    this.dma.load(take(TAG.DMA));
    this.#memory.load(memory);
  }

  regionRead(region: number, offset: number, target: Uint8Array): void {
    if (region === REGION.BAR0) this.refreshRegisters();
    target.set(this.#region(region).subarray(offset, offset + target.byteLength));
  }

  regionWrite(region: number, offset: number, source: Uint8Array): void {
    this.#region(region).set(source, offset);
    if (region === REGION.CONFIG) {
      // The identity of a function is read-only.
      this.#fixedConfig.forEach((fixed, at) => {
        this.#config[at] = (this.#config[at] & ~fixed) | (this.#powerOnConfig[at] & fixed);
      });
    }
    if (region !== REGION.BAR0) return;
    const view = registerView(this.registers);
    const wrote = (register: number) => offset < register + 4 && offset + source.byteLength > register;
    if (wrote(REGISTER.BUFFERS)) this.#useBuffers(view.getUint32(REGISTER.BUFFERS, true));
    else if (this.#isInUse(offset, source.byteLength)) this.#useBuffers(0);
    if (wrote(REGISTER.STATUS) && (view.getUint32(REGISTER.STATUS, true) & STATUS.RESET) !== 0) this.reset();
  }

  counters(): Record<string, number> {
    return this.dma.counters();
  }

  /** The guest's driver lets it do DMA: Bus Master Enable in the command register. Off after power-on and reset. */
  get busMaster(): boolean {
    return (this.#config[PCI_COMMAND] & PCI_COMMAND_MASTER) !== 0;
  }

  /** What its stamps in guest memory must be, once it has stopped. */
  trail(): StampTrail {
    return this.dma.trail();
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.mappable) closeSync(fd);
  }

  protected get context(): DeviceContext {
    if (this.#context === undefined) throw new Error(`${this.info.model}: used before its start`);
    return this.#context;
  }

  /** Records of the model's own. Their sizes change only where it is reconfigured. */
  protected ownRecords(): StateRecord[] {
    return [];
  }

  /**
   * @param take the data of a record, of exactly that many bytes if given
   * @throws DirtmapError `BAD_DEVICE_STATE`
   */
  protected loadOwn(_take: (tag: number, bytes?: number) => Uint8Array): void {}

  /** Brings registers that the device writes up to date, before they are read. */
  protected refreshRegisters(): void {
    const view = registerView(this.registers);
    view.setUint32(REGISTER.SEQUENCE_LOW, this.dma.lastSequence >>> 0, true);
    view.setUint32(REGISTER.SEQUENCE_HIGH, Math.floor(this.dma.lastSequence / 2 ** 32), true);
    view.setUint32(REGISTER.STATUS, this.#failed ? STATUS.FAILED : 0, true);
  }

  /** True for a part of BAR 0 in which an entry lies that the device uses. */
  #isInUse(offset: number, bytes: number): boolean {
    const end = REGISTER.BUFFER_TABLE + this.#buffersUsed * BUFFER_ENTRY_BYTES;
    return offset < end && offset + bytes > REGISTER.BUFFER_TABLE;
  }

  #useBuffers(count: number): void {
    const buffers = count === 0 ? this.#ownBuffers : this.#bufferTable(count);
    if (buffers !== undefined && (count > 0 || this.#buffersUsed > 0)) {
      this.#buffersUsed = count;
      this.dma.setBuffers(buffers);
    }
    registerView(this.registers).setUint32(REGISTER.BUFFERS, this.#buffersUsed, true);
  }

  /** The first entries of the table; undefined where they can't be. */
  #bufferTable(count: number): PageSpan[] | undefined {
    if (count > MAX_BUFFERS || !this.#takesBuffers) return undefined;
    const view = registerView(this.registers);
    const spans: PageSpan[] = [];
    for (let index = 0; index < count; index++) {
      const at = REGISTER.BUFFER_TABLE + index * BUFFER_ENTRY_BYTES;
      const iova = view.getBigUint64(at, true);
      const bytes = view.getBigUint64(at + 8, true);
      if ((iova | bytes) % BigInt(PAGE_SIZE) !== 0n || bytes === 0n || iova + bytes > 1n << 64n) return undefined;
      const firstPage = pageOf(iova);
      const pages = pageOf(bytes);
      if (spans.some((span) => firstPage < span.firstPage + span.pages && span.firstPage < firstPage + pages)) {
        return undefined;
      }
      spans.push({ firstPage, pages });
    }
    // A ring's slots are counted in numbers that must stay exact.
    return spans.reduce((sum, { pages }) => sum + pages, 0) <= MAX_BUFFER_PAGES ? spans : undefined;
  }

  #interrupt(): void {
    if (!this.#unannounced) return;
    const now = performance.now();
    if (now - this.#interruptedAt < INTERRUPT_MODERATION_MS) return;
    this.#interruptedAt = now;
    this.#unannounced = false;
    this.context.raiseIrq(this.info.irqs[0].index, 0);
  }

  #region(region: number): Uint8Array {
    if (region === REGION.BAR0) return this.registers;
    if (region === REGION.CONFIG) return this.#config;
    if (region === REGION.BAR2) return this.#memory.bytes;
    throw new RangeError(`${this.info.model} has no region ${region}`);
  }

  #identity(): Uint8Array {
    const { model, stateVersion } = this.info;
    const text = new TextEncoder().encode(JSON.stringify({ model, stateVersion }));
    const padded = new Uint8Array((text.byteLength + 3) & ~3).fill(0x20);
    padded.set(text);
    return padded;
  }
}

/** A view to read and write registers with. */
export function registerView(registers: Uint8Array): DataView {
  return new DataView(registers.buffer, registers.byteOffset, registers.byteLength);
}

/** The head of a type 0 configuration space (PCI Local Bus 3.0, 6.1). */
function configSpace({ vendor, device, classCode }: PciIds): Uint8Array {
  const config = new Uint8Array(CONFIG_BYTES);
  const view = new DataView(config.buffer);
  view.setUint16(0x00, vendor, true);
  view.setUint16(0x02, device, true);
  view.setUint32(0x08, classCode << 8, true);
  return config;
}
