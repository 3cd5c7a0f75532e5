import type { MigrationInfo } from "../qmp/qemu.js";

/*
 * What QEMU tells of its migration at one moment. The figures that are compared are made here, once.
 */

/** Of x86; QEMU tells its own. */
const DEFAULT_PAGE_BYTES = 4096;

/** One answer of `query-migrate`, in bytes and milliseconds. */
export interface Sample {
  /** When it was answered, by the watch's clock. */
  readonly atMs: number;
  /** Passes over memory that were begun; QEMU's `dirty-sync-count`. */
  readonly pass: number;
  /** Sent, devices' states included. */
  readonly sentBytes: number;
  /** Of devices' states: a sum over all of them; null: QEMU tells none. */
  readonly deviceBytes: number | null;
  /** What is left of the whole system. */
  readonly remainingBytes: number;
  /** Of memory alone. */
  readonly memoryBytes: number;
  /** Bytes of pages that QEMU has taken off its list, zero pages included. */
  readonly handledBytes: number;
  readonly zeroPages: number;
  readonly pages: number;
  /** By QEMU's own measure, over the last pass; null: not known yet. */
  readonly dirtyBytesPerSecond: number | null;
  readonly expectedDowntimeMs: number | null;
}

/** Null where QEMU tells nothing of memory: before the migration, and after one that was cancelled or has failed. */
export function sampleOf(info: MigrationInfo, atMs: number): Sample | null {
  const { ram } = info;
  if (ram === undefined) return null;
  const pageBytes = ram["page-size"] ?? DEFAULT_PAGE_BYTES;
  const [normal, duplicate] = [ram.normal ?? 0, ram.duplicate ?? 0];
  const deviceBytes = info.vfio?.transferred ?? null;
  const dirtyPages = ram["dirty-pages-rate"] ?? 0;
  const pass = ram["dirty-sync-count"] ?? 0;
  return {
    atMs,
    pass,
    sentBytes: ram.transferred + (deviceBytes ?? 0),
    deviceBytes,
    // QEMU updates its sum over the whole system less often than memory's part of it.
    remainingBytes: Math.max(ram.remaining, info.remaining ?? 0),
    memoryBytes: ram.remaining,
    handledBytes: (normal + duplicate) * pageBytes,
    zeroPages: duplicate,
    pages: normal + duplicate,
    // Until the second pass begins, QEMU has measured nothing, and says 0.
    dirtyBytesPerSecond: pass < 2 ? null : dirtyPages * pageBytes,
    expectedDowntimeMs: info["expected-downtime"] ?? null,
  };
}
