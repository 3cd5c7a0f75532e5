import { crc32 } from "node:zlib";
import { z } from "zod";

/*
 * The file that holds a trace: docs/trace.md. A magic number and a version, then frames; each frame carries its length and
 * a checksum, so that what is damaged or cut off is noticed where it is.
 *
 *   file    "DTRC", u16 version, u16 zero, frame …
 *   frame   u8 type, u32 length of the payload, payload, u32 CRC-32 of all three
 *
 * All numbers are little-endian.
 */

export const TRACE_MAGIC = 0x43525444; // "DTRC"
/** The version that is written; the only one so far. */
export const TRACE_VERSION = 1;
export const FILE_HEAD_BYTES = 8;

export const FRAME = {
  /** JSON: {@link traceHeaderSchema}. Comes first. */
  HEADER: 1,
  /** Operations ({@link OPERATION}), deflated (RFC 1951). */
  CHUNK: 2,
  /** Two varints: intervals and pages, over all of the trace. Comes last. */
  END: 3,
} as const;

export const FRAME_HEAD_BYTES = 5;
export const FRAME_TAIL_BYTES = 4;

/** What a chunk is made of; each begins with its number, and all numbers are varints. */
export const OPERATION = {
  /**
   * Pages of one owner in the interval that is under way: the owner's index, the number of runs (from 1), and per run the
   * pages between it and the run before (for the first: from page 0) and its length less 1.
   */
  RUNS: 1,
  /** The interval is over: the microseconds that it took. */
  INTERVAL: 2,
} as const;

/** Runs per operation: keeps an operation, and so a chunk, small. */
export const MAX_RUNS_PER_OPERATION = 8192;
/** A chunk is closed once it has this many bytes, before compression. */
export const CHUNK_BYTES = 64 * 1024;
/** What a chunk has at most before compression: {@link CHUNK_BYTES} and one operation of runs (10 bytes each). */
export const MAX_CHUNK_BYTES = 256 * 1024;
/** The largest payload of a frame. */
export const MAX_PAYLOAD_BYTES = 1024 * 1024;
/** Runs of all owners in one interval: what a reader holds, 64 MiB. 64 GiB in which every other page is dirty have as many. */
export const MAX_RUNS_PER_INTERVAL = 1 << 23;
/** An interval lasts at most an hour. */
export const MAX_INTERVAL_US = 3_600e6;

const text = z.string().max(256);

/** What a trace says of itself before its first interval. */
export const traceHeaderSchema = z.object({
  /** Bytes of the machine's RAM. */
  memoryBytes: z
    .int()
    .min(4 * 2 ** 20)
    .max(2 ** 44),
  platform: z.enum(["pc", "virt"]),
  /** The interval that was asked for, in milliseconds; each one says how long it took. */
  intervalMs: z.number().min(0).max(3_600_000),
  /** ISO 8601, UTC. */
  startedAt: z.iso.datetime(),
  host: text,
  scenario: text.nullable(),
  /** Share of the RAM's pages that were all zero when the recording began; null: nobody looked. */
  zeroShare: z.number().min(0).max(1).nullable(),
  /** Bytes that the devices expected to send when stopped (MIG_DATA_SIZE), together; null: unknown. */
  deviceStateBytes: z.number().min(0).nullable(),
  /** Whoever has a tracker, by the ledger's keys; intervals name them by their index. */
  owners: z
    .array(
      z.object({
        owner: text.min(1),
        /** `everything`: nothing tracks it, and all that it may write is named in each interval. */
        tracker: text,
        /** Bytes per dirty bit; null: no bits. */
        granule: z.number().min(1).nullable(),
        devices: z.array(z.object({ id: text, model: text })).max(1024),
      }),
    )
    .max(4096),
  /** Owners whose log could not be read while they ran: what they wrote is missing. */
  unread: z.array(text).max(4096),
});

/** The header of a trace: the machine that was recorded (docs/trace.md). */
export type TraceHeader = z.output<typeof traceHeaderSchema>;

/** A frame, ready to be written. */
export function frame(type: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEAD_BYTES + payload.length + FRAME_TAIL_BYTES);
  const view = new DataView(bytes.buffer);
  bytes[0] = type;
  view.setUint32(1, payload.length, true);
  bytes.set(payload, FRAME_HEAD_BYTES);
  const end = FRAME_HEAD_BYTES + payload.length;
  view.setUint32(end, crc32(bytes.subarray(0, end)), true);
  return bytes;
}
