import { closeSync } from "node:fs";
import type { DeviceContext, DeviceModel, MappableRegion, ModelInfo } from "../../devices/model.js";
import { decodeRecords, encodeRecords } from "../../devices/records.js";
import { createSharedMemory } from "../../devices/shared-memory.js";
import { PAGE_SIZE } from "../../memory/address.js";

/*
 * For tests: a device that does what its registers say, one step at a time.
 */

/** Registers of BAR 0: little-endian. Writing COMMAND does something, and sets RESULT. */
export const TEST_REGISTER = {
  /** u64: an IOVA, or an interrupt's type. */
  ADDRESS: 0x10,
  /** u32: what is written, or was read; or an interrupt's vector. */
  VALUE: 0x18,
  /** u32: bytes of a DMA, inside a page. */
  BYTES: 0x1c,
  /** u32: one of {@link TEST_COMMAND}. */
  COMMAND: 0x20,
  /** u32: 0 before it is done, then 1 for a success, or 2 and more for a fault: see {@link TEST_FAULTS}. */
  RESULT: 0x24,
} as const;

export const TEST_COMMAND = {
  /** Writes BYTES bytes, filled with VALUE's low byte, at ADDRESS: in the next slice of work. */
  WRITE: 1,
  /** Reads BYTES bytes; VALUE becomes the first four. */
  READ: 2,
  RAISE: 3,
  THROW: 4,
  /** Like WRITE and READ, before the register write is answered. */
  WRITE_NOW: 5,
  READ_NOW: 6,
  /** Writes a page's worth at each of VALUE pages from ADDRESS on. */
  WRITE_PAGES: 7,
  /** Ends the server's thread on the spot. */
  EXIT: 8,
  /** Asserts INTx no longer. */
  LOWER: 9,
} as const;

export const TEST_FAULTS = ["", "done", "not-mapped", "not-writeable", "not-readable", "detached"] as const;

const BAR0_BYTES = 4096;
/** Pages of BAR 1; the first and the third can be mapped. */
export const BAR1_BYTES = 4 * PAGE_SIZE;
export const BAR1_AREAS = [
  { offset: 0, bytes: PAGE_SIZE },
  { offset: 2 * PAGE_SIZE, bytes: PAGE_SIZE },
];
const TAG = 1;

const INFO: ModelInfo = {
  model: "test",
  stateVersion: 1,
  mdev: false,
  regions: [
    { index: 0, name: "bar0", bytes: BAR0_BYTES, readable: true, writeable: true },
    { index: 1, name: "bar1", bytes: BAR1_BYTES, readable: true, writeable: true },
    { index: 2, name: "bar2", bytes: 8, readable: true, writeable: false },
    { index: 7, name: "config", bytes: 256, readable: true, writeable: true },
  ],
  irqs: [
    { index: 0, name: "intx", count: 1 },
    { index: 1, name: "msi", count: 4 },
    { index: 2, name: "msix", count: 32 },
  ],
  migration: { stopCopy: true, p2p: true, preCopy: true },
  tracking: { tracksInternally: true, tracksThroughContainer: false },
  dmaLogging: {
    pageSizes: Array.from({ length: 19 }, (_, i) => 4096 * 2 ** i),
    maxRanges: 16,
    addressWidth: 64,
    readableWhen: "always",
  },
  separatesP2p: false,
};

export class TestModel implements DeviceModel {
  readonly info = INFO;
  readonly mappable: readonly MappableRegion[];
  readonly busMaster = true;
  readonly #bar0 = new Uint8Array(BAR0_BYTES);
  readonly #view = new DataView(this.#bar0.buffer);
  readonly #bar1: Uint8Array;
  readonly #config = new Uint8Array(256);
  readonly #buffer = new Uint8Array(PAGE_SIZE);
  #context: DeviceContext | undefined;
  #due = 0;
  #slices = 0;

