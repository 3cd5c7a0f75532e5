import { Duplex } from "node:stream";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { DirtmapError } from "../../errors.js";
import { loadKernels } from "../../kernels/kernels.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { ramArena } from "../../memory/guest-memory.js";
import { decodeHeader, encodeFrame } from "../stream/frame.js";
import { PROTOCOL_VERSION } from "../stream/messages.js";
import { ChunkQueue, RoundProgress } from "./control-words.js";
import { encodeBody } from "./hello.js";
import { scratchLayout } from "./layout.js";
import { SenderChannel } from "./sender-channel.js";
import { TokenBucket } from "./token-bucket.js";

const arena = ramArena(createArena(6 * MiB), 1 * MiB);
const layout = scratchLayout(arena, 1);
const hello = { protocol: PROTOCOL_VERSION, token: "00".repeat(32), channel: 1, arenas: [arena.ramPages] };

interface Played {
  readonly channel: SenderChannel;
  readonly queue: ChunkQueue;
  readonly bucket: TokenBucket;
  readonly progress: RoundProgress;
  readonly socket: Duplex;
  /** What the source has written, a frame each. */
  readonly written: Buffer[];
}

/** A destination that the test plays: what it answers to each write of the source; undefined: it takes no more. */
function play(answer: (write: number) => Uint8Array | null | undefined): Played {
  const written: Buffer[] = [];
  const socket = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, taken) {
      const bytes = answer(written.length);
      written.push(Buffer.from(chunk));
      if (bytes === undefined) return;
      if (bytes !== null) socket.push(bytes);
      taken();
    },
    final(done) {
      socket.push(null);
      done();
    },
  });
  const queue = new ChunkQueue([arena.ramPages]);
  const bucket = new TokenBucket();
  const progress = RoundProgress.allocate(1);
  arena.u8.fill(0xff, layout.bitmap, layout.bitmap + arena.ramPages / 8);
  arena.u8.fill(1, 0, 1 * MiB);
  const channel = new SenderChannel({
    socket,
    arenas: [{ arena, kernels: loadKernels(arena.memory), layout }],
    channel: 0,
    queue,
    bucket,
    progress,
    explain: (cause) => new DirtmapError("broken", { code: "CONNECTION_LOST", cause }),
  });
  return { channel, queue, bucket, progress, socket, written };
}

const channelTo = (answer: Parameters<typeof play>[0]): SenderChannel => play(answer).channel;

/** The headers of what was written. */
const headersOf = (written: readonly Buffer[]) =>
  written.map((frame, sequence) => decodeHeader(frame, { channel: 1, sequence }));

const accepted = encodeFrame({ type: "ACCEPTED", channel: 0, sequence: 0 }, new Uint8Array(0));
const ack = (round: number, pages: number, sequence = 1) =>
  encodeFrame({ type: "ROUND_ACK", channel: 0, sequence, round }, encodeBody({ pages, zeroPages: 0 }));

/** The hello, two frames of 128 pages, and the round's end. */
const WRITES = { hello: 0, firstPages: 1, roundEnd: 3 };

