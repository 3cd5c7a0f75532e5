import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { LogRange } from "../../devices/dma-log.js";
import { SparseLog } from "../../devices/sparse-log.js";
import { createLog, DmaLogging, type LogSource } from "../../devices/variant-driver/dma-logging.js";
import { type LoggedRange, noDmaLogging } from "../../host/dma-logging-checks.js";
import type { BitmapQuery, DmaLoggingLimits } from "../../host/host.js";
import { hex, iovaOf, type PageNumber } from "../../memory/address.js";
import type { UapiError } from "../../uapi/errno.js";
import type { ClientMemory } from "./client-memory.js";
import { refusal } from "./refusal.js";

/** Who has started the log: a connection. There is one reader per tracker, and it is the one who started it. */
export interface DmaLogUser {
  readonly name: string;
}

/** The log of a device's DMA, whoever keeps it. */
export interface DmaLog {
  /** What is logged, for a report; null: it is off. */
  readonly state: { readonly granule: number; readonly ranges: readonly LogRange[]; readonly startedBy: string } | null;
  readonly isSupported: boolean;
  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_START; returns the granule. */
  start(pageSize: number, ranges: readonly LoggedRange[], user: DmaLogUser): Promise<number>;
  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT */
  report(query: BitmapQuery, user: DmaLogUser): Promise<void>;
  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP */
  stop(user: DmaLogUser): Promise<void>;
  /** A connection is over: its log ends. */
  release(user: DmaLogUser): Promise<void>;
  /** Ends the log, whoever has started it: the device was reset. */
  end(): Promise<void>;
}

/**
 * The DMA logging of a served device, over its own log in {@link ClientMemory}. The log belongs to the connection that
 * started it, and ends with it: another that read it would take its bits away.
 *
 * The specification gives 0 ranges a meaning that the kernel refuses: log everything. That is all that the device writes,
 * wherever it is mapped by then.
 */
export class ServedLog implements DmaLog {
  readonly #memory: ClientMemory;
  readonly #logging: DmaLogging | null;
  /** The first address that the device's log does not cover. */
  readonly #end: bigint;
  #user: DmaLogUser | null = null;
  /** What is logged is not ranges, but everything. */
  #everything = false;
  #granule = 0;

  constructor(memory: ClientMemory, limits: DmaLoggingLimits | null) {
    this.#memory = memory;
    this.#end = 1n << BigInt(limits?.addressWidth ?? 0);
    this.#logging = limits === null ? null : new DmaLogging(limits, logOf(memory));
  }

  get state(): DmaLog["state"] {
    if (this.#user === null) return null;
    const ranges = this.#everything ? this.#memory.regions() : (this.#logging?.ranges ?? []);
    return { granule: this.#granule, ranges, startedBy: this.#user.name };
  }

  get isSupported(): boolean {
    return this.#logging !== null;
  }

  async start(pageSize: number, ranges: readonly LoggedRange[], user: DmaLogUser): Promise<number> {
    const logging = this.#supported("start");
    const everything = ranges.length === 0;
    if (everything && this.#memory.regions().some((region) => !this.#reaches(region))) {
      const remedy = `map nothing from ${hex(this.#end)} on: its log ends there`;
      throw refusal("EOPNOTSUPP", "VFIO_DEVICE_FEATURE_DMA_LOGGING_START", "log everything that is mapped", remedy);
    }
    this.#granule = everything ? await logging.startAll(pageSize) : await logging.start(pageSize, ranges);
    this.#everything = everything;
    this.#user = user;
    return this.#granule;
  }

  async report(query: BitmapQuery, user: DmaLogUser): Promise<void> {
    const logging = this.#supported("report");
    checkLogUser(this.#user, user, "read");
    // Nothing is in flight between two commands: a log that is readable only then is readable.
    await logging.report(query, true);
  }

  /** Stopping what is off does nothing, as with mlx5. */
  async stop(user: DmaLogUser): Promise<void> {
    this.#supported("stop");
    checkLogUser(this.#user, user, "stop");
    await this.end();
  }

  async release(user: DmaLogUser): Promise<void> {
    if (this.#user === user) await this.end();
  }

  async end(): Promise<void> {
    this.#user = null;
    this.#everything = false;
    await this.#logging?.stop();
  }

  /**
   * False for a region in which the device's writes would go unlogged, where everything is to be logged: its log does not
   * reach as far. The caller ends the log, so that the next report is refused: an error means that all is dirty.
   */
  covers(region: LogRange): boolean {
    return !this.#everything || this.#reaches(region);
  }

  #reaches({ page, pages }: LogRange): boolean {
    return iovaOf(page + pages) <= this.#end;
  }

  #supported(operation: "start" | "report" | "stop"): DmaLogging {
    if (this.#logging === null) throw noDmaLogging(operation);
    return this.#logging;
  }
}

/** @throws UapiError EBUSY for a log that another connection has started */
export function checkLogUser(started: DmaLogUser | null, user: DmaLogUser, what: string): void {
  if (started === null || started === user) return;
  throw refusal("EBUSY", "VFIO_DEVICE_FEATURE_DMA_LOGGING", `${what} the log`, `${started.name} has started it`);
}

function logOf(memory: ClientMemory): LogSource {
  let read: (page: PageNumber, pages: number, into: DirtyBitmap) => void = () => {};
  return {
    async start(ranges, granule) {
      const log = createLog(ranges, granule);
      memory.log = log;
      read = (page, pages, into) => log.readAndClearAlone(page, pages, into);
    },
    async startAll(granule) {
      const log = new SparseLog(granule);
      memory.log = log;
      read = (page, pages, into) => {
        if (log.lost) throw lostMarks();
        log.readAndClear(page, pages, into);
      };
    },
    async readAndClear(page, pages, { into }) {
      read(page, pages, into);
    },
    async stop() {
      memory.log = null;
      read = () => {};
    },
  };
}

function lostMarks(): UapiError {
  return refusal(
    "ENOMEM",
    "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT",
    "tell all that was written, in more places than the log has memory for",
    "take all for dirty, and start the log anew with ranges or a larger page size",
  );
}
