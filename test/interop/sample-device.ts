import { closeSync } from "node:fs";
import type { DeviceContext, DeviceModel, MappableRegion, ModelInfo } from "../../src/devices/model.js";
import { decodeRecords, encodeRecords } from "../../src/devices/records.js";
import { createSharedMemory } from "../../src/devices/shared-memory.js";
import { iovaOf, PAGE_SIZE } from "../../src/memory/address.js";
import type { ServedDevice } from "../../src/vfio-user/server/served-device.js";

const BAR0_BYTES = 8;
export const BAR1_BYTES = 3 * PAGE_SIZE;
/** Of each of two regions: half of what its client serves in all. */
const DMA_BYTES = 2048;
const NEVER_MS = 1000;

const INFO: ModelInfo = {
  model: "sample",
  stateVersion: 1,
  mdev: false,
  regions: [
    { index: 0, name: "bar0", bytes: BAR0_BYTES, readable: true, writeable: true },
    { index: 1, name: "bar1", bytes: BAR1_BYTES, readable: true, writeable: true },
    { index: 7, name: "config", bytes: 256, readable: true, writeable: true },
  ],
  irqs: [{ index: 0, name: "intx", count: 1 }],
  migration: { stopCopy: true, p2p: false, preCopy: true },
  tracking: { tracksInternally: true, tracksThroughContainer: false },
  dmaLogging: { pageSizes: [PAGE_SIZE], maxRanges: 256, addressWidth: 64, readableWhen: "always" },
  separatesP2p: false,
};

/**
 * A device like the one of libvfio-user's samples, as its sample client insists on it: a time in seconds, written to BAR 0,
 * at which it raises INTx and does DMA: it writes to the first two regions that are mapped, and reads them back.
 */
export class SampleDevice implements DeviceModel {
  readonly info = INFO;
  readonly mappable: readonly MappableRegion[];
  readonly busMaster = true;
  readonly #bar0 = Buffer.alloc(BAR0_BYTES);
  readonly #bar1: Uint8Array;
  readonly #config = Buffer.alloc(256);
  #device: ServedDevice | undefined;
  #dueMs = Number.POSITIVE_INFINITY;
  #rounds = 0;
  #mismatches = 0;

  constructor() {
    this.#config.writeUInt16LE(0xdead, 0);
    this.#config.writeUInt16LE(0xbeef, 2);
    this.#config.writeUInt16LE(0xcafe, 0x2c);
    this.#config.writeUInt16LE(0xbabe, 0x2e);
    const { memory, memoryFile } = createSharedMemory("sample-bar1", BAR1_BYTES);
    this.#bar1 = memory;
    const areas = [
      { offset: 0, bytes: PAGE_SIZE },
      { offset: 2 * PAGE_SIZE, bytes: PAGE_SIZE },
    ];
    this.mappable = [{ region: 1, fd: memoryFile, offset: 0, areas }];
  }

  async start(context: DeviceContext): Promise<void> {
    // What serves a model is a ServedDevice: it knows which regions there are.
    this.#device = context as ServedDevice;
  }

  run(): number {
    const left = this.#dueMs - Date.now();
    if (left > 0) return Math.min(left, NEVER_MS);
    this.#dueMs = Number.POSITIVE_INFINITY;
    this.#device?.raiseIrq(0, 0);
    this.#doDma();
    return NEVER_MS;
  }

  quiesce(): void {
    this.#dueMs = Number.POSITIVE_INFINITY;
  }

  reset(): void {
    this.#bar0.fill(0);
    this.#bar1.fill(0);
    this.quiesce();
  }

  save(): Uint8Array {
    return encodeRecords([{ tag: 1, optional: false, data: Buffer.concat([this.#bar1, this.#bar0]) }]);
  }

  load(state: Uint8Array): void {
    const [{ data }] = decodeRecords(state);
    this.#bar1.set(data.subarray(0, BAR1_BYTES));
    this.#bar0.set(data.subarray(BAR1_BYTES, BAR1_BYTES + BAR0_BYTES));
  }

  regionRead(region: number, offset: number, target: Uint8Array): void {
    target.set(this.#region(region).subarray(offset, offset + target.byteLength));
  }

  regionWrite(region: number, offset: number, source: Uint8Array): void {
    this.#region(region).set(source, offset);
    if (region === 0) this.#dueMs = Number(this.#bar0.readBigInt64LE()) * 1000;
  }

  counters(): Record<string, number> {
    return { rounds: this.#rounds, mismatches: this.#mismatches };
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.mappable) closeSync(fd);
  }

  #region(region: number): Uint8Array {
    if (region === 0) return this.#bar0;
    return region === 1 ? this.#bar1 : this.#config;
  }

  #doDma(): void {
    const { memory } = this.#device ?? {};
    const pages = memory?.regions().slice(0, 2) ?? [];
    const data = new Uint8Array(DMA_BYTES).map((_, i) => i % 251);
    const back = new Uint8Array(DMA_BYTES);
    for (const { page } of pages) memory?.write(page, 0, data, 0, DMA_BYTES);
    for (const { page } of pages) {
      if (memory?.read(page, 0, back, 0, DMA_BYTES) !== null || !Buffer.from(back).equals(data)) {
        this.#mismatches++;
        this.#device?.fail(`what was written at ${iovaOf(page)} is not what is read`);
      }
    }
    this.#rounds++;
  }
}
