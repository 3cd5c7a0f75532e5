import { savedCount } from "../records.js";
import { FIRMWARE, padded } from "./identity.js";
import { ERROR_LOG_ENTRIES } from "./limits.js";
import { LOG } from "./spec.js";

const ERROR_ENTRY = 64;
const SMART_BYTES = 512;
const FIRMWARE_SLOT_BYTES = 512;

/** Kelvin: a disk that never gets warm. */
const TEMPERATURE = 300;
const SPARE_THRESHOLD = 10;
/** SMART counts data in thousands of 512 bytes. */
const DATA_UNIT_BYTES = 512_000;

/** What a disk has done; SMART (5.14.1.2) tells it. */
const SMART_COUNTERS = ["bytesRead", "bytesWritten", "reads", "writes", "mediaErrors", "errorEntries"] as const;
type SmartCounter = (typeof SMART_COUNTERS)[number];

/** A command that failed. */
export interface CommandError {
  readonly queue: number;
  readonly cid: number;
  readonly status: number;
  readonly phase: number;
  /** All 64 bits of what the guest gave as the first block. */
  readonly lba: bigint;
  readonly nsid: number;
}

export const LOGS_BYTES = SMART_COUNTERS.length * 8 + ERROR_LOG_ENTRIES * ERROR_ENTRY;

/** The log pages (5.14.1), and what they are made from. */
export class Logs {
  readonly counts: Record<SmartCounter, number> = {
    bytesRead: 0,
    bytesWritten: 0,
    reads: 0,
    writes: 0,
    mediaErrors: 0,
    errorEntries: 0,
  };
  /** The newest first, as the log page wants it. */
  readonly #errors = Buffer.alloc(ERROR_LOG_ENTRIES * ERROR_ENTRY);

  addError({ queue, cid, status, phase, lba, nsid }: CommandError): void {
    this.#errors.copyWithin(ERROR_ENTRY, 0);
    this.#errors.fill(0, 0, ERROR_ENTRY);
    this.#errors.writeBigUInt64LE(BigInt(++this.counts.errorEntries), 0);
    this.#errors.writeUInt16LE(queue, 8);
    this.#errors.writeUInt16LE(cid, 10);
    this.#errors.writeUInt16LE((status << 1) | phase, 12);
    // Parameter Error Location: not told.
    this.#errors.writeUInt16LE(0xffff, 14);
    this.#errors.writeBigUInt64LE(lba, 16);
    this.#errors.writeUInt32LE(nsid, 24);
  }

  /** A log page, or null for one that there isn't. */
  page(id: number): Uint8Array | null {
    switch (id) {
      case LOG.ERROR:
        return this.#errors;
      case LOG.SMART:
        return this.#smart();
      case LOG.FIRMWARE_SLOT: {
        const page = Buffer.alloc(FIRMWARE_SLOT_BYTES);
        page[0] = 1; // AFI: slot 1 is active
        padded(page, 8, 8, FIRMWARE);
        return page;
      }
      default:
        return null;
    }
  }

  /** A controller level reset empties the error log; what the disk has done stays. */
  reset(): void {
    this.#errors.fill(0);
  }

  save(): Uint8Array {
    const data = Buffer.alloc(LOGS_BYTES);
    for (const [i, name] of SMART_COUNTERS.entries()) data.writeBigUInt64LE(BigInt(this.counts[name]), i * 8);
    this.#errors.copy(data, SMART_COUNTERS.length * 8);
    return data;
  }

  /** @throws DirtmapError `BAD_DEVICE_STATE` for counts that no disk reaches, and that numbers can't hold */
  load(data: Uint8Array): void {
    const view = new DataView(data.buffer, data.byteOffset);
    for (const [i, name] of SMART_COUNTERS.entries()) this.counts[name] = savedCount(view.getBigUint64(i * 8, true));
    this.#errors.set(data.subarray(SMART_COUNTERS.length * 8));
  }

  #smart(): Uint8Array {
    const page = Buffer.alloc(SMART_BYTES);
    const { counts } = this;
    page.writeUInt16LE(TEMPERATURE, 1);
    page[3] = 100; // Available Spare, in percent
    page[4] = SPARE_THRESHOLD;
    const put = (at: number, value: number) => page.writeBigUInt64LE(BigInt(value), at);
    put(32, Math.ceil(counts.bytesRead / DATA_UNIT_BYTES));
    put(48, Math.ceil(counts.bytesWritten / DATA_UNIT_BYTES));
    put(64, counts.reads);
    put(80, counts.writes);
    put(160, counts.mediaErrors);
    put(176, counts.errorEntries);
    return page;
  }
}
