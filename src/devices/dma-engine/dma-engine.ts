import { closeSync } from "node:fs";
import { UsageError } from "../../errors.js";
import { isPowerOfTwo, KiB, MiB } from "../../memory/address.js";
import { VFIO_PCI_IRQ_INDEX, VFIO_PCI_REGION_INDEX } from "../../uapi/vfio.js";
import { DeviceMemory } from "../device-memory.js";
import type { DeviceContext, DeviceModel, MappableRegion, ModelInfo } from "../model.js";
import { PCI_CONFIG_BYTES, PciConfig } from "../pci-config.js";
import { badState, decodeRecords, encodeRecords } from "../records.js";
import { numberOption, type ServableModel } from "../servable.js";
import { createSharedMemory } from "../shared-memory.js";
import { ENGINE_STATE_BYTES, Engine } from "./engine.js";
import {
  BAR0_BYTES,
  CLASS_CODE,
  DOORBELL_BYTES,
  MSIX_PENDING,
  MSIX_TABLE,
  MSIX_TABLE_BYTES,
  PCI_IDS,
  VECTORS,
} from "./spec.js";

const { BAR0, BAR2, CONFIG } = VFIO_PCI_REGION_INDEX;

/** Bytes of BAR 2: doorbells and local memory. */
export const LOCAL_BYTES = { min: 8 * KiB, default: MiB, max: 256 * MiB } as const;

const TAG = { CONFIG: 1, MSIX: 2, ENGINE: 3, LOCAL: 4 } as const;

/** Records of a fixed size; the local memory's grows as it is used. */
const RECORD_BYTES: ReadonlyMap<number, number> = new Map([
  [TAG.CONFIG, PCI_CONFIG_BYTES],
  [TAG.MSIX, MSIX_TABLE_BYTES],
  [TAG.ENGINE, ENGINE_STATE_BYTES],
]);

/** @param localBytes of BAR 2 */
export function dmaEngineInfo(localBytes: number): ModelInfo {
  return {
    model: "dma-engine",
    stateVersion: 1,
    mdev: false,
    regions: [
      { index: BAR0, name: "bar0", bytes: BAR0_BYTES, readable: true, writeable: true },
      { index: BAR2, name: "bar2", bytes: localBytes, readable: true, writeable: true },
      { index: CONFIG, name: "config", bytes: PCI_CONFIG_BYTES, readable: true, writeable: true },
    ],
    irqs: [{ index: VFIO_PCI_IRQ_INDEX.MSIX, name: "msix", count: VECTORS }],
    migration: { stopCopy: true, p2p: true, preCopy: true },
    tracking: { tracksInternally: true, tracksThroughContainer: false },
    dmaLogging: {
      // 4 KiB to 1 GiB.
      pageSizes: Array.from({ length: 19 }, (_, i) => 4096 * 2 ** i),
      maxRanges: 16,
      addressWidth: 64,
      readableWhen: "always",
    },
    separatesP2p: false,
  };
}

/**
 * A DMA engine: copies and fills memory as descriptors in a ring say. docs/dma-engine.md has its programming interface.
 *
 * BAR 2 has a page of doorbells, which is written by messages, and behind it memory of the device's own, which users may map.
 */
export class DmaEngine implements DeviceModel {
  readonly info: ModelInfo;
  readonly registersDuringDma = true;
  readonly mappable: readonly MappableRegion[];
  readonly #engine: Engine;
  readonly #config: PciConfig;
  readonly #local: DeviceMemory;
  /** Only memory: who serves the device's interrupts keeps its own table. */
  readonly #msix = new Uint8Array(MSIX_TABLE_BYTES);

