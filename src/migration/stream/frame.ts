import { crc32 } from "node:zlib";
import { DirtmapError, UsageError } from "../../errors.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { versionMismatch } from "../../version-mismatch.js";

/*
 * The frame that everything on a connection travels in; docs/stream.md draws it. A header of 40 bytes, little-endian:
 *
 *   0  u32 magic      "DMAP"                 20  u32 runs            entries of the run table (PAGES)
 *   4  u8  version                           24  u32 bodyBytes       bytes behind the header, checksummed
 *   5  u8  type                              28  u32 dataBytes       bytes of pages behind the body
 *   6  u16 flags      0                      32  u32 bodyChecksum    CRC-32 of the body
 *   8  u16 channel    from 1; else 0         36  u32 headerChecksum  CRC-32 of bytes 0 to 35
 *  10  u16 arena      (PAGES)
 *  12  u32 sequence   counts a direction's frames from 0, modulo 2^32
 *  16  u32 round      (PAGES, ROUND_END, ROUND_ACK); CONTROL: the sender's version of the protocol
 *
 * Magic, version and header checksum keep their places in every version, so that another version is told from damage.
 * The body of a PAGES frame is a run table (per run u32 first page of the arena, u32 count * 2 + (1: all zero)), and one
 * XXH3-64 per page of data. The data has no checksum of its own: the receiver computes the page digests from its guest
 * memory once the pages lie there, and compares. Lengths are checked before anything is allocated or stored.
 */

/** "DMAP", read as a little-endian word. */
export const FRAME_MAGIC = 0x50414d44;
export const FRAME_VERSION = 1;
export const FRAME_HEADER_BYTES = 40;
/** Bytes that the header's checksum covers. */
const CHECKED_HEADER_BYTES = 36;

/** What a frame is. PAGES and ROUND_END go to the destination; ACCEPTED, ROUND_ACK and REFUSED come back. */
export const FRAME_TYPE = {
  CONTROL: 1,
  CHANNEL_HELLO: 2,
  ACCEPTED: 3,
  PAGES: 4,
  ROUND_END: 5,
  ROUND_ACK: 6,
  REFUSED: 7,
  /** The sender is done: the connection's end is orderly. */
  CLOSE: 8,
} as const;
export type FrameTypeName = keyof typeof FRAME_TYPE;
type FrameType = (typeof FRAME_TYPE)[FrameTypeName];

const TYPE_NAMES = new Map<number, FrameTypeName>(
  Object.entries(FRAME_TYPE).map(([name, type]) => [type, name as FrameTypeName]),
);

/** Pages of data in a frame, at most. */
export const MAX_FRAME_PAGES = 256;
/** Runs in a frame, at most: 256 lone pages, and what zero pages lie between. */
export const MAX_FRAME_RUNS = 1024;
export const RUN_BYTES = 8;
export const DIGEST_BYTES = 8;
/** The longest body of a frame that a channel carries besides pages. */
export const MAX_CHANNEL_BODY = 4 * 1024;
/** The longest control message: its JSON head, its data, and the word between them. */
export const MAX_CONTROL_BODY = 3 << 20;

/** A frame's header, taken apart. */
export interface FrameHeader {
  readonly type: FrameTypeName;
  readonly channel: number;
  readonly arena: number;
  readonly sequence: number;
  readonly round: number;
  readonly runs: number;
  readonly bodyBytes: number;
  readonly dataBytes: number;
  readonly bodyChecksum: number;
}

/** Refuses what a peer sent. */
export function frameRefused(why: string, cause?: unknown): DirtmapError {
  return new DirtmapError(`the stream is damaged: ${why}`, { code: "FRAME_REFUSED", attempted: "read a frame", cause });
}

/** Writes a header, its checksum included, to `into` at `at`. */
export function encodeHeader(into: Uint8Array, at: number, header: FrameHeader): void {
  const view = new DataView(into.buffer, into.byteOffset + at, FRAME_HEADER_BYTES);
  view.setUint32(0, FRAME_MAGIC, true);
  view.setUint8(4, FRAME_VERSION);
  view.setUint8(5, FRAME_TYPE[header.type] satisfies FrameType);
  view.setUint16(6, 0, true);
  view.setUint16(8, header.channel, true);
  view.setUint16(10, header.arena, true);
  view.setUint32(12, header.sequence, true);
  view.setUint32(16, header.round, true);
  view.setUint32(20, header.runs, true);
  view.setUint32(24, header.bodyBytes, true);
  view.setUint32(28, header.dataBytes, true);
  view.setUint32(32, header.bodyChecksum, true);
  view.setUint32(36, crc32(into.subarray(at, at + CHECKED_HEADER_BYTES)), true);
}

/** A whole frame without page data. */
export function encodeFrame(
  fields: { type: FrameTypeName; channel: number; sequence: number; round?: number },
  body: Uint8Array,
): Uint8Array {
  const frame = new Uint8Array(FRAME_HEADER_BYTES + body.length);
  frame.set(body, FRAME_HEADER_BYTES);
  encodeHeader(frame, 0, {
    ...fields,
    round: fields.round ?? 0,
    arena: 0,
    runs: 0,
    bodyBytes: body.length,
    dataBytes: 0,
    bodyChecksum: crc32(body),
  });
  return frame;
}

