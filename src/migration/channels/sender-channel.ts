import type { Duplex } from "node:stream";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { crc32 } from "node:zlib";
import { DirtmapError } from "../../errors.js";
import { GATHER, GATHER_WORDS, type PageKernels } from "../../kernels/pages.js";
import { PAGE_SIZE } from "../../memory/address.js";
import type { RamArena } from "../../memory/guest-memory.js";
import {
  DIGEST_BYTES,
  encodeFrame,
  encodeHeader,
  FRAME_HEADER_BYTES,
  type FrameTypeName,
  MAX_FRAME_RUNS,
  RUN_BYTES,
} from "../stream/frame.js";
import { type Frame, FrameReader } from "../stream/frame-reader.js";
import type { ChunkQueue, RoundProgress } from "./control-words.js";
import { type ChannelHello, decodeRefusal, decodeRoundTotals, encodeBody } from "./hello.js";
import { FRAME_PAGES, type ScratchLayout, type SenderSlot, senderSlots } from "./layout.js";
import type { TokenBucket } from "./token-bucket.js";

/** A destination that takes no bytes, or owes an answer, for this long is gone or stopped. */
const STALL_MS = 10_000;

/** The event loop gets a turn this often, so that a refusal is heard in the middle of a round. */
const TURN_MS = 10;

/** At a limited bandwidth a frame is cut so that it takes about this long: the limit is kept evenly. */
const LIMITED_FRAME_SECONDS = 0.02;

/** An arena of the source, with the kernels over it. */
export interface SenderArena {
  readonly arena: RamArena;
  readonly kernels: PageKernels;
  readonly layout: ScratchLayout;
}

/** What a channel sent in a round. */
export interface ChannelRound {
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
}

interface Staging extends SenderSlot {
  readonly arena: number;
  /** gather's state. */
  readonly words: Uint32Array;
}

/**
 * The source's end of one channel. It stages pages frame by frame in a ring of buffers and writes these to the socket
 * as they are; a buffer is used again when the system has taken its frame.
 */
export class SenderChannel {
  readonly #socket: Duplex;
  readonly #arenas: readonly SenderArena[];
  readonly #channel: number;
  readonly #queue: ChunkQueue;
  readonly #bucket: TokenBucket;
  readonly #progress: RoundProgress;
  readonly #reader: FrameReader;
  /** Per arena, the staging buffers that no frame in flight lies in. */
  readonly #free: Staging[][];
  readonly #watch: NodeJS.Timeout;
  #sequence = 0;
  #inFlight = 0;
  #answer: Frame | undefined;
  #awaitsAnswer = false;
  #wake: (() => void) | undefined;
  #failure: DirtmapError | undefined;
  #closing = false;
  /** When the destination last took or said something. */
  #progressAt = performance.now();
  #turnAt = performance.now();

