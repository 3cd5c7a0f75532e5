import { PAGE_SIZE } from "../../memory/address.js";
import type { RamArena } from "../../memory/guest-memory.js";
import { DIGEST_BYTES, FRAME_HEADER_BYTES, MAX_FRAME_PAGES, MAX_FRAME_RUNS, RUN_BYTES } from "../stream/frame.js";

/*
 * How the channels use an arena's scratch memory, at either end:
 *
 *   digest table | the round's bitmap | channel 0's slice | channel 1's slice | …
 *
 * All threads of one end work it out from the same numbers.
 */

export interface ScratchLayout {
  /** Byte offset of the table with a digest per page of RAM. */
  readonly digests: number;
  /** Byte offset of the bitmap of the round under way, a bit per page of RAM. */
  readonly bitmap: number;
  /** Byte offset of each channel's slice. */
  readonly slices: readonly number[];
  readonly sliceBytes: number;
}

/** Where things lie in an arena's scratch memory when this many channels share it. */
export function scratchLayout(arena: RamArena, channels: number): ScratchLayout {
  const digests = arena.scratch.offset;
  const bitmap = roundUp(digests + arena.ramPages * DIGEST_BYTES, PAGE_SIZE);
  const first = roundUp(bitmap + Math.ceil(arena.ramPages / 32) * 4, PAGE_SIZE);
  const end = arena.scratch.offset + arena.scratch.bytes;
  const sliceBytes = Math.floor((end - first) / channels / PAGE_SIZE) * PAGE_SIZE;
  return { digests, bitmap, sliceBytes, slices: Array.from({ length: channels }, (_, i) => first + i * sliceBytes) };
}

/** The view of an arena's digest table. */
export function digestTable(arena: RamArena, layout: ScratchLayout): BigUint64Array<SharedArrayBuffer> {
  return new BigUint64Array(arena.u8.buffer, layout.digests, arena.ramPages);
}

/** Header and body of a frame lie in this many bytes, so that the pages behind them start on a page. */
const HEAD_BYTES = roundUp(FRAME_HEADER_BYTES + MAX_FRAME_RUNS * RUN_BYTES + MAX_FRAME_PAGES * DIGEST_BYTES, PAGE_SIZE);

/** A staging buffer of a sender: what the kernel writes, and the frame that is made of it in place. */
export interface SenderSlot {
  /** Byte offsets of gather's state, of the run table and of the digests that it fills. */
  readonly state: number;
  readonly runs: number;
  readonly digests: number;
  /** Byte offset of the staged pages. The frame's header and body are moved to right before them. */
  readonly data: number;
}

/** Pages in a frame that is sent: large enough that a frame costs little, small enough that it stays in the L2 cache. */
export const FRAME_PAGES = 128;

const STATE_BYTES = 64;
const SLOT_BYTES = roundUp(STATE_BYTES, PAGE_SIZE) + 2 * HEAD_BYTES + FRAME_PAGES * PAGE_SIZE;

/** More staging buffers than this in flight only spoil the cache. */
const MAX_SLOTS = 4;

/** A sender's slice as a ring of staging buffers. */
export function senderSlots(slice: number, sliceBytes: number): SenderSlot[] {
  return Array.from({ length: Math.min(MAX_SLOTS, Math.floor(sliceBytes / SLOT_BYTES)) }, (_, i) => {
    const state = slice + i * SLOT_BYTES;
    const runs = state + PAGE_SIZE;
    const digests = runs + MAX_FRAME_RUNS * RUN_BYTES;
    return { state, runs, digests, data: runs + 2 * HEAD_BYTES };
  });
}

/** Where a receiver puts a frame's body, and pages that it doesn't store directly. */
export interface ReceiverSlot {
  readonly body: number;
  readonly staging: number;
}

export function receiverSlot(slice: number): ReceiverSlot {
  return { body: slice, staging: slice + HEAD_BYTES };
}

function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}