/** First bytes that are TLS: a handshake record, which a source sends, and an alert, which a server answers (RFC 8446, 5.1). */
const TLS_HANDSHAKE = 0x16;
const TLS_ALERT = 0x15;
const MAGIC_BYTES = Uint8Array.from("DMAP", (letter) => letter.charCodeAt(0));

/** A source and a destination that were given different schemes. The line reads the same on both sides. */
export function wrongScheme({ source, destination }: Record<"source" | "destination", "tcp" | "tls">): UsageError {
  return new UsageError(`the source speaks ${source}://, and the destination listens with ${destination}://`, {
    code: "WRONG_SCHEME",
    remedy: `give the source ${destination}://, or start the destination with ${source}://`,
  });
}

/**
 * Looks at the first bytes of a connection, as soon as there are any: something else may never send a whole header.
 * @throws DirtmapError `FRAME_REFUSED`, `WRONG_SCHEME`
 */
export function checkOpening(bytes: Uint8Array): void {
  if (bytes[0] === TLS_HANDSHAKE) throw wrongScheme({ source: "tls", destination: "tcp" });
  if (bytes[0] === TLS_ALERT) throw wrongScheme({ source: "tcp", destination: "tls" });
  if (MAGIC_BYTES.some((byte, i) => i < bytes.length && byte !== bytes[i])) {
    throw frameRefused("a frame must start with the magic 'DMAP'");
  }
}

/** True where a connection starts with a TLS handshake. */
export function opensTls(firstByte: number): boolean {
  return firstByte === TLS_HANDSHAKE;
}

/**
 * Takes the header at the start of `bytes` apart and checks all that can be checked without knowing the machine: magic,
 * checksum, version, type, and that each length is one that a frame of its type can have.
 * @param expected what the next frame on this connection must say
 * @throws DirtmapError `FRAME_REFUSED`, `INCOMPATIBLE`
 */
export function decodeHeader(bytes: Uint8Array, expected: { channel: number; sequence: number }): FrameHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, FRAME_HEADER_BYTES);
  if (view.getUint32(0, true) !== FRAME_MAGIC) throw frameRefused("a frame must start with the magic 'DMAP'");
  if (view.getUint32(36, true) !== crc32(bytes.subarray(0, CHECKED_HEADER_BYTES))) {
    throw frameRefused("a header's checksum is wrong");
  }
  const version = view.getUint8(4);
  if (version !== FRAME_VERSION) {
    const [other, here] = ["the other end", "this end"];
    throw versionMismatch({ what: "the stream", other, here, theirs: version, ours: FRAME_VERSION });
  }
  const type = TYPE_NAMES.get(view.getUint8(5));
  if (type === undefined) throw frameRefused(`frame type ${view.getUint8(5)} is not known`);
  const header: FrameHeader = {
    type,
    channel: view.getUint16(8, true),
    arena: view.getUint16(10, true),
    sequence: view.getUint32(12, true),
    round: view.getUint32(16, true),
    runs: view.getUint32(20, true),
    bodyBytes: view.getUint32(24, true),
    dataBytes: view.getUint32(28, true),
    bodyChecksum: view.getUint32(32, true),
  };
  if (view.getUint16(6, true) !== 0) throw frameRefused("a header has unknown flags");
  if (header.channel !== expected.channel) {
    throw frameRefused(`a frame of channel ${header.channel} arrived on channel ${expected.channel}`);
  }
  if (header.sequence !== expected.sequence) {
    throw frameRefused(`frame ${header.sequence} arrived where ${expected.sequence} was due`);
  }
  checkLengths(header);
  if (header.arena !== 0 && type !== "PAGES") throw frameRefused(`a ${type} frame names arena ${header.arena}`);
  if (header.round !== 0 && !HAS_ROUND.has(type)) throw frameRefused(`a ${type} frame names round ${header.round}`);
  return header;
}

/** Types whose `round` field means something. */
const HAS_ROUND: ReadonlySet<FrameTypeName> = new Set(["CONTROL", "PAGES", "ROUND_END", "ROUND_ACK"]);

function checkLengths({ type, runs, bodyBytes, dataBytes }: FrameHeader): void {
  if (type === "PAGES") {
    const pages = dataBytes / PAGE_SIZE;
    if (!Number.isInteger(pages) || pages > MAX_FRAME_PAGES) throw frameRefused(`${dataBytes} bytes of pages`);
    if (runs < 1 || runs > MAX_FRAME_RUNS) throw frameRefused(`a table of ${runs} runs`);
    if (bodyBytes !== runs * RUN_BYTES + pages * DIGEST_BYTES) {
      throw frameRefused(`${bodyBytes} bytes for a table of ${runs} runs and ${pages} digests`);
    }
    return;
  }
  const limit = type === "CONTROL" ? MAX_CONTROL_BODY : MAX_CHANNEL_BODY;
  if (runs !== 0 || dataBytes !== 0 || bodyBytes > limit) throw frameRefused(`a ${type} frame of ${bodyBytes} bytes`);
}

/** @throws DirtmapError `FRAME_REFUSED` where a body is not what its header's checksum says */
export function checkBody(header: FrameHeader, body: Uint8Array): void {
  if (crc32(body) !== header.bodyChecksum) throw frameRefused(`the checksum of a ${header.type} frame is wrong`);
}
