import { SharedLog } from "../src/bitmap/shared-log.js";
import { DmaLog } from "../src/devices/dma-log.js";
import { interleave, type Summary, summarize } from "../src/evidence/statistics.js";
import { PinLog } from "../src/iommufd/pin-log.js";
import { GiB, PAGE_SIZE } from "../src/memory/address.js";
import { bitmapOf } from "../test/support/iommu.js";

/*
 * What the logs cost to read and clear that are no page table: a device's own (DMA_LOGGING_REPORT), the vCPUs' and the
 * one that mdevs share (both a SharedLog), and an mdev's pins. Dirty pages come in runs of 16, as buffers do.
 */

export interface LogOptions {
  /** Bytes that the log spans. */
  readonly sizes?: readonly number[];
  /** Shares of pages that are dirty, 0 to 1. */
  readonly shares?: readonly number[];
  readonly repetitions?: number;
}

export interface LogRow {
  readonly bench: "logs";
  readonly tracker: "device" | "cpu, mdev-shared" | "pinned";
  readonly spanBytes: number;
  readonly dirty: number;
  readonly ms: Summary;
  /** Per dirty page, of the median; null where none is dirty. */
  readonly nsPerDirtyPage: number | null;
}

const RUN_PAGES = 16;

/** Measures readAndClear of each log. */
export async function run(options: LogOptions = {}): Promise<LogRow[]> {
  const rows: LogRow[] = [];
  for (const spanBytes of options.sizes ?? [GiB, 16 * GiB]) {
    const pages = spanBytes / PAGE_SIZE;
    const into = bitmapOf(0, pages);
    const device = DmaLog.create([{ page: 0, pages }], PAGE_SIZE);
    const shared = SharedLog.create(pages);
    const pins = new PinLog();
    pins.start();
    const logs = [
      {
        tracker: "device",
        mark: (page: number) => {
          for (let i = 0; i < RUN_PAGES; i++) device.mark(page + i);
        },
        read: () => device.readAndClear(0, pages, into),
      },
      {
        tracker: "cpu, mdev-shared",
        mark: (page: number) => {
          for (let i = 0; i < RUN_PAGES; i++) shared.mark(page + i);
        },
        read: () => shared.readAndClear(0, pages, into.words, 0),
      },
      {
        tracker: "pinned",
        mark: (page: number) => {
          pins.pin(page, RUN_PAGES, true);
          pins.unpin(page, RUN_PAGES);
        },
        read: () => pins.readAndClear({ firstPage: 0, pages, into }),
      },
    ] as const;
    for (const dirty of options.shares ?? [0, 0.001, 0.01, 0.1, 1]) {
      const times = await interleave(
        logs.map(({ mark, read }) => async () => {
          const marked = markEvenly(pages, dirty, mark);
          into.clear();
          const start = performance.now();
          read();
          const ms = performance.now() - start;
          if (into.count() !== marked) throw new Error(`${into.count()} pages were read, ${marked} were dirty`);
          return ms;
        }),
        options.repetitions ?? 5,
      );
      const marked = markEvenly(pages, dirty, () => {});
      logs.forEach(({ tracker }, index) => {
        const ms = summarize(times[index]);
        const nsPerDirtyPage = marked === 0 ? null : (ms.median * 1e6) / marked;
        rows.push({ bench: "logs", tracker, spanBytes, dirty, ms, nsPerDirtyPage });
      });
    }
  }
  return rows;
}

/** Calls `mark` with the first page of every run that is to be dirty; returns how many pages these are. */
function markEvenly(pages: number, share: number, mark: (page: number) => void): number {
  let marked = 0;
  for (let run = 0; run < pages / RUN_PAGES; run++) {
    if (Math.floor((run + 1) * share) === Math.floor(run * share)) continue;
    mark(run * RUN_PAGES);
    marked += RUN_PAGES;
  }
  return marked;
}
