import { DirtmapError } from "../errors.js";

/*
 * The record format of device states, in images and in migration streams. A record has the header that mlx5's VFIO
 * driver uses (struct mlx5_vf_migration_header): little-endian u64 record_size, u32 flags, u32 tag, and then
 * record_size bytes.
 */

export const RECORD_HEADER_BYTES = 16;

/** Flag: who doesn't know the tag may skip the record. All other flags are zero. */
export const RECORD_OPTIONAL = 1 << 0;

/** One record. */
export interface StateRecord {
  readonly tag: number;
  readonly optional: boolean;
  readonly data: Uint8Array;
}

/** The header of a record. */
export interface RecordHeader {
  readonly size: number;
  readonly optional: boolean;
  readonly tag: number;
}

/** A record as bytes. */
export function encodeRecord({ tag, optional, data }: StateRecord): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(RECORD_HEADER_BYTES + data.byteLength);
  writeRecordHeader(new DataView(bytes.buffer), 0, { tag, optional, size: data.byteLength });
  bytes.set(data, RECORD_HEADER_BYTES);
  return bytes;
}

/** Records one after the other, the data of each padded with zero bytes to whole words. */
export function encodeRecords(records: readonly StateRecord[]): Uint8Array<ArrayBuffer> {
  const padded = (bytes: number) => (bytes + 3) & ~3;
  const bytes = new Uint8Array(
    records.reduce((sum, { data }) => sum + RECORD_HEADER_BYTES + padded(data.byteLength), 0),
  );
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const { tag, optional, data } of records) {
    const size = padded(data.byteLength);
    writeRecordHeader(view, at, { tag, optional, size });
    bytes.set(data, at + RECORD_HEADER_BYTES);
    at += RECORD_HEADER_BYTES + size;
  }
  return bytes;
}

/** Writes a header at `at`. */
export function writeRecordHeader(view: DataView, at: number, { tag, optional, size }: RecordHeader): void {
  view.setBigUint64(at, BigInt(size), true);
  view.setUint32(at + 8, optional ? RECORD_OPTIONAL : 0, true);
  view.setUint32(at + 12, tag, true);
}

/**
 * Reads the header at `at`.
 * @param limit the largest record that can be right here
 * @throws DirtmapError `BAD_DEVICE_STATE`
 */
export function readRecordHeader(view: DataView, at: number, limit: number): RecordHeader {
  const size = view.getBigUint64(at, true);
  const flags = view.getUint32(at + 8, true);
  const tag = view.getUint32(at + 12, true);
  if (size > BigInt(limit)) throw badState(`a record of ${size} bytes, where ${limit} is the most`);
  if ((flags & ~RECORD_OPTIONAL) !== 0) throw badState(`a record with unknown flags 0x${flags.toString(16)}`);
  return { size: Number(size), optional: (flags & RECORD_OPTIONAL) !== 0, tag };
}

/**
 * Takes a whole image apart. The records' data are views of it.
 * @throws DirtmapError `BAD_DEVICE_STATE` where it ends inside a record
 */
export function decodeRecords(image: Uint8Array): StateRecord[] {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const records: StateRecord[] = [];
  for (let at = 0; at < image.byteLength; ) {
    if (image.byteLength - at < RECORD_HEADER_BYTES) throw badState("it ends inside a record's header");
    const { size, optional, tag } = readRecordHeader(view, at, image.byteLength - at - RECORD_HEADER_BYTES);
    at += RECORD_HEADER_BYTES;
    records.push({ tag, optional, data: image.subarray(at, at + size) });
    at += size;
  }
  return records;
}

/** A count from a saved state. @throws DirtmapError `BAD_DEVICE_STATE` for one that a number can't hold exactly */
export function savedCount(count: bigint): number {
  if (count > BigInt(Number.MAX_SAFE_INTEGER)) throw badState(`it has counted to ${count}`);
  return Number(count);
}

/** The error for a state that can't be loaded. */
export function badState(what: string): DirtmapError {
  return new DirtmapError(`the device state is not usable: ${what}`, {
    code: "BAD_DEVICE_STATE",
    remedy: "migrate between devices of the same model and state version",
  });
}
