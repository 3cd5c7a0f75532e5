import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { LogRange } from "../../devices/dma-log.js";
import {
  createLog,
  DmaLogging,
  type LoggedRange,
  type LogSource,
  noDmaLogging,
} from "../../devices/driver/dma-logging.js";
import type { BitmapQuery, DmaLoggingLimits } from "../../host/host.js";
import { iovaOf, PAGE_SIZE, U64_MAX } from "../../memory/address.js";
import { UapiError } from "../../uapi/errno.js";
import type { ClientMemory } from "./client-memory.js";
import { refusal } from "./refusal.js";

/** Who has started the log: a connection. There is one reader per tracker, and it is the one who started it. */
export interface DmaLogUser {
  readonly name: string;
}

/**
 * The DMA logging of a served device, over its own log in {@link ClientMemory}. The log belongs to the connection that
 * started it, and ends with it: another that read it would take its bits away.
 *
 * The specification gives 0 ranges a meaning that the kernel refuses: log everything. That is all that is mapped, and
 * what will be; the ranges grow with the mappings.
 */
export class ServedLog {
  readonly #memory: ClientMemory;
  readonly #limits: DmaLoggingLimits | null;
  readonly #logging: DmaLogging | null;
  #user: DmaLogUser | null = null;
  /** Everything is logged, by pages of this size; null: ranges are. */
  #everything: { readonly pageSize: number; ranges: readonly LoggedRange[] } | null = null;
  #granule = 0;

  constructor(memory: ClientMemory, limits: DmaLoggingLimits | null) {
    this.#memory = memory;
    this.#limits = limits;
    this.#logging = limits === null ? null : new DmaLogging(limits, logOf(memory));
  }

  /** What is logged, for a report; null: it is off. */
  get state(): { readonly granule: number; readonly ranges: readonly LogRange[]; readonly startedBy: string } | null {
    if (this.#user === null) return null;
    return { granule: this.#granule, ranges: this.#memory.log?.ranges ?? [], startedBy: this.#user.name };
  }

  get isSupported(): boolean {
    return this.#logging !== null;
  }

  /** What is mapped from now on has to be told to {@link mapped}. */
  get logsEverything(): boolean {
    return this.#everything !== null;
  }

  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_START; returns the granule. */
  async start(pageSize: number, ranges: readonly LoggedRange[], user: DmaLogUser): Promise<number> {
    const logging = this.#supported("start");
    if (ranges.length === 0 && this.#user === null) {
      const everything = this.#ranges(pageSize);
      // Nothing is mapped: a page that never will be stands for it, so that everything else is checked.
      this.#granule = await logging.start(
        pageSize,
        everything.length > 0 ? everything : [{ iova: 0n, length: BigInt(pageSize) }],
      );
      this.#everything = { pageSize, ranges: everything };
    } else this.#granule = await logging.start(pageSize, ranges);
    this.#user = user;
    return this.#granule;
  }

  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT */
  async report(query: BitmapQuery, user: DmaLogUser): Promise<void> {
    const logging = this.#supported("report");
    this.#checkUser(user, "read");
    // Nothing is in flight between two commands: a log that is readable only then is readable.
    await logging.report(query, true);
  }

  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP. Stopping what is off does nothing, as with mlx5. */
  async stop(user: DmaLogUser): Promise<void> {
    this.#supported("stop");
    this.#checkUser(user, "stop");
    await this.end();
  }

  /** A connection is over: its log ends. */
  async release(user: DmaLogUser): Promise<void> {
    if (this.#user === user) await this.end();
  }

  /** Ends the log, whoever has started it: the device was reset. */
  async end(): Promise<void> {
    this.#user = null;
    this.#everything = null;
    await this.#logging?.stop();
  }

  /**
   * A region was mapped: where everything is logged, it is logged from now on, too. Where the log has no room for it, the
   * log ends, and the next report is refused: an error means that all is dirty.
   */
  async mapped(): Promise<void> {
    // It may have been mapped in the middle of a DMA, whose mark is still to come: this goes on when that has ended.
    await null;
    try {
      await this.#extend();
    } catch (error) {
      if (!(error instanceof UapiError)) throw error;
      await this.end();
    }
  }

  async #extend(): Promise<void> {
    const everything = this.#everything;
    const old = this.#memory.log;
    if (everything === null || old === null || this.#logging === null) return;
    const ranges = this.#ranges(everything.pageSize, everything.ranges);
    if (same(ranges, everything.ranges)) return;
    await this.#logging.stop();
    await this.#logging.start(everything.pageSize, ranges);
    everything.ranges = ranges;
    const log = this.#memory.log;
    for (const { page, pages } of old.ranges) {
      const bits = new DirtyBitmap({
        iova: iovaOf(page),
        length: BigInt(pages) * BigInt(PAGE_SIZE),
        granule: old.granule,
      });
      old.readAndClearAlone(page, pages, bits);
      bits.forEachPageRun((first, count) => {
        for (let i = 0; i < count; i++) log?.mark(first + i);
      });
    }
  }

  #supported(operation: "start" | "report" | "stop"): DmaLogging {
    if (this.#logging === null) throw noDmaLogging(operation);
    return this.#logging;
  }

  #checkUser(user: DmaLogUser, what: string): void {
    if (this.#user === null || this.#user === user) return;
    throw refusal("EBUSY", "VFIO_DEVICE_FEATURE_DMA_LOGGING", `${what} the log`, `${this.#user.name} has started it`);
  }

  /** What is mapped, and `before`, as ranges that the device takes: rounded and merged outwards. */
  #ranges(pageSize: number, before: readonly LoggedRange[] = []): LoggedRange[] {
    const mapped = this.#memory.regions().map(({ page, pages }) => ({
      iova: iovaOf(page),
      length: BigInt(pages) * BigInt(PAGE_SIZE),
    }));
    return mergeOutwards([...before, ...mapped], BigInt(pageSize), this.#limits?.maxRanges ?? 1);
  }
}

