import type { RamBitmap } from "../bitmap/ram-bitmap.js";
import type { GuestMemory } from "../memory/guest-memory.js";

/*
 * The two ends of the page channels, as the source's and the destination's orchestration see them. The implementations
 * (channels/) run one worker per channel; pages go from guest memory to the socket and back without JavaScript per page.
 */

/** The most channels that a migration may have. */
export const MAX_CHANNELS = 16;

/** What a round moved. */
export interface SentRound {
  readonly pages: number;
  readonly zeroPages: number;
  /** On the wire, headers included. */
  readonly bytes: number;
  readonly ms: number;
}

/** How the source reaches a destination's channels. */
export interface ChannelAddress {
  readonly host: string;
  readonly port: number;
  /** Absent: plain TCP. */
  readonly tls?: { readonly cert: string; readonly key: string; readonly ca: string };
  /** Made by the destination for this migration: a channel proves with it that it belongs to it. 32 bytes, hex. */
  readonly token: string;
}

/** A hash per page of RAM, per arena (XXH3-64, 8 bytes each), as read from memory. */
export interface PageDigests {
  readonly arenas: readonly BigUint64Array<SharedArrayBuffer>[];
}

/** The source's end. */
export interface PageSender extends AsyncDisposable {
  /**
   * Sends the marked pages as they are now, over all channels, all-zero ones as runs, and resolves when the destination
   * has acknowledged them (stored, digested, frames verified).
   * @throws DirtmapError `CHANNEL_LOST`, `FRAME_REFUSED`; AbortError when aborted, after the frame in flight
   */
  sendRound(round: number, pages: RamBitmap, signal: AbortSignal): Promise<SentRound>;
  /** Bytes per second over all channels; Infinity: no limit. Takes effect at once. */
  setBandwidth(bytesPerSecond: number): void;
  /** What went to the channels so far in the round under way, for progress; of the last round between rounds. */
  progress(): { readonly pages: number; readonly bytes: number };
  /** Hashes all of RAM as it is now. The machine must be stopped for the answer to mean anything. */
  digest(): Promise<PageDigests>;
}

/** The destination's end. */
export interface PageReceiver extends AsyncDisposable {
  /** Rejects when a channel breaks, or carries a frame that is not whole; never resolves before dispose. */
  readonly failed: Promise<never>;
  /** What the memory's pages hash to, computed from the memory as each page was stored. */
  digests(): PageDigests;
}

export type OpenSender = (args: {
  memory: GuestMemory;
  address: ChannelAddress;
  channels: number;
  signal: AbortSignal;
}) => Promise<PageSender>;