  constructor() {
    const { memory, memoryFile } = createSharedMemory("test-bar1", BAR1_BYTES);
    this.#bar1 = memory;
    this.mappable = [{ region: 1, fd: memoryFile, offset: 0, areas: BAR1_AREAS }];
  }

  async start(context: DeviceContext): Promise<void> {
    this.#context = context;
  }

  run(): number {
    this.#slices++;
    const command = this.#due;
    this.#due = 0;
    if (command !== 0) this.#do(command);
    return 1000;
  }

  quiesce(): void {}

  reset(): void {
    this.#bar0.fill(0);
    this.#bar1.fill(0);
    this.#due = 0;
  }

  save(): Uint8Array {
    const data = new Uint8Array(BAR0_BYTES + BAR1_BYTES);
    data.set(this.#bar0);
    data.set(this.#bar1, BAR0_BYTES);
    return encodeRecords([{ tag: TAG, optional: false, data }]);
  }

  load(state: Uint8Array): void {
    const [{ data }] = decodeRecords(state);
    this.#bar0.set(data.subarray(0, BAR0_BYTES));
    this.#bar1.set(data.subarray(BAR0_BYTES));
  }

  regionRead(region: number, offset: number, target: Uint8Array): void {
    target.set(this.#region(region).subarray(offset, offset + target.byteLength));
  }

  regionWrite(region: number, offset: number, source: Uint8Array): void {
    this.#region(region).set(source, offset);
    if (region !== 0 || offset !== TEST_REGISTER.COMMAND) return;
    const command = this.#view.getUint32(TEST_REGISTER.COMMAND, true);
    this.#view.setUint32(TEST_REGISTER.RESULT, 0, true);
    const isDma = [TEST_COMMAND.WRITE, TEST_COMMAND.READ, TEST_COMMAND.WRITE_PAGES].includes(command as 1);
    if (isDma) this.#due = command;
    else this.#do(command);
  }

  counters(): Record<string, number> {
    return { slices: this.#slices };
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.mappable) closeSync(fd);
  }

  #region(region: number): Uint8Array {
    if (region === 0) return this.#bar0;
    if (region === 1) return this.#bar1;
    return region === 2 ? this.#bar0.subarray(0, 8) : this.#config;
  }

  #do(command: number): void {
    const context = this.#context;
    if (context === undefined) return;
    const address = this.#view.getBigUint64(TEST_REGISTER.ADDRESS, true);
    const value = this.#view.getUint32(TEST_REGISTER.VALUE, true);
    const bytes = this.#view.getUint32(TEST_REGISTER.BYTES, true);
    const page = Number(address >> 12n);
    const offset = Number(address & 0xfffn);
    let fault: string | null = null;
    switch (command) {
      case TEST_COMMAND.WRITE:
      case TEST_COMMAND.WRITE_NOW:
        fault = context.dma.write(page, offset, this.#buffer.fill(value & 0xff), 0, bytes);
        break;
      case TEST_COMMAND.READ:
      case TEST_COMMAND.READ_NOW:
        fault = context.dma.read(page, offset, this.#buffer.fill(0), 0, bytes);
        this.#view.setUint32(TEST_REGISTER.VALUE, Buffer.from(this.#buffer.buffer).readUInt32LE(), true);
        break;
      case TEST_COMMAND.WRITE_PAGES:
        this.#buffer.fill(0xa5);
        for (let i = 0; i < value && fault === null; i++)
          fault = context.dma.write(page + i, 0, this.#buffer, 0, PAGE_SIZE);
        break;
      case TEST_COMMAND.RAISE:
        context.raiseIrq(page, value);
        break;
      case TEST_COMMAND.LOWER:
        context.lowerIntx?.();
        break;
      case TEST_COMMAND.EXIT:
        process.exit(1);
        break;
      case TEST_COMMAND.THROW:
        throw new Error("the test model was told to throw");
    }
    this.#view.setUint32(
      TEST_REGISTER.RESULT,
      fault === null ? 1 : Math.max(2, TEST_FAULTS.indexOf(fault as "done")),
      true,
    );
  }
}