  /**
   * @param channel from 0
   * @param explain turns the socket's errors into the transport's
   */
  constructor(args: {
    socket: Duplex;
    arenas: readonly SenderArena[];
    channel: number;
    queue: ChunkQueue;
    bucket: TokenBucket;
    progress: RoundProgress;
    explain: (error: unknown) => DirtmapError;
  }) {
    const { socket, arenas, channel } = args;
    this.#socket = socket;
    this.#arenas = arenas;
    this.#channel = channel;
    this.#queue = args.queue;
    this.#bucket = args.bucket;
    this.#progress = args.progress;
    this.#reader = new FrameReader(0, ["ACCEPTED", "ROUND_ACK", "REFUSED"]);
    this.#free = arenas.map(({ arena, layout }, index) =>
      senderSlots(layout.slices[channel], layout.sliceBytes).map((slot) => ({
        ...slot,
        arena: index,
        words: arena.u32.subarray(slot.state >>> 2, (slot.state >>> 2) + GATHER_WORDS),
      })),
    );
    socket.on("data", (bytes: Uint8Array) => this.#take(bytes));
    socket.on("error", (error) => this.#lose(args.explain(error)));
    socket.on("close", () => this.#lose(lost("the destination closed it")));
    this.#watch = setInterval(() => this.#checkProgress(), STALL_MS / 10);
  }

  /** Shows the token, and waits until the destination has taken the channel. @throws DirtmapError */
  async open(hello: ChannelHello): Promise<void> {
    await this.#ask("CHANNEL_HELLO", 0, encodeBody(hello), "ACCEPTED");
  }

  /**
   * Sends its share of a round, and resolves when the destination has stored and verified it.
   * @throws DirtmapError `CHANNEL_LOST`, `FRAME_REFUSED`
   */
  async sendRound(round: number): Promise<ChannelRound> {
    const sent = { pages: 0, zeroPages: 0, bytes: 0 };
    let staging: Staging | undefined;
    for (let chunk = this.#queue.take(); chunk !== undefined; chunk = this.#queue.take()) {
      if (staging !== undefined && staging.arena !== chunk.arena) {
        await this.#sendPages(round, staging, sent);
        staging = undefined;
      }
      const { kernels, layout } = this.#arenas[chunk.arena];
      for (let page = chunk.firstPage; page < chunk.endPage && !this.#queue.stopped; ) {
        staging ??= await this.#freeStaging(chunk.arena);
        page = kernels.gather(staging.state, layout.bitmap, page, chunk.endPage);
        if (page < chunk.endPage) {
          await this.#sendPages(round, staging, sent);
          staging = undefined;
        }
      }
    }
    if (staging !== undefined) await this.#sendPages(round, staging, sent);
    const { pages, zeroPages } = sent;
    const answer = await this.#ask("ROUND_END", round, encodeBody({ pages, zeroPages }), "ROUND_ACK");
    const stored = decodeRoundTotals(answer.body);
    if (answer.header.round !== round || stored.pages !== pages) {
      throw new DirtmapError(`the destination stored ${stored.pages} of ${pages} pages`, { code: "FRAME_REFUSED" });
    }
    return sent;
  }

  /** Says goodbye and ends the connection in an orderly way. */
  async close(): Promise<void> {
    this.#closing = true;
    clearInterval(this.#watch);
    if (this.#socket.destroyed) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => this.#socket.destroy(), 2_000);
      this.#socket.once("close", () => {
        clearTimeout(timer);
        resolve();
      });
      if (this.#failure === undefined) this.#socket.end(this.#frame("CLOSE", 0, new Uint8Array(0)));
      else this.#socket.destroy();
    });
  }

  /** A staging buffer with an empty frame in it. */
  async #freeStaging(arena: number): Promise<Staging> {
    for (;;) {
      this.#throwIfLost();
      const staging = this.#free[arena].pop();
      if (staging === undefined) {
        await this.#woken();
        continue;
      }
      const limit = Math.floor((this.#bucket.rate * LIMITED_FRAME_SECONDS) / PAGE_SIZE);
      const { words } = staging;
      words[GATHER.runs] = 0;
      words[GATHER.dataPages] = 0;
      words[GATHER.zeroPages] = 0;
      words[GATHER.maxRuns] = MAX_FRAME_RUNS;
      words[GATHER.maxDataPages] = Math.max(1, Math.min(FRAME_PAGES, limit));
      words[GATHER.runsAt] = staging.runs;
      words[GATHER.digestsAt] = staging.digests;
      words[GATHER.dataAt] = staging.data;
      return staging;
    }
  }

  /** Makes a frame of what was staged, and hands it to the system when the bandwidth limit allows. */
  async #sendPages(round: number, staging: Staging, sent: { pages: number; zeroPages: number; bytes: number }) {
    const runs = staging.words[GATHER.runs];
    const dataPages = staging.words[GATHER.dataPages];
    if (runs === 0) {
      this.#free[staging.arena].push(staging);
      return;
    }
    const { u8 } = this.#arenas[staging.arena].arena;
    const digests = staging.data - dataPages * DIGEST_BYTES;
    const body = digests - runs * RUN_BYTES;
    const start = body - FRAME_HEADER_BYTES;
    const end = staging.data + dataPages * PAGE_SIZE;
    u8.copyWithin(digests, staging.digests, staging.digests + dataPages * DIGEST_BYTES);
    u8.copyWithin(body, staging.runs, staging.runs + runs * RUN_BYTES);
    for (let wait = this.#bucket.take(end - start); wait > 0; wait = this.#bucket.take(end - start)) {
      this.#progressAt = performance.now();
      await sleep(wait);
      this.#throwIfLost();
      if (this.#queue.stopped) {
        this.#free[staging.arena].push(staging);
        return;
      }
    }
    encodeHeader(u8, start, {
      type: "PAGES",
      channel: this.#channel + 1,
      arena: staging.arena,
      sequence: this.#nextSequence(),
      round,
      runs,
      bodyBytes: staging.data - body,
      dataBytes: end - staging.data,
      bodyChecksum: crc32(u8.subarray(body, staging.data)),
    });
    this.#write(u8.subarray(start, end), staging);
    sent.bytes += end - start;
    sent.pages += dataPages + staging.words[GATHER.zeroPages];
    sent.zeroPages += staging.words[GATHER.zeroPages];
    this.#progress.set(this.#channel, sent.pages, sent.bytes);
    if (performance.now() - this.#turnAt > TURN_MS) {
      await nextTurn();
      this.#turnAt = performance.now();
    }
  }

  #write(bytes: Uint8Array, staging: Staging): void {
    this.#inFlight++;
    this.#socket.write(bytes, () => {
      this.#inFlight--;
      this.#progressAt = performance.now();
      this.#free[staging.arena].push(staging);
      this.#wakeUp();
    });
  }

  /** Sends a frame without pages, and waits for the one that answers it. */
  async #ask(type: FrameTypeName, round: number, body: Uint8Array, answer: FrameTypeName): Promise<Frame> {
    this.#throwIfLost();
    this.#awaitsAnswer = true;
    this.#progressAt = performance.now();
    this.#socket.write(this.#frame(type, round, body));
    for (;;) {
      const frame = this.#answer;
      if (frame !== undefined) {
        this.#answer = undefined;
        this.#awaitsAnswer = false;
        if (frame.header.type === answer) return frame;
        throw new DirtmapError(`${frame.header.type} arrived where ${answer} was due`, { code: "FRAME_REFUSED" });
      }
      this.#throwIfLost();
      await this.#woken();
    }
  }

  #frame(type: FrameTypeName, round: number, body: Uint8Array): Uint8Array {
    return encodeFrame({ type, channel: this.#channel + 1, sequence: this.#nextSequence(), round }, body);
  }

  #nextSequence(): number {
    const sequence = this.#sequence;
    this.#sequence = (sequence + 1) >>> 0;
    return sequence;
  }

  #take(bytes: Uint8Array): void {
    this.#progressAt = performance.now();
    try {
      for (const frame of this.#reader.push(bytes)) {
        if (frame.header.type === "REFUSED") {
          const { code, message, remedy } = decodeRefusal(frame.body);
          this.#lose(new DirtmapError(`the destination ends a channel: ${message}`, { code, remedy }));
        } else if (this.#answer === undefined && this.#awaitsAnswer) {
          this.#answer = frame;
          this.#wakeUp();
        } else {
          this.#lose(new DirtmapError(`${frame.header.type} arrived unasked`, { code: "FRAME_REFUSED" }));
        }
      }
    } catch (error) {
      this.#lose(error instanceof DirtmapError ? error : lost("it carries no frames", error));
    }
  }

  #checkProgress(): void {
    if (this.#inFlight === 0 && !this.#awaitsAnswer) return;
    if (performance.now() - this.#progressAt > STALL_MS) {
      this.#lose(lost(`the destination has taken nothing for ${STALL_MS / 1000} s`));
    }
  }

  /** The first thing that goes wrong is what is told. */
  #lose(error: DirtmapError): void {
    if (this.#closing || this.#failure !== undefined) return;
    this.#failure = error;
    clearInterval(this.#watch);
    this.#queue.stop();
    this.#socket.destroy();
    this.#wakeUp();
  }

  #throwIfLost(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  #woken(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}

function lost(why: string, cause?: unknown): DirtmapError {
  return new DirtmapError(`a channel was lost: ${why}`, {
    code: "CHANNEL_LOST",
    remedy: "see what the destination says, and whether the network holds",
    cause,
  });
}