function logOf(memory: ClientMemory): LogSource {
  return {
    async start(ranges, granule) {
      memory.log = createLog(ranges, granule);
    },
    async readAndClear(page, pages, { into }) {
      memory.log?.readAndClearAlone(page, pages, into);
    },
    async stop() {
      memory.log = null;
    },
  };
}

/** At most `most` ranges that begin and end at multiples of `pageSize` and hold these: the smallest gaps are closed. */
function mergeOutwards(ranges: readonly LoggedRange[], pageSize: bigint, most: number): LoggedRange[] {
  if (pageSize <= 0n) return [];
  const rounded = ranges
    .map(({ iova, length }) => {
      const start = iova - (iova % pageSize);
      const end = iova + length + pageSize - 1n;
      // The topmost page of the 64-bit space can't be said to be logged, there as in the kernel.
      return { start, end: end - (end % pageSize) > U64_MAX ? U64_MAX - (U64_MAX % pageSize) : end - (end % pageSize) };
    })
    .sort((a, b) => (a.start < b.start ? -1 : 1));
  const merged: { start: bigint; end: bigint }[] = [];
  for (const { start, end } of rounded) {
    const last = merged.at(-1);
    if (last === undefined || start > last.end) merged.push({ start, end });
    else if (end > last.end) last.end = end;
  }
  while (merged.length > most) {
    let at = 1;
    for (let i = 2; i < merged.length; i++) {
      if (merged[i].start - merged[i - 1].end < merged[at].start - merged[at - 1].end) at = i;
    }
    merged[at - 1].end = merged[at].end;
    merged.splice(at, 1);
  }
  return merged.map(({ start, end }) => ({ iova: start, length: end - start }));
}

function same(a: readonly LoggedRange[], b: readonly LoggedRange[]): boolean {
  return a.length === b.length && a.every(({ iova, length }, i) => iova === b[i].iova && length === b[i].length);
}
