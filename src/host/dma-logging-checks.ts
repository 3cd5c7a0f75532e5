import { type Iova, isPowerOfTwo, PAGE_SIZE, U64_MAX } from "../memory/address.js";
import { UapiError } from "../uapi/errno.js";
import { vfio_device_feature_dma_logging_range } from "../uapi/vfio.js";
import type { BitmapQuery } from "./host.js";
import { type Call, refuse } from "./iommufd-checks.js";

/*
 * What DMA_LOGGING_START and _REPORT refuse, whatever the device: the same on every host, as Linux does in
 * drivers/vfio/vfio_main.c, and with its errnos.
 */

/** Ranges that fit in a page: what the kernel takes at most in one DMA_LOGGING_START (LOG_MAX_RANGES). */
export const MAX_LOGGED_RANGES = PAGE_SIZE / vfio_device_feature_dma_logging_range.size;

/** A stretch of IOVAs that DMA_LOGGING_START is given. */
export interface LoggedRange {
  readonly iova: Iova;
  readonly length: bigint;
}

/**
 * What DMA_LOGGING_START refuses: EINVAL for no range, an empty one, one that begins or ends inside a page, or two that
 * overlap; E2BIG for too many; EOVERFLOW beyond 64 bits. A start while the log is on is for the caller to refuse.
 * @returns the ranges, sorted
 */
export function checkDmaLoggingStart(pageSize: number, ranges: readonly LoggedRange[], call: Call): LoggedRange[] {
  if (ranges.length === 0) refuse("EINVAL", call, "give at least one range");
  if (ranges.length > MAX_LOGGED_RANGES) {
    refuse("E2BIG", call, `give at most ${MAX_LOGGED_RANGES} ranges: merge them, outwards`);
  }
  checkLogPageSize(pageSize, call);
  const unit = BigInt(pageSize);
  for (const { iova, length } of ranges) {
    if (iova < 0n || length <= 0n || iova % unit !== 0n || length % unit !== 0n) {
      refuse("EINVAL", call, `begin and end ranges at multiples of ${pageSize}`);
    }
    if (iova + length > U64_MAX) refuse("EOVERFLOW", call, "end ranges below 2^64");
  }
  const sorted = [...ranges].sort((a, b) => (a.iova < b.iova ? -1 : 1));
  const overlaps = sorted.some(({ iova }, i) => i > 0 && iova < sorted[i - 1].iova + sorted[i - 1].length);
  if (overlaps) refuse("EINVAL", call, "give ranges that don't overlap");
  return sorted;
}

/** That bytes per bit are a power of two. @throws UapiError EINVAL */
export function checkLogPageSize(pageSize: number, call: Call): void {
  if (!Number.isSafeInteger(pageSize) || !isPowerOfTwo(pageSize)) {
    refuse("EINVAL", call, "give a power of two as page size");
  }
}

/** What DMA_LOGGING_REPORT refuses of its range: EINVAL for a page size below 4 KiB, EOVERFLOW beyond 64 bits. */
export function checkDmaLoggingRange({ iova, length, pageSize }: Omit<BitmapQuery, "into">, call: Call): void {
  if (!Number.isSafeInteger(pageSize) || !isPowerOfTwo(pageSize) || pageSize < PAGE_SIZE) {
    refuse("EINVAL", call, `give a power of two from ${PAGE_SIZE} on as page size`);
  }
  if (iova < 0n || length < 0n || iova + length > U64_MAX) refuse("EOVERFLOW", call, "end the range below 2^64");
}

/** What DMA_LOGGING_REPORT refuses, of its range and of the caller's bitmap. A log that is off is for the caller to refuse. */
export function checkDmaLoggingReport(query: BitmapQuery, call: Call): void {
  checkDmaLoggingRange(query, call);
  const { iova, length, pageSize, into } = query;
  if (into.granule !== pageSize || into.iova > iova || into.iova + into.length < iova + length) {
    refuse("EINVAL", call, "give a bitmap of that range and page size");
  }
}

/** What DMA_LOGGING_START and _REPORT refuse where they come at the wrong time. */
export const LOG_IS_ON = "stop it first: it is on";
export const LOG_IS_OFF = "start DMA logging first";

/** The refusal of a device without DMA logging, before anything is said about the arguments. */
export function noDmaLogging(operation: "start" | "report" | "stop"): UapiError {
  return new UapiError("ENOTTY", {
    syscall: `VFIO_DEVICE_FEATURE_DMA_LOGGING_${operation.toUpperCase()}`,
    attempted: `${operation} DMA logging of a device that has none`,
    remedy: "track it with its IOMMU",
  });
}