describe("a sender's channel", () => {
  it("sends a round and takes its acknowledgement", async () => {
    const channel = channelTo((write) =>
      write === WRITES.hello ? accepted : write === WRITES.roundEnd ? ack(7, 256) : null,
    );
    await channel.open(hello);
    expect(await channel.sendRound(7)).toMatchObject({ pages: 256, zeroPages: 0 });
    await channel.close();
  });

  it("counts pages, zero pages and bytes of each round anew, in frames that are in order", async () => {
    const { channel, queue, progress, written } = play((write) =>
      write === 0 ? accepted : write === 3 ? ack(0, 256) : write === 5 ? ack(1, 2, 2) : null,
    );
    await channel.open(hello);
    arena.u8.fill(0, 0, 3 * PAGE_SIZE);
    const first = await channel.sendRound(0);
    const frames = written.slice(1, 3).reduce((sum, { length }) => sum + length, 0);
    expect(first).toEqual({ pages: 256, zeroPages: 3, bytes: frames });
    expect(progress.total()).toEqual({ pages: 256, bytes: frames });

    arena.u8.fill(0, layout.bitmap, layout.bitmap + arena.ramPages / 8);
    arena.u8[layout.bitmap] = 0b11;
    queue.restart();
    expect(await channel.sendRound(1)).toEqual({ pages: 2, zeroPages: 2, bytes: written[4].length });
    await channel.close();
    expect(headersOf(written).map(({ type, round }) => `${type} ${round}`)).toEqual([
      "CHANNEL_HELLO 0",
      "PAGES 0",
      "PAGES 0",
      "ROUND_END 0",
      "PAGES 1",
      "ROUND_END 1",
      "CLOSE 0",
    ]);
  });

  it("sends nothing but the round's end where no page is dirty", async () => {
    const { channel, written } = play((write) => (write === 0 ? accepted : write === 1 ? ack(0, 0) : null));
    await channel.open(hello);
    arena.u8.fill(0, layout.bitmap, layout.bitmap + arena.ramPages / 8);
    expect(await channel.sendRound(0)).toEqual({ pages: 0, zeroPages: 0, bytes: 0 });
    expect(written.length).toBe(2);
    await channel.close();
  });

  it("sends frames of 20 ms at a limited bandwidth, and of a page at least", async () => {
    for (const [pages, rate] of [
      [16, (16.9 * PAGE_SIZE) / 0.02],
      [1, 1],
    ]) {
      const { channel, bucket, written } = play((write) =>
        write === 0 ? accepted : write === 1 + 32 / pages ? ack(0, 32) : null,
      );
      await channel.open(hello);
      arena.u8.fill(0, layout.bitmap + 4, layout.bitmap + arena.ramPages / 8);
      bucket.setRate(rate);
      // The limit says how long a frame is; nothing is waited for here.
      vi.spyOn(bucket, "take").mockReturnValue(0);
      await channel.sendRound(0);
      const sizes = headersOf(written)
        .filter(({ type }) => type === "PAGES")
        .map(({ dataBytes }) => dataBytes / PAGE_SIZE);
      expect(sizes).toEqual(Array.from({ length: 32 / pages }, () => pages));
      await channel.close();
    }
  });

  it("waits while the bandwidth is used up, and can go on with all its buffers after a stop", async () => {
    const stops = 10;
    const { channel, bucket, queue, written } = play((write) =>
      write === 0
        ? accepted
        : write <= stops
          ? ack(write - 1, 0, write)
          : write === stops + 3
            ? ack(99, 256, stops + 1)
            : null,
    );
    await channel.open(hello);
    const asked: number[] = [];
    const take = vi.spyOn(bucket, "take").mockImplementation((bytes) => {
      if (asked.push(bytes) % 3 === 0) queue.stop();
      return 1;
    });
    // More often than there are buffers: none is lost.
    for (let stop = 0; stop < stops; stop++) {
      expect(await channel.sendRound(stop)).toEqual({ pages: 0, zeroPages: 0, bytes: 0 });
      queue.restart();
    }
    take.mockRestore();
    expect(asked.length).toBe(3 * stops);
    expect(await channel.sendRound(99)).toMatchObject({ pages: 256 });
    // It was asked for as many bytes as were sent.
    expect(new Set(asked)).toEqual(new Set([written[stops + 1].length]));
    await channel.close();
  });

  it("says what a refusal says, whenever it comes, and only the first thing that goes wrong", async () => {
    const words = { code: "NO_ROOM", message: "no room", remedy: "make some" };
    const refusal = encodeFrame({ type: "REFUSED", channel: 0, sequence: 1 }, encodeBody(words));
    const { channel, socket, queue } = play((write) => (write === 0 ? accepted : null));
    await channel.open(hello);
    socket.push(refusal);
    await new Promise((resolve) => socket.once("close", resolve));
    expect(queue.stopped).toBe(true);
    for (let again = 0; again < 2; again++) {
      await expect(channel.sendRound(again)).rejects.toMatchObject({
        code: "NO_ROOM",
        message: "the destination ends a channel: no room",
        remedy: "make some",
      });
    }
    await channel.close();
  });

  it("is lost with the transport's words where it breaks, and with others where it only ends", async () => {
    const broken = play((write) => (write === 0 ? accepted : null));
    await broken.channel.open(hello);
    broken.socket.destroy(new Error("reset"));
    await new Promise((resolve) => setImmediate(resolve));
    await expect(broken.channel.sendRound(0)).rejects.toMatchObject({ code: "CONNECTION_LOST" });
    await broken.channel.close();

    const ended = play((write) => (write === 0 ? accepted : null));
    await ended.channel.open(hello);
    ended.socket.destroy();
    await new Promise((resolve) => setImmediate(resolve));
    await expect(ended.channel.sendRound(0)).rejects.toMatchObject({ code: "CHANNEL_LOST" });
    await ended.channel.close();
  });

  it("takes no acceptance for an acknowledgement, nor the other way round", async () => {
    const late = channelTo(() => encodeFrame({ type: "ROUND_ACK", channel: 0, sequence: 0 }, new Uint8Array(0)));
    await expect(late.open(hello)).rejects.toMatchObject({ code: "FRAME_REFUSED" });
    await late.close();
    const again = encodeFrame({ type: "ACCEPTED", channel: 0, sequence: 1 }, encodeBody({ pages: 256, zeroPages: 0 }));
    const early = channelTo((write) => (write === 0 ? accepted : write === WRITES.roundEnd ? again : null));
    await early.open(hello);
    await expect(early.sendRound(0)).rejects.toMatchObject({ code: "FRAME_REFUSED" });
    await early.close();
  });

  it.each([
    ["another round", ack(8, 256), "FRAME_REFUSED"],
    ["fewer pages", ack(7, 255), "FRAME_REFUSED"],
    ["no frame at all", new Uint8Array(40).fill(7), "FRAME_REFUSED"],
    [
      "a refusal",
      encodeFrame(
        { type: "REFUSED", channel: 0, sequence: 1 },
        encodeBody({ code: "FRAME_REFUSED", message: "page 3" }),
      ),
      "FRAME_REFUSED",
    ],
  ])("takes %s for no acknowledgement", async (_, answer, code) => {
    const channel = channelTo((write) =>
      write === WRITES.hello ? accepted : write === WRITES.roundEnd ? answer : null,
    );
    await channel.open(hello);
    await expect(channel.sendRound(7)).rejects.toMatchObject({ code });
    await channel.close();
  });

  it("takes an answer that it didn't ask for as damage", async () => {
    const both = Buffer.concat([accepted, ack(0, 0)]);
    const channel = channelTo((write) => (write === WRITES.hello ? both : null));
    await channel.open(hello).catch(() => {});
    await expect(channel.sendRound(0)).rejects.toMatchObject({ code: "FRAME_REFUSED" });
    await channel.close();
  });
});

