import { DirtmapError } from "../../errors.js";
import type { PageKernels } from "../../kernels/pages.js";
import { PAGE_SHIFT, PAGE_SIZE } from "../../memory/address.js";
import type { RamArena } from "../../memory/guest-memory.js";
import {
  checkBody,
  checkOpening,
  decodeHeader,
  FRAME_HEADER_BYTES,
  type FrameHeader,
  frameRefused,
  MAX_CHANNEL_BODY,
  RUN_BYTES,
} from "../stream/frame.js";
import { type ChannelHello, checkHello, decodeRoundTotals, type ExpectedHello } from "./hello.js";
import { type ReceiverSlot, receiverSlot, type ScratchLayout } from "./layout.js";

/** An arena of the destination, with the kernels over it. */
export interface SinkArena {
  readonly arena: RamArena;
  readonly kernels: PageKernels;
  readonly layout: ScratchLayout;
}

/** What a channel carried in a round. */
export interface CarriedRound {
  readonly round: number;
  readonly pages: number;
  readonly zeroPages: number;
  /** Of its PAGES frames, headers included. */
  readonly bytes: number;
}

/** What a sink tells its channel. */
export interface SinkEvents {
  /** The channel has shown that it belongs to this migration. */
  onHello(hello: ChannelHello): void;
  /** All frames of the round are stored and verified. */
  onRoundEnd(carried: CarriedRound): void;
  /** The source is done. */
  onClose(): void;
}

/**
 * From this average length of run on, data is received right into guest memory, run by run. Shorter runs go through
 * staging: a read from the socket per few pages would cost more than a copy.
 */
const DIRECT_PAGES_PER_RUN = 8;

/** A connection's first frame is the start of another migration: its control connection, not a channel. */
export class OtherSource extends DirtmapError {}

/**
 * Takes a channel's bytes apart and puts pages where they belong. It says where the next bytes are to be received to
 * ({@link target}), so that page data is written to guest memory by the system itself. Nothing is stored that was not
 * checked to lie inside RAM; what was stored is digested from there, and compared with what the source staged.
 *
 * A channel's frames are in the order hello, then per round PAGES … and ROUND_END, from round 0 on, each round the one
 * after the last. No frame follows the hello or a ROUND_END before that was {@link answered}; once the sink is
 * {@link seal}ed, only the goodbye may come.
 */
export class PageSink {
  readonly #arenas: readonly SinkArena[];
  readonly #expected: ExpectedHello;
  readonly #events: SinkEvents;
  readonly #headerBytes = new Uint8Array(FRAME_HEADER_BYTES);
  /** For the hello: before it, no arena's scratch memory is this connection's. */
  readonly #helloBytes = new Uint8Array(MAX_CHANNEL_BODY);
  /** In each arena, once the hello has said which channel's. */
  #slots: readonly ReceiverSlot[] = [];
  /** What arrives next: a header, the body of #header, or the data of #header. */
  #part: "header" | "body" | "data" = "header";
  #header: FrameHeader | undefined;
  /** Where the rest of the part, or of the part's present run, goes. */
  #target: Uint8Array;
  /** The channel's number, once its hello said it. */
  #channel = 0;
  #sequence = 0;
  /** Data that is received directly: the runs from #run on are still to come. */
  #direct = false;
  #run = 0;
  /** The round that the next PAGES or ROUND_END must be of, and what came of it so far. */
  #round = 0;
  #pages = 0;
  #zeroPages = 0;
  #bytes = 0;
  /** What is answered next: the hello, or a round's end. Until then nothing but the goodbye may come. */
  #unanswered: "hello" | "round's end" | null = "hello";
  #sealed = false;
  #closed = false;

  constructor(args: { arenas: readonly SinkArena[]; token: string; channels: number; events: SinkEvents }) {
    const { arenas, token, channels } = args;
    this.#arenas = arenas;
    this.#expected = { token, channels, arenas: arenas.map(({ arena }) => arena.ramPages) };
    this.#events = args.events;
    this.#target = this.#headerBytes;
  }

  /** Where the next bytes belong; never empty. */
  get target(): Uint8Array {
    return this.#target;
  }

  /** True after the source's orderly goodbye. */
  get closed(): boolean {
    return this.#closed;
  }

  /** The source was told that the channel is taken, or that the round is stored: the next round's frames may come. */
  answered(): void {
    this.#unanswered = null;
  }

  /**
   * No more pages are taken.
   * @throws DirtmapError `FRAME_REFUSED` where pages came that no ROUND_END has covered
   */
  seal(): void {
    this.#sealed = true;
    if (this.#begun)
      throw frameRefused(`channel ${this.#channel} carries pages of round ${this.#round}, which was never begun`);
  }

  /** Pages, or a part of a frame of pages, of a round that has not ended on this channel. */
  get #begun(): boolean {
    return this.#bytes > 0 || (this.#part !== "header" && this.#header?.type === "PAGES");
  }

  /** True in the middle of a frame: a connection that ends or stalls now was cut off. */
  get midFrame(): boolean {
    return this.#part !== "header" || this.#target.length < FRAME_HEADER_BYTES;
  }

