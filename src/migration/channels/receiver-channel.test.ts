import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { DirtmapError } from "../../errors.js";
import { loadKernels } from "../../kernels/kernels.js";
import { MiB } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { ramArena } from "../../memory/guest-memory.js";
import { dup } from "../../sys/fd.js";
import { decodeMessage } from "../stream/control-connection.js";
import { encodeFrame, type FrameTypeName } from "../stream/frame.js";
import { FrameReader } from "../stream/frame-reader.js";
import { PROTOCOL_VERSION } from "../stream/messages.js";
import { decodeRefusal, decodeRoundTotals, encodeBody } from "./hello.js";
import { scratchLayout } from "./layout.js";
import { PageSink } from "./page-sink.js";
import { ReceiverChannel } from "./receiver-channel.js";

const arena = ramArena(createArena(4 * MiB), 1 * MiB);
const sinkArena = { arena, kernels: loadKernels(arena.memory), layout: scratchLayout(arena, 2) };
const TOKEN = "5a".repeat(32);
const NUMBER = 2;
const nothing = new Uint8Array(0);

const frame = (type: FrameTypeName, sequence: number, body: Uint8Array, round = 0) =>
  encodeFrame({ type, channel: NUMBER, sequence, round }, body);
const hello = frame(
  "CHANNEL_HELLO",
  0,
  encodeBody({ protocol: PROTOCOL_VERSION, token: TOKEN, channel: NUMBER, arenas: [arena.ramPages] }),
);
const roundEnd = (sequence: number, round: number) =>
  frame("ROUND_END", sequence, encodeBody({ pages: 0, zeroPages: 0 }), round);

/** The source's end of a connection, and what it hears. */
interface Source {
  readonly socket: Socket;
  /** The next frame; null: the connection has ended. */
  hears(): Promise<{ type: FrameTypeName; round: number; body: Uint8Array } | null>;
}

let channel: ReceiverChannel;
let source: Source;

async function open(): Promise<void> {
  channel = new ReceiverChannel({
    arenas: [sinkArena],
    token: TOKEN,
    channels: 2,
    busy: { code: "BUSY", message: "it receives another machine", remedy: "wait" },
  });
  const server = createServer({ pauseOnConnect: true });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const accepting = once(server, "connection") as Promise<[Socket & { _handle: { fd: number } }]>;
  const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
  const [accepted] = await accepting;
  const fd = dup(accepted._handle.fd);
  accepted.destroy();
  server.close();
  source = { socket, hears: hearing(socket) };
  channel.receivePlain(fd);
}

afterEach(() => {
  vi.useRealTimers();
  source.socket.destroy();
  channel.destroy(new DirtmapError("the test is over", { code: "OVER" }));
});

function hearing(socket: Socket): Source["hears"] {
  const reader = new FrameReader(0, ["ACCEPTED", "ROUND_ACK", "REFUSED", "CONTROL"]);
  const frames = (async function* () {
    try {
      for await (const bytes of socket) yield* reader.push(bytes as Uint8Array);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ECONNRESET") throw error;
    }
  })();
  return async () => {
    const { value, done } = await frames.next();
    return done === true ? null : { type: value.header.type, round: value.header.round, body: value.body };
  };
}

/** Joins, and is accepted. */
async function join(): Promise<void> {
  source.socket.write(hello);
  expect(await channel.joined).toBe(NUMBER);
  channel.accept();
  expect(await source.hears()).toMatchObject({ type: "ACCEPTED", round: 0, body: { length: 0 } });
}

/** Resolves when the channel has taken so many bytes more. */
async function arrival(bytes: number): Promise<void> {
  const taken = vi.spyOn(PageSink.prototype, "advance");
  const sum = () => taken.mock.calls.reduce((sum, [more]) => sum + more, 0);
  while (sum() < bytes) await new Promise((resolve) => setImmediate(resolve));
  taken.mockRestore();
}