  /**
   * @param local.memory behind BAR 2; the page of doorbells is never stored to
   * @param local.memoryFile that holds it, for users to map it from; closed with the device. Absent: it can't be mapped
   * @throws UsageError `BAD_OPTION` for a size that no BAR has
   */
  constructor({ memory, memoryFile }: { memory: Uint8Array; memoryFile?: number }) {
    const bytes = memory.byteLength;
    if (!isPowerOfTwo(bytes) || bytes < LOCAL_BYTES.min || bytes > LOCAL_BYTES.max) throw badMemory(bytes);
    this.info = dmaEngineInfo(bytes);
    const areas = [{ offset: DOORBELL_BYTES, bytes: bytes - DOORBELL_BYTES }];
    this.mappable = memoryFile === undefined ? [] : [{ region: BAR2, fd: memoryFile, offset: 0, areas }];
    this.#local = new DeviceMemory(memory);
    this.#engine = new Engine(this.#local);
    this.#config = new PciConfig({
      ...PCI_IDS,
      classCode: CLASS_CODE,
      bar0Bytes: BAR0_BYTES,
      bar2Bytes: bytes,
      interrupts: { kind: "msix", vectors: VECTORS, table: MSIX_TABLE, pending: MSIX_PENDING },
    });
  }

  get busMaster(): boolean {
    return this.#config.busMaster;
  }

  get hasFailed(): boolean {
    return this.#engine.hasFailed;
  }

  showFailure(): void {
    this.#engine.showFailure();
  }

  async start(context: DeviceContext): Promise<void> {
    this.#engine.start(context);
  }

  run(budgetMs: number): number {
    return this.#engine.run(budgetMs);
  }

  /** Between two pieces nothing is in flight. */
  quiesce(): void {}

  reset(): void {
    this.#engine.reset();
    this.#config.reset();
    this.#msix.fill(0);
  }

  save(): Uint8Array {
    const data: [number, Uint8Array][] = [
      [TAG.CONFIG, this.#config.save()],
      [TAG.MSIX, this.#msix],
      [TAG.ENGINE, this.#engine.save()],
      // The last: it grows as the memory is used.
      [TAG.LOCAL, this.#local.save()],
    ];
    return encodeRecords(data.map(([tag, bytes]) => ({ tag, optional: false, data: bytes })));
  }

  load(state: Uint8Array): void {
    const records = new Map<number, Uint8Array>();
    for (const { tag, data } of decodeRecords(state)) {
      const isPossible = tag === TAG.LOCAL || RECORD_BYTES.get(tag) === data.byteLength;
      if (records.has(tag) || !isPossible) {
        throw badState(`record ${tag} of ${data.byteLength} bytes is not known, or there twice`);
      }
      records.set(tag, data);
    }
    const take = (tag: number): Uint8Array => {
      const data = records.get(tag);
      if (data === undefined) throw badState(`record ${tag} is missing`);
      return data;
    };
    try {
      this.#config.load(take(TAG.CONFIG));
      this.#msix.set(take(TAG.MSIX));
      this.#engine.load(take(TAG.ENGINE));
      this.#local.load(take(TAG.LOCAL));
    } catch (error) {
      // Half a state is none.
      this.reset();
      throw error;
    }
  }

  regionRead(region: number, offset: number, target: Uint8Array): void {
    if (region === CONFIG) this.#config.read(offset, target);
    else if (region === BAR2) {
      if (offset < DOORBELL_BYTES) this.#engine.readDoorbells(offset, target);
      else target.set(this.#local.bytes.subarray(offset, offset + target.byteLength));
    } else if (offset < MSIX_TABLE) this.#engine.read(offset, target);
    else {
      target.fill(0);
      target.set(this.#msix.subarray(offset - MSIX_TABLE, offset - MSIX_TABLE + target.byteLength));
    }
  }

  regionWrite(region: number, offset: number, source: Uint8Array): void {
    if (region === CONFIG) {
      if (this.#config.write(offset, source)) this.reset();
    } else if (region === BAR2) {
      if (offset < DOORBELL_BYTES) this.#engine.writeDoorbells(offset, source);
      else this.#local.bytes.set(source, offset);
    } else if (offset < MSIX_TABLE) this.#engine.write(offset, source);
    else if (offset + source.byteLength <= MSIX_TABLE + MSIX_TABLE_BYTES) this.#msix.set(source, offset - MSIX_TABLE);
  }

  counters(): Record<string, number> {
    const { chains, failedChains, bytes, interrupts } = this.#engine;
    return { chains, failedChains, bytes, interrupts };
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.mappable) closeSync(fd);
  }
}

export const DMA_ENGINE: ServableModel = {
  name: "dma-engine",
  summary: "copies and fills memory as its driver's descriptors say; logs its own DMA; has memory that clients may map",
  options: [
    {
      name: "memory",
      about: "bytes of BAR 2, a power of two: a page of doorbells, and memory that clients may map",
      kind: "size",
      ...LOCAL_BYTES,
    },
  ],
  needsEventLoop: false,
  create(options, { id }): DeviceModel {
    const bytes = numberOption(options, "memory");
    if (!isPowerOfTwo(bytes)) throw badMemory(bytes);
    return new DmaEngine(createSharedMemory(`${id}-bar2`, bytes));
  },
};

function badMemory(bytes: number): UsageError {
  return new UsageError(`dma-engine: a BAR of ${bytes} bytes`, {
    code: "BAD_OPTION",
    remedy: `give a power of two from ${LOCAL_BYTES.min} to ${LOCAL_BYTES.max}`,
  });
}
