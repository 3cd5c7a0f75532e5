import type { RamBitmap } from "../bitmap/ram-bitmap.js";
import type { GuestMemory } from "../memory/guest-memory.js";

/*
 * The two ends of the page channels, as the source's and the destination's orchestration see them. The implementations
 * (channels/) run one worker per channel; pages go from guest memory to the socket and back without JavaScript per page.
 */

/** The most channels that a migration may have. */
export const MAX_CHANNELS = 16;

/** How much a round moved, as ROUND_END says it. */
export interface RoundSent {
  readonly pages: number;
  readonly zeroPages: number;
  /** On the wire, headers included. */
  readonly bytes: number;
}

/** What a round moved. */
export interface SentRound extends RoundSent {
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

/** The destination's end. Rounds come from 0 on, each the one after the last, and each is begun and ended. */
export interface PageReceiver extends AsyncDisposable {
  /**
   * The source has begun a round: its channels' ROUND_ENDs are acknowledged from now on.
   * @throws DirtmapError `FRAME_REFUSED` where not all channels that were announced have joined
   */
  beginRound(round: number): Promise<void>;
  /**
   * The source says that the round is over, and that this is what it sent.
   * @throws DirtmapError `FRAME_REFUSED` where a channel has not ended it, or something else arrived
   */
  endRound(round: number, sent: RoundSent): Promise<void>;
  /** No page may come any more. @throws DirtmapError `FRAME_REFUSED` where some have, after the last round */
  seal(): Promise<void>;
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
