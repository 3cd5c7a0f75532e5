import { Duplex } from "node:stream";
import { describe, expect, it } from "vitest";
import { DirtmapError } from "../../errors.js";
import { loadKernels } from "../../kernels/kernels.js";
import { MiB } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { ramArena } from "../../memory/guest-memory.js";
import { encodeFrame } from "../stream/frame.js";
import { PROTOCOL_VERSION } from "../stream/messages.js";
import { ChunkQueue, RoundProgress } from "./control-words.js";
import { encodeBody } from "./hello.js";
import { scratchLayout } from "./layout.js";
import { SenderChannel } from "./sender-channel.js";
import { SharedTokenBucket } from "./shared-token-bucket.js";

const arena = ramArena(createArena(6 * MiB), 1 * MiB);
const layout = scratchLayout(arena, 1);
const hello = { protocol: PROTOCOL_VERSION, token: "00".repeat(32), channel: 1, arenas: [arena.ramPages] };

/** A destination that the test plays: what it answers to each write of the source; undefined: it takes no more. */
function channelTo(answer: (write: number) => Uint8Array | null | undefined): SenderChannel {
  let writes = 0;
  const socket = new Duplex({
    read() {},
    write(_chunk, _encoding, taken) {
      const bytes = answer(writes++);
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
  arena.u8.fill(0xff, layout.bitmap, layout.bitmap + arena.ramPages / 8);
  arena.u8.fill(1, 0, 1 * MiB);
  return new SenderChannel({
    socket,
    arenas: [{ arena, kernels: loadKernels(arena.memory), layout }],
    channel: 0,
    queue,
    bucket: new SharedTokenBucket(),
    progress: RoundProgress.allocate(1),
    explain: (cause) => new DirtmapError("broken", { code: "CONNECTION_LOST", cause }),
    stallMs: 100,
  });
}

const accepted = encodeFrame({ type: "ACCEPTED", channel: 0, sequence: 0 }, new Uint8Array(0));
const ack = (round: number, pages: number) =>
  encodeFrame({ type: "ROUND_ACK", channel: 0, sequence: 1, round }, encodeBody({ pages, zeroPages: 0 }));

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

  it.each([
    ["takes no bytes", WRITES.firstPages],
    ["doesn't acknowledge", WRITES.roundEnd],
  ])("notices a destination that %s any more", async (_, from) => {
    const channel = channelTo((write) =>
      write === WRITES.hello ? accepted : write >= from ? (from === WRITES.roundEnd ? null : undefined) : null,
    );
    await channel.open(hello);
    await expect(channel.sendRound(0)).rejects.toMatchObject({ code: "CHANNEL_LOST" });
    await channel.close();
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