describe("a receiver's channel", () => {
  beforeEach(open);

  it("joins with its number, and has each round acknowledged until the goodbye", async () => {
    await join();
    for (const round of [0, 1]) {
      channel.beginRound(round);
      source.socket.write(roundEnd(round + 1, round));
      const answer = await source.hears();
      expect(answer).toMatchObject({ type: "ROUND_ACK", round });
      expect(decodeRoundTotals(answer?.body ?? nothing)).toEqual({ pages: 0, zeroPages: 0 });
      expect(channel.endRound(round)).toEqual({ round, pages: 0, zeroPages: 0, bytes: 0 });
    }
    channel.seal();
    source.socket.write(frame("CLOSE", 3, nothing));
    await channel.ended;
    expect(await source.hears()).toBeNull();
  });

  it("acknowledges a round once the control connection has begun it, and never twice", async () => {
    await join();
    source.socket.write(roundEnd(1, 0));
    await arrival(roundEnd(1, 0).length);
    expect(() => channel.endRound(0)).toThrow(expect.objectContaining({ code: "FRAME_REFUSED" }));
    channel.beginRound(0);
    expect(channel.endRound(0)).toMatchObject({ round: 0 });
    channel.beginRound(1);
    source.socket.write(roundEnd(2, 1));
    expect(await source.hears()).toMatchObject({ type: "ROUND_ACK", round: 0 });
    expect(await source.hears()).toMatchObject({ type: "ROUND_ACK", round: 1 });
    expect(channel.endRound(1)).toMatchObject({ round: 1 });
    for (const round of [0, 2]) expect(() => channel.endRound(round)).toThrow(/has not ended it/);
  });

  it("takes nothing of the next round before that is acknowledged, nor after it was sealed", async () => {
    await join();
    source.socket.write(Buffer.concat([roundEnd(1, 0), roundEnd(2, 1)]));
    await expect(channel.ended).rejects.toThrow(/precedes the answer to the round's end/);
  });

  it("takes nothing before it was accepted", async () => {
    source.socket.write(Buffer.concat([hello, roundEnd(1, 0)]));
    expect(await channel.joined).toBe(NUMBER);
    await expect(channel.ended).rejects.toThrow(/precedes the answer to the hello/);
  });

  it("takes no round once it was sealed", async () => {
    await join();
    channel.seal();
    source.socket.write(roundEnd(1, 0));
    await expect(channel.ended).rejects.toThrow(/follows the last round/);
  });

  it("says what it refuses, once, drops what still comes, and ends", async () => {
    source.socket.write(Buffer.concat([frame("ROUND_END", 0, nothing), new Uint8Array(200_000)]));
    await expect(channel.joined).rejects.toMatchObject({ code: "FRAME_REFUSED" });
    await expect(channel.ended).rejects.toMatchObject({ code: "FRAME_REFUSED" });
    channel.refuse({ code: "AGAIN", message: "no" });
    const refusal = await source.hears();
    expect(refusal?.type).toBe("REFUSED");
    expect(decodeRefusal(refusal?.body ?? nothing)).toMatchObject({
      code: "FRAME_REFUSED",
      message: expect.stringContaining("before the hello"),
    });
    expect(await source.hears()).toBeNull();
  });

  it("is refused by the migration in words of a bounded length", async () => {
    await join();
    channel.refuse({ code: "c".repeat(100), message: "m".repeat(2000), remedy: "r".repeat(2000) });
    const refusal = await source.hears();
    expect(decodeRefusal(refusal?.body ?? nothing)).toEqual({
      code: "c".repeat(64),
      message: "m".repeat(1024),
      remedy: "r".repeat(1024),
    });
    await expect(channel.ended).rejects.toMatchObject({ code: "c".repeat(100) });
  });

  it("tells another migration's source that the destination is busy, in that source's own protocol", async () => {
    const ping = encodeFrame({ type: "CONTROL", channel: 0, sequence: 0, round: PROTOCOL_VERSION }, nothing);
    source.socket.write(ping);
    await expect(channel.joined).rejects.toMatchObject({ code: "BUSY" });
    const answer = await source.hears();
    expect(decodeMessage(answer?.body ?? nothing)).toEqual({
      type: "REFUSE",
      code: "BUSY",
      message: "it receives another machine",
      remedy: "wait",
    });
    expect(await source.hears()).toBeNull();
  });

  it.each([
    ["between frames", nothing, "the source is gone"],
    ["in the middle of a frame", roundEnd(1, 0).subarray(0, 50), "it was cut off in the middle of a frame"],
  ])("is lost where it ends %s without a goodbye", async (_, rest, why) => {
    await join();
    source.socket.end(rest);
    await expect(channel.ended).rejects.toMatchObject({ code: "CHANNEL_LOST", message: `a channel was lost: ${why}` });
  });

  it("ends at once, for the reason that was given", async () => {
    await join();
    channel.destroy(new DirtmapError("the migration was cancelled", { code: "CANCELLED" }));
    await expect(channel.ended).rejects.toMatchObject({ code: "CANCELLED" });
    expect(await source.hears()).toBeNull();
  });
});

describe("a source that is silent", () => {
  // Time passes for the channel, and not for its connection.
  beforeEach(async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "performance"] });
    await open();
  });

  /** What has become of the channel after so many ms. */
  async function outcomeAfter(ms: number): Promise<string> {
    await vi.advanceTimersByTimeAsync(ms);
    const ended = channel.ended.then(String, ({ code }: DirtmapError) => code);
    return await Promise.race([ended, new Promise<string>((resolve) => setImmediate(resolve, "waits"))]);
  }

  it("before its hello is gone after 10 s", async () => {
    expect(await outcomeAfter(10_000)).toBe("waits");
    expect(await outcomeAfter(1000)).toBe("CHANNEL_LOST");
  });

  it("between frames has nothing to send, and in the middle of one is gone after 10 s", async () => {
    await join();
    expect(await outcomeAfter(60_000)).toBe("waits");
    const half = roundEnd(1, 0).subarray(0, 50);
    source.socket.write(half);
    await arrival(half.length);
    expect(await outcomeAfter(10_000)).toBe("waits");
    expect(await outcomeAfter(1000)).toBe("CHANNEL_LOST");
  });
});