  /**
   * The first `bytes` of {@link target} have been filled.
   * @throws DirtmapError `FRAME_REFUSED`; the sink is of no use afterwards
   */
  advance(bytes: number): void {
    this.#target = this.#target.subarray(bytes);
    if (this.#sequence === 0 && this.#part === "header") {
      checkOpening(this.#headerBytes.subarray(0, FRAME_HEADER_BYTES - this.#target.length));
    }
    while (this.#target.length === 0) {
      if (this.#part === "header") this.#headerArrived();
      else if (this.#part === "body") this.#bodyArrived();
      else this.#dataArrived();
    }
  }

  #expectHeader(): void {
    this.#sequence = (this.#sequence + 1) >>> 0;
    this.#part = "header";
    this.#target = this.#headerBytes;
  }

  #headerArrived(): void {
    if (this.#closed) throw frameRefused("a frame follows the source's goodbye");
    // The hello names the channel; every later header must carry the same number.
    const first = this.#sequence === 0 && this.#channel === 0;
    const claimed = this.#headerBytes[8] | (this.#headerBytes[9] << 8);
    const header = decodeHeader(this.#headerBytes, {
      channel: first ? claimed : this.#channel,
      sequence: this.#sequence,
    });
    if (first && header.type === "CONTROL") {
      throw new OtherSource("another source has connected", { code: "BUSY" });
    }
    if (first !== (header.type === "CHANNEL_HELLO")) {
      throw frameRefused(`a ${header.type} frame is out of place ${first ? "before the hello" : "here"}`);
    }
    if (!first) this.#checkOrder(header);
    if (header.arena >= this.#arenas.length) throw frameRefused(`arena ${header.arena} is not known`);
    this.#header = header;
    this.#part = "body";
    this.#target = this.#bodyView(header);
  }

  #checkOrder({ type, round }: FrameHeader): void {
    if (type === "CLOSE") return;
    if (this.#sealed) throw frameRefused(`a ${type} frame follows the last round`);
    if (this.#unanswered !== null) throw frameRefused(`a ${type} frame precedes the answer to the ${this.#unanswered}`);
    if (round !== this.#round) throw frameRefused(`a ${type} frame of round ${round} arrived in round ${this.#round}`);
  }

  #bodyView(header: FrameHeader): Uint8Array {
    if (header.type === "CHANNEL_HELLO") return this.#helloBytes.subarray(0, header.bodyBytes);
    const { u8 } = this.#arenas[header.arena].arena;
    const { body } = this.#slots[header.arena];
    return u8.subarray(body, body + header.bodyBytes);
  }

  #bodyArrived(): void {
    const header = this.#current();
    const body = this.#bodyView(header);
    checkBody(header, body);
    switch (header.type) {
      case "CHANNEL_HELLO": {
        const hello = checkHello(body, this.#expected);
        if (hello.channel !== header.channel) throw frameRefused("a hello names another channel than its header");
        this.#channel = hello.channel;
        this.#slots = this.#arenas.map(({ layout }) => receiverSlot(layout.slices[hello.channel - 1]));
        this.#expectHeader();
        this.#events.onHello(hello);
        return;
      }
      case "PAGES":
        this.#expectData(header);
        return;
      case "ROUND_END": {
        const totals = decodeRoundTotals(body);
        if (totals.pages !== this.#pages || totals.zeroPages !== this.#zeroPages) {
          throw frameRefused(`a round of ${totals.pages} pages ended after ${this.#pages}`);
        }
        const carried = { round: this.#round++, ...totals, bytes: this.#bytes };
        this.#pages = 0;
        this.#zeroPages = 0;
        this.#bytes = 0;
        this.#unanswered = "round's end";
        this.#expectHeader();
        this.#events.onRoundEnd(carried);
        return;
      }
      case "CLOSE":
        this.#closed = true;
        this.#expectHeader();
        this.#events.onClose();
        return;
      default:
        throw frameRefused(`a ${header.type} frame is out of place here`);
    }
  }

  #expectData(header: FrameHeader): void {
    const { arena, kernels } = this.#arenas[header.arena];
    const { body, staging } = this.#slots[header.arena];
    const pages = header.dataBytes >>> PAGE_SHIFT;
    if (kernels.checkRuns(body, header.runs, arena.ramPages) !== pages) {
      throw frameRefused("a run table names pages outside the guest's memory, or not those that follow");
    }
    this.#part = "data";
    this.#run = 0;
    this.#direct = pages >= header.runs * DIRECT_PAGES_PER_RUN;
    if (this.#direct) this.#nextRun(header);
    // Empty if all pages are zero: advance() goes on at once.
    else this.#target = arena.u8.subarray(staging, staging + header.dataBytes);
  }

  /** Aims at the next run of data in guest memory; false: there is none left. */
  #nextRun(header: FrameHeader): boolean {
    const { arena } = this.#arenas[header.arena];
    const { u8, u32 } = arena;
    const table = this.#slots[header.arena].body >>> 2;
    while (this.#run < header.runs) {
      const at = table + (this.#run++ * RUN_BYTES) / 4;
      const word = u32[at + 1];
      if ((word & 1) === 1) continue;
      const from = u32[at] * PAGE_SIZE;
      this.#target = u8.subarray(from, from + (word >>> 1) * PAGE_SIZE);
      return true;
    }
    return false;
  }

  #dataArrived(): void {
    const header = this.#current();
    const pages = header.dataBytes >>> PAGE_SHIFT;
    if (this.#direct && this.#nextRun(header)) return;
    const { kernels, layout } = this.#arenas[header.arena];
    const { body, staging } = this.#slots[header.arena];
    const digests = body + header.runs * RUN_BYTES;
    const from = this.#direct ? 0 : staging;
    const bad = kernels.storeFrame(body, header.runs, digests, from, layout.digests);
    if (bad !== -1) throw frameRefused(`page ${bad} of arena ${header.arena} is not what was sent`);
    const all = kernels.pagesInRuns(body, header.runs);
    this.#pages += all;
    this.#zeroPages += all - pages;
    this.#bytes += FRAME_HEADER_BYTES + header.bodyBytes + header.dataBytes;
    this.#expectHeader();
  }

  #current(): FrameHeader {
    if (this.#header === undefined) throw new Error("no frame is under way");
    return this.#header;
  }
}