describe("a destination that stands still", () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "performance"] }));
  afterEach(() => void vi.useRealTimers());

  /** Lets the channel get as far as it can. */
  async function settled({ written }: Played): Promise<void> {
    for (let before = -1; before !== written.length; ) {
      before = written.length;
      for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  it.each([
    ["takes no bytes", WRITES.firstPages, undefined],
    ["doesn't acknowledge", WRITES.roundEnd, null],
  ])("is noticed after 10 s where it %s any more", async (_, from, answer) => {
    const played = play((write) => (write === WRITES.hello ? accepted : write >= from ? answer : null));
    await played.channel.open(hello);
    // A channel with nothing to say may be silent.
    await vi.advanceTimersByTimeAsync(60_000);
    let outcome = "waits";
    const round = played.channel.sendRound(0).catch(({ code }: DirtmapError) => {
      outcome = code;
    });
    await settled(played);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(outcome).toBe("waits");
    await vi.advanceTimersByTimeAsync(1000);
    await round;
    expect(outcome).toBe("CHANNEL_LOST");
    await played.channel.close();
  });

  it("is waited for while the source itself holds back, by its bandwidth limit", async () => {
    const played = play((write) => (write === 0 ? accepted : write === WRITES.roundEnd ? ack(0, 256) : null));
    await played.channel.open(hello);
    let waits = 30;
    vi.spyOn(played.bucket, "take").mockImplementation(() => {
      vi.advanceTimersByTime(1000);
      return waits-- > 0 ? 1 : 0;
    });
    expect(await played.channel.sendRound(0)).toMatchObject({ pages: 256 });
    await played.channel.close();
  });
});
