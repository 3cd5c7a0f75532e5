import { hex, U64_MAX } from "../memory/address.js";
import { type ErrnoName, UapiError } from "../uapi/errno.js";
import type { BitmapQuery, MapFlags, ObjectId } from "./host.js";

/*
 * What Linux checks of an iommufd ioctl's arguments before it looks anything up (drivers/iommu/iommufd/ioas.c and
 * io_pagetable.c): for hosts that answer such calls themselves.
 */

/** The operation that an error is about. */
export interface Call {
  readonly syscall: string;
  readonly attempted: string;
}

/** Ends a call with an errno. */
export function refuse(code: ErrnoName, call: Call, remedy?: string): never {
  throw new UapiError(code, remedy === undefined ? call : { ...call, remedy });
}

/** The last address of a range. @throws UapiError EINVAL for an empty one, EOVERFLOW for one past 2^64 */
export function lastOf(iova: bigint, length: bigint, call: Call): bigint {
  if (length === 0n) refuse("EINVAL", call, "give a length above 0");
  const last = iova + length - 1n;
  if (iova < 0n || length < 0n || last > U64_MAX) refuse("EOVERFLOW", call, "end the range at or below 2^64");
  return last;
}

/** What a mapping call is doing, for its errors. */
export function mapCall(syscall: string, ioas: ObjectId, length: number, { iova }: MapFlags): Call {
  const where = iova === undefined ? "" : ` at IOVA ${hex(iova)}`;
  return { syscall, attempted: `map ${hex(length)} bytes${where} in IOAS ${ioas}` };
}

/** What MAP, MAP_FILE and COPY check before they look the IOAS up: that `values` and the IOVA are u64 below the last. */
export function checkMap(flags: MapFlags, values: readonly (number | bigint)[], call: Call): void {
  for (const value of [flags.iova ?? 0n, ...values]) if (value >= U64_MAX || value < 0) refuse("EOVERFLOW", call);
  if (!flags.readable && !flags.writeable) refuse("EINVAL", call, "make it readable, writeable or both");
}

/** That memory begins and ends where numbers are exact, and is not empty. @throws UapiError EINVAL, EOVERFLOW */
export function checkMemory(offset: number, length: number, call: Call): void {
  if (length === 0) refuse("EINVAL", call, "give a length above 0");
  if (!Number.isSafeInteger(offset) || offset < 0 || !Number.isSafeInteger(offset + length)) refuse("EOVERFLOW", call);
}

/** That an option's value is 0 or 1. @throws UapiError EINVAL */
export function checkSwitch(value: number, call: Call): void {
  if (value !== 0 && value !== 1) refuse("EINVAL", call, "give 0 or 1");
}

/** iommufd_check_iova_range, and that the caller's bitmap is the one that the query speaks of. */
export function checkBitmap({ iova, length, pageSize, into }: BitmapQuery, alignment: number, call: Call): void {
  if (iova < 0n || length < 0n || (length === 0n && iova > 0n) || iova + length - 1n > U64_MAX) {
    refuse("EOVERFLOW", call, "end the range at or below 2^64");
  }
  for (const granule of [alignment, pageSize]) {
    if (granule === 0 || iova % BigInt(granule) !== 0n || (iova + length) % BigInt(granule) !== 0n) {
      refuse("EINVAL", call, `start and end at multiples of ${granule}`);
    }
  }
  const end = iova + length;
  const fits = into.granule === pageSize && into.iova <= iova && into.iova + into.length >= end;
  if (!fits || (iova - into.iova) % BigInt(pageSize) !== 0n) {
    refuse("EINVAL", call, "give a bitmap of that range and page size");
  }
}
