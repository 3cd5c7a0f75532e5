import { DmaLog } from "../src/devices/dma-log.js";
import { ADDRESS_LOW, indexOf } from "../src/emulated/iommu/format.js";
import { FORMATS } from "../src/emulated/iommu/formats.js";
import type { IommuFormatName } from "../src/host/description.js";
import { MiB, PAGE_SIZE } from "../src/memory/address.js";
import { openArena } from "../src/memory/arena.js";
import { bitmapOf, TestBench } from "../test/support/iommu.js";

/*
 * What tracking costs the DMA path: writes per second with tracking off and on, with a log in the device, and, to
 * compare with, with a walker that sets the dirty bit at each write instead of testing it first. Ways take turns in short
 * rounds of processor time, and the fastest round of each counts: what else the machine does only ever adds.
 */

export interface DmaOptions {
  readonly format?: IommuFormatName;
  /** Bytes per DMA write, up to 256. */
  readonly bytes?: number;
  readonly rounds?: number;
}

/** One way to do DMA. */
export interface DmaRow {
  readonly bench: "dma";
  readonly format: IommuFormatName;
  readonly tracking: "off" | "iommu" | "device-log" | "always-set";
  readonly bytesPerWrite: number;
  /** Per second of processor time of the device's thread. */
  readonly writesPerSecond: number;
  /** Writes per second less than with tracking off, as a share. */
  readonly cost: number;
}

/** Four times what the IOTLB holds, so that there are walks, and little enough for the caches, so that they show. */
const RAM_BYTES = 4 * MiB;
const PAGES = RAM_BYTES / PAGE_SIZE;
/** Several writes to each page in turn, as a device fills buffers. */
const WRITES_PER_PAGE = 16;
/** A few milliseconds; then the dirty bits are read and cleared, and the next way has its turn. */
const WRITES_PER_ROUND = 20_000;

/** Measures DMA writes per second. */
export async function run({ format = "amd-v1", bytes = 256, rounds = 100 }: DmaOptions = {}): Promise<DmaRow[]> {
  await using bench = new TestBench({ format, ramBytes: RAM_BYTES, iotlb: 256 });
  const domain = bench.iommu.allocDomain({ dirtyTracking: true });
  bench.map(domain, 0, 0, PAGES, false);
  await bench.iommu.attach(0, domain);
  const words = openArena(bench.wiring(0).tables).i32;
  const entries = Int32Array.from({ length: PAGES }, (_, page) => {
    let table = domain.table.root;
    for (let level = 4; level > 1; level--) {
      table = (words[(table >>> 2) + indexOf(page, level) * 2] & ADDRESS_LOW) >>> 0;
    }
    return (table >>> 2) + indexOf(page, 1) * 2;
  });
  const recorded = FORMATS[format].recorded(0, true);
  const plain = bench.port(0);
  const logging = bench.port(0);
  const log = DmaLog.create([{ page: 0, pages: PAGES }], PAGE_SIZE);
  logging.log = log;
  const setting = bench.port(0, {
    afterTranslate: (page) => {
      Atomics.or(words, entries[page], recorded);
    },
  });
  const ways = [
    { tracking: "off", port: plain, on: false },
    { tracking: "iommu", port: plain, on: true },
    { tracking: "device-log", port: logging, on: false },
    { tracking: "always-set", port: setting, on: true },
  ] as const;
  const source = new Uint8Array(PAGE_SIZE);
  const into = bitmapOf(0, PAGES);
  const best = ways.map(() => Number.POSITIVE_INFINITY);
  for (let round = 0; round < rounds + 5; round++) {
    for (const [way, { port, on, tracking }] of ways.entries()) {
      await domain.setDirtyTracking(on);
      const start = process.cpuUsage();
      for (let write = 0; write < WRITES_PER_ROUND; write++) {
        const offset = (write % WRITES_PER_PAGE) * (PAGE_SIZE / WRITES_PER_PAGE);
        port.write(Math.floor(write / WRITES_PER_PAGE) % PAGES, offset, source, 0, bytes);
      }
      const { user, system } = process.cpuUsage(start);
      const ms = (user + system) / 1000;
      if (on) await domain.readDirty({ page: 0, pages: PAGES, into, clear: true });
      else if (tracking === "device-log") {
        log.readAndClear(0, PAGES, into);
        bench.inFlight.flush(0);
      }
      // The first rounds warm up.
      if (round >= 5) best[way] = Math.min(best[way], ms);
    }
  }
  return ways.map(({ tracking }, way) => ({
    bench: "dma",
    format,
    tracking,
    bytesPerWrite: bytes,
    writesPerSecond: (WRITES_PER_ROUND / best[way]) * 1000,
    cost: 1 - best[0] / best[way],
  }));
}
