import {
  checkDmaLoggingReport,
  checkDmaLoggingStart,
  checkLogPageSize,
  LOG_IS_OFF,
  LOG_IS_ON,
  type LoggedRange,
} from "../../host/dma-logging-checks.js";
import type { BitmapQuery, DmaLoggingLimits } from "../../host/host.js";
import { refuse } from "../../host/iommufd-checks.js";
import { hex, PAGE_SIZE, pageOf } from "../../memory/address.js";
import { UapiError } from "../../uapi/errno.js";
import { DmaLog, type LogRange } from "../dma-log.js";

/*
 * VFIO_DEVICE_FEATURE_DMA_LOGGING_START, _REPORT and _STOP in a driver: what it refuses after the kernel has checked
 * (host/dma-logging-checks.ts), and who keeps the log: the device itself, or an mdev's pins.
 */

const START = "VFIO_DEVICE_FEATURE_DMA_LOGGING_START";
const REPORT = "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT";

/** Where a device's log comes from. */
export interface LogSource {
  /** Every DMA that begins after its resolution and writes inside the ranges is reported. */
  start(ranges: readonly LogRange[], granule: number): Promise<void>;
  /** The same, of all that it writes. Absent: it needs ranges. */
  startAll?(granule: number): Promise<void>;
  /** Moves what was logged of these pages into the bitmap; resolves when DMA whose bits were taken has landed. */
  readAndClear(page: number, pages: number, query: BitmapQuery): Promise<void>;
  stop(): Promise<void>;
}

/** A device's DMA logging: off, or on with its ranges. */
export class DmaLogging {
  readonly #limits: DmaLoggingLimits;
  readonly #source: LogSource;
  #ranges: readonly LogRange[] | null = null;

  constructor(limits: DmaLoggingLimits, source: LogSource) {
    this.#limits = limits;
    this.#source = source;
  }

  /** What is logged; null: it is off. */
  get ranges(): readonly LogRange[] | null {
    return this.#ranges;
  }

  /** Returns the page size that the device chose: the largest it has up to the hint, or else its smallest. */
  async start(pageSize: number, ranges: readonly LoggedRange[]): Promise<number> {
    const { pageSizes, maxRanges, addressWidth } = this.#limits;
    const call = { syscall: START, attempted: `log ${ranges.length} ranges by ${pageSize} bytes` };
    const sorted = checkDmaLoggingStart(pageSize, ranges, call);
    if (this.#ranges !== null) refuse("EINVAL", call, LOG_IS_ON);
    if (ranges.length > maxRanges) refuse("E2BIG", call, `give at most ${maxRanges} ranges: merge them, outwards`);
    const end = sorted.at(-1);
    const limit = 1n << BigInt(addressWidth);
    if (end !== undefined && end.iova + end.length > limit) {
      refuse("EOPNOTSUPP", call, `end ranges below ${hex(limit)}: its log covers ${addressWidth} bits`);
    }
    const granule = granuleFor(pageSize, pageSizes);
    const pages = wholePages(sorted);
    await this.#source.start(pages, granule);
    this.#ranges = pages;
    return granule;
  }

  /**
   * {@link start} without ranges, which the kernel has not and vfio-user has: all that the device can reach. The caller has
   * it reach nothing behind its `addressWidth`.
   */
  async startAll(pageSize: number): Promise<number> {
    const call = { syscall: START, attempted: `log everything by ${pageSize} bytes` };
    checkLogPageSize(pageSize, call);
    if (this.#ranges !== null) refuse("EINVAL", call, LOG_IS_ON);
    const granule = granuleFor(pageSize, this.#limits.pageSizes);
    await (this.#source.startAll?.(granule) ?? refuse("EOPNOTSUPP", call, "give ranges"));
    this.#ranges = [{ page: 0, pages: 2 ** this.#limits.addressWidth / PAGE_SIZE }];
    return granule;
  }

  /** @param quiet true while the device does no DMA: what a log needs that can be read only then */
  async report(query: BitmapQuery, quiet: boolean): Promise<void> {
    const { iova, length, pageSize } = query;
    const call = { syscall: REPORT, attempted: `read the log of ${hex(length)} bytes at ${hex(iova)} by ${pageSize}` };
    checkDmaLoggingReport(query, call);
    if (this.#ranges === null) return refuse("EINVAL", call, LOG_IS_OFF);
    if (this.#limits.readableWhen === "quiesced" && !quiet) {
      refuse("EBUSY", call, "its log can be read only when it does no DMA: quiesce or stop it");
    }
    if (length === 0n) return;
    const first = pageOf(iova);
    const end = pageOf(iova + length - 1n) + 1;
    for (const range of this.#ranges) {
      const from = Math.max(first, range.page);
      const to = Math.min(end, range.page + range.pages);
      if (from < to) await this.#source.readAndClear(from, to - from, query);
    }
  }

  /** Stopping what is off does nothing, as with mlx5. */
  async stop(): Promise<void> {
    if (this.#ranges === null) return;
    this.#ranges = null;
    await this.#source.stop();
  }
}

/** A log in the memory of the device itself. */
export function deviceLogSource(device: {
  setLog(log: ReturnType<DmaLog["posted"]> | null): Promise<void>;
  /** Makes the device forget which pages it has marked; resolves when DMA in flight has landed. */
  flush(): Promise<void>;
}): LogSource {
  let log: DmaLog | null = null;
  return {
    async start(ranges, granule) {
      log = createLog(ranges, granule);
      await device.setLog(log.posted());
    },
    async readAndClear(page, pages, { into }) {
      log?.readAndClear(page, pages, into);
      await device.flush();
    },
    async stop() {
      await device.setLog(null);
      log = null;
    },
  };
}

/** @throws UapiError ENOMEM for ranges that need a larger log than the device has memory for */
export function createLog(ranges: readonly LogRange[], granule: number): DmaLog {
  try {
    return DmaLog.create(ranges, granule);
  } catch (cause) {
    throw new UapiError("ENOMEM", {
      syscall: START,
      attempted: `log ${ranges.length} ranges by ${granule} bytes`,
      remedy: "give smaller ranges, or a larger page size",
      cause,
    });
  }
}

/** The largest that there is up to a hint, or else the smallest. */
function granuleFor(pageSize: number, pageSizes: readonly number[]): number {
  return pageSizes.filter((size) => size <= pageSize).at(-1) ?? pageSizes[0];
}

/** Sorted ranges as pages, rounded outwards; what touches then becomes one. */
function wholePages(sorted: readonly LoggedRange[]): LogRange[] {
  const result: { page: number; pages: number }[] = [];
  for (const { iova, length } of sorted) {
    const page = pageOf(iova);
    const end = pageOf(iova + length - 1n) + 1;
    const previous = result.at(-1);
    if (previous !== undefined && page < previous.page + previous.pages) {
      previous.pages = end - previous.page;
    } else result.push({ page, pages: end - page });
  }
  return result;
}
