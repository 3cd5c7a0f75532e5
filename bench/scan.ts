import type { EmulatedDomain } from "../src/emulated/iommu/domain.js";
import { ADDRESS_LOW, ENTRIES, indexOf } from "../src/emulated/iommu/format.js";
import { FORMATS } from "../src/emulated/iommu/formats.js";
import { type Summary, summarize } from "../src/evidence/statistics.js";
import type { IommuFormatName } from "../src/host/description.js";
import { GiB, MiB, PAGE_SIZE, TiB } from "../src/memory/address.js";
import { openArena } from "../src/memory/arena.js";
import { ALL_FORMATS, bitmapOf, TestBench } from "../test/support/iommu.js";

/*
 * How fast dirty bits are read and cleared from page tables with 4 KiB leaves, next to how fast the same memory streams.
 * Frames repeat: what counts is the table, and a TiB of it takes 2 GiB.
 */

export interface ScanOptions {
  /** Bytes mapped, each a power of two from 64 MiB on. */
  readonly sizes?: readonly number[];
  readonly formats?: readonly IommuFormatName[];
  /** Shares of pages that are dirty, 0 to 1. */
  readonly shares?: readonly number[];
  readonly repetitions?: number;
}

/** One measurement of readAndClear. */
export interface ScanRow {
  readonly bench: "scan";
  readonly format: IommuFormatName;
  readonly mappedBytes: number;
  /** Share of pages that were dirty. */
  readonly dirty: number;
  /** Of the whole operation: scan, flush, drain. */
  readonly ms: Summary;
  /** Processor time of the same. The figures that follow are of its median: what else the machine does adds less to it. */
  readonly cpuMs: Summary;
  readonly nsPerIopte: number;
  /** How fast the page table was read, and how fast the same memory streams through memcmp. GB are 10^9 bytes. */
  readonly gbPerSecond: number;
  readonly streamGbPerSecond: number;
}

const RAM_BYTES = 64 * MiB;

/** Measures readAndClear for each format, size and share. */
export async function run(options: ScanOptions = {}): Promise<ScanRow[]> {
  const sizes = options.sizes ?? [GiB, 16 * GiB, 128 * GiB, TiB];
  const shares = options.shares ?? [0, 0.001, 0.01, 0.1, 1];
  const rows: ScanRow[] = [];
  for (const format of options.formats ?? ALL_FORMATS) {
    for (const mappedBytes of sizes) {
      const pages = mappedBytes / PAGE_SIZE;
      const tableBytes = pages * 8 * (1 + 2 / ENTRIES) + 4 * MiB;
      await using bench = new TestBench({ format, ramBytes: RAM_BYTES, tableBytes, reading: "by-size" });
      const domain = bench.iommu.allocDomain({ dirtyTracking: true });
      for (let page = 0; page < pages; page += RAM_BYTES / PAGE_SIZE) {
        bench.map(domain, page, 0, RAM_BYTES / PAGE_SIZE, false);
      }
      await bench.iommu.attach(0, domain);
      await domain.setDirtyTracking(true);
      const tables = openArena(bench.wiring(0).tables);
      const streamed: number[] = [];
      const into = bitmapOf(0, pages);
      for (const dirty of shares) {
        const times: number[] = [];
        const cpuTimes: number[] = [];
        for (let repetition = -1; repetition < (options.repetitions ?? 5); repetition++) {
          streamed.push(stream(tables.u8, pages * 8));
          const marked = mark(tables.i32, domain, format, pages, dirty);
          into.clear();
          const cpu = process.cpuUsage();
          const start = performance.now();
          await domain.readDirty({ page: 0, pages, into, clear: true });
          const ms = performance.now() - start;
          const { user, system } = process.cpuUsage(cpu);
          if (into.count() !== marked) throw new Error(`${into.count()} pages were read, ${marked} were dirty`);
          // The first one warms up.
          if (repetition < 0) continue;
          times.push(ms);
          cpuTimes.push((user + system) / 1000);
        }
        const ms = summarize(times);
        const cpuMs = summarize(cpuTimes);
        rows.push({
          bench: "scan",
          format,
          mappedBytes,
          dirty,
          ms,
          cpuMs,
          nsPerIopte: (cpuMs.median * 1e6) / pages,
          gbPerSecond: (pages * 8) / (cpuMs.median * 1e6),
          streamGbPerSecond: summarize(streamed).median,
        });
      }
    }
  }
  return rows;
}

/** Makes a random share of the pages dirty, as a walker would; returns how many. */
function mark(words: Int32Array, domain: EmulatedDomain, name: IommuFormatName, pages: number, share: number): number {
  if (share === 0) return 0;
  const format = FORMATS[name];
  const threshold = share * 2 ** 32;
  let random = 0x2545f491;
  let marked = 0;
  for (let page = 0; page < pages; page += ENTRIES) {
    let table = domain.table.root;
    for (let level = 4; level > 1; level--) {
      table = (words[(table >>> 2) + indexOf(page, level) * 2] & ADDRESS_LOW) >>> 0;
    }
    for (let at = table >>> 2; at < (table >>> 2) + ENTRIES * 2; at += 2) {
      random ^= random << 13;
      random ^= random >>> 17;
      random ^= random << 5;
      if (random >>> 0 >= threshold) continue;
      words[at] = format.recorded(words[at], true);
      marked++;
    }
  }
  return marked;
}

/** GB/s at which memory is read through once: memcmp of it with itself, so that each line comes from memory once. */
function stream(memory: Uint8Array<SharedArrayBuffer>, bytes: number): number {
  const size = Math.min(bytes, 512 * MiB);
  const one = Buffer.from(memory.buffer, 0, size);
  const other = Buffer.from(memory.buffer, 0, size);
  const start = process.cpuUsage();
  if (one.compare(other) !== 0) throw new Error("the page table changed while nothing was running");
  const { user, system } = process.cpuUsage(start);
  return size / ((user + system) * 1e3);
}
