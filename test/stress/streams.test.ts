import { crc32 } from "node:zlib";
import { it } from "vitest";
import { DirtmapError } from "../../src/errors.js";
import { loadKernels } from "../../src/kernels/kernels.js";
import { MiB, PAGE_SIZE } from "../../src/memory/address.js";
import { createArena } from "../../src/memory/arena.js";
import { ramArena } from "../../src/memory/guest-memory.js";
import { encodeBody } from "../../src/migration/channels/hello.js";
import { digestTable, scratchLayout } from "../../src/migration/channels/layout.js";
import { PageSink } from "../../src/migration/channels/page-sink.js";
import { decodeMessage, encodeControlFrame } from "../../src/migration/stream/control-connection.js";
import { encodeFrame, FRAME_HEADER_BYTES } from "../../src/migration/stream/frame.js";
import { FrameReader } from "../../src/migration/stream/frame-reader.js";
import { type ControlMessage, PROTOCOL_VERSION } from "../../src/migration/stream/messages.js";
import { Random } from "../../tools/random.js";
import { frameProxy, rechecked } from "../support/frame-proxy.js";
import { pagesFrame } from "../support/played-source.js";
import { forEachSeed } from "../support/seed-range.js";
import { migrateThrough } from "./pair.js";

/*
 * Streams that are not as they should be: bits, lengths, fields and numbers changed, frames cut short, dropped, repeated and
 * out of order, with checksums and sequence numbers that are wrong or that fit. Most seeds give one to the parts that take
 * a stream apart, a few to a whole migration, whose both sides then meet it.
 * Nightly: DIRTMAP_SEEDS=1-100000 npm run test:stress -- streams
 */

const FEW = 200 * Number(process.env.DIRTMAP_STRESS_SEEDS ?? 1);
/** One seed of so many is a whole migration. */
const WHOLE_EVERY = 250;

/** What one change does to a list of frames. */
type Change = (random: Random, frames: Buffer[]) => void;

const at = (random: Random, frames: readonly Buffer[]) => random.below(frames.length);

/** Fits the checksums in one of two cases. */
const maybeRechecked = (random: Random, frame: Buffer) => (random.chance(50) ? rechecked(frame) : frame);

/** Offsets and widths of a header's fields: type, flags, channel, arena, sequence, round, runs, body bytes, data bytes. */
const FIELDS = [
  [5, 1],
  [6, 2],
  [8, 2],
  [10, 2],
  [12, 4],
  [16, 4],
  [20, 4],
  [24, 4],
  [28, 4],
] as const;

const CHANGES: readonly Change[] = [
  // A bit.
  (random, frames) => {
    const i = at(random, frames);
    const frame = Buffer.from(frames[i]);
    frame[random.below(frame.length)] ^= 1 << random.below(8);
    frames[i] = maybeRechecked(random, frame);
  },
  // A field of a header: near its value, or anything.
  (random, frames) => {
    const i = at(random, frames);
    const frame = Buffer.from(frames[i]);
    const [offset, width] = random.pick(FIELDS);
    const limit = 256 ** width;
    const old = frame.readUIntLE(offset, width);
    const value = random.chance(50) ? (old + random.between(1, 3)) % limit : random.below(limit - 1);
    frame.writeUIntLE(value, offset, width);
    frames[i] = rechecked(frame);
  },
  // A digit of what is said in JSON, or a run table's byte.
  (random, frames) => {
    const i = at(random, frames);
    const frame = Buffer.from(frames[i]);
    if (frame.length === FRAME_HEADER_BYTES) return;
    const digits = [...frame.keys()].filter((n) => n >= FRAME_HEADER_BYTES && frame[n] >= 0x30 && frame[n] <= 0x39);
    const spot =
      digits.length > 0 && random.chance(80)
        ? random.pick(digits)
        : random.between(FRAME_HEADER_BYTES, frame.length - 1);
    frame[spot] = 0x30 + random.below(10);
    frames[i] = rechecked(frame);
  },
  // Cut short.
  (random, frames) => {
    const i = at(random, frames);
    frames[i] = frames[i].subarray(0, random.below(frames[i].length));
  },
  // Dropped, repeated, out of order.
  (random, frames) => void frames.splice(at(random, frames), random.between(1, 2)),
  (random, frames) => void frames.splice(at(random, frames), 0, frames[at(random, frames)]),
  (random, frames) => {
    const [i, j] = [at(random, frames), at(random, frames)];
    [frames[i], frames[j]] = [frames[j], frames[i]];
  },
];

/** The frames with one to three changes; in half of the cases numbered as they come then. */
function changed(random: Random, frames: readonly Buffer[]): Buffer[] {
  const result = [...frames];
  for (let n = random.between(1, 3); n > 0 && result.length > 0; n--) random.pick(CHANGES)(random, result);
  if (random.chance(50)) return result;
  return result.map((frame, i) => {
    if (frame.length < FRAME_HEADER_BYTES) return frame;
    const numbered = Buffer.from(frame);
    numbered.writeUInt32LE(i, 12);
    numbered.writeUInt32LE(crc32(numbered.subarray(0, FRAME_HEADER_BYTES - 4)), 36);
    return numbered;
  });
}

const RAM_BYTES = 1 * MiB;
const arena = ramArena(createArena(RAM_BYTES + 2.5 * MiB), RAM_BYTES);
const kernels = loadKernels(arena.memory);
const layout = scratchLayout(arena, 2);
const sinkArenas = [{ arena, kernels, layout }];
const TOKEN = "5a".repeat(32);

/** An honest channel: two rounds, with lone pages. */
function channelFrames(random: Random): Buffer[] {
  const frames: Uint8Array[] = [];
  const next = () => ({ channel: 1, sequence: frames.length });
  const hello = { protocol: PROTOCOL_VERSION, token: TOKEN, channel: 1, arenas: [arena.ramPages] };
  frames.push(encodeFrame({ type: "CHANNEL_HELLO", ...next() }, encodeBody(hello)));
  for (let round = 0; round < 2; round++) {
    let pages = 0;
    for (let n = random.below(3); n >= 0; n--) {
      const sent = Array.from({ length: random.between(1, 4) }, (_, i) => ({
        page: i * 50 + random.below(50),
        byte: random.below(256),
      }));
      pages += sent.length;
      frames.push(pagesFrame({ ...next(), round }, sent));
    }
    frames.push(encodeFrame({ type: "ROUND_END", ...next(), round }, encodeBody({ pages, zeroPages: 0 })));
  }
  frames.push(encodeFrame({ type: "CLOSE", ...next() }, new Uint8Array(0)));
  return frames.map((frame) => Buffer.from(frame));
}

/** Fills memory that no channel may write, and says whether it is as it was. */
const guarded = [
  arena.u8.subarray(layout.bitmap, layout.slices[0]),
  arena.u8.subarray(layout.slices[1], arena.scratch.offset + arena.scratch.bytes),
];
const untouched = guarded.map((memory) => Buffer.alloc(memory.length, 0xa5));
for (const memory of guarded) memory.fill(0xa5);

/** A changed channel against a page sink. */
function sinkRun(random: Random): string {
  arena.u8.fill(0, 0, RAM_BYTES);
  const table = digestTable(arena, layout);
  kernels.digestPages(0, arena.ramPages, layout.digests);
  let rounds = 0;
  const sink: PageSink = new PageSink({
    arenas: sinkArenas,
    token: TOKEN,
    channels: 2,
    events: {
      onHello: () => sink.answered(),
      onRoundEnd: () => {
        rounds++;
        sink.answered();
      },
      onClose: () => {},
    },
  });
  const bytes = Buffer.concat(changed(random, channelFrames(random)));
  const piece = random.between(1, 8192);
  let outcome = "taken";
  try {
    for (let from = 0; from < bytes.length; ) {
      const { target } = sink;
      if (target.length === 0 || target.length > 256 * PAGE_SIZE) throw new Error(`it wants ${target.length} bytes`);
      const taken = Math.min(target.length, bytes.length - from, piece);
      target.set(bytes.subarray(from, from + taken));
      sink.advance(taken);
      from += taken;
    }
    if (rounds < 2 || sink.midFrame) outcome = "cut off";
    else sink.seal();
  } catch (error) {
    if (!(error instanceof DirtmapError)) throw error;
    outcome = "refused";
  }
  if (guarded.some((memory, i) => Buffer.compare(memory, untouched[i]) !== 0))
    throw new Error("it wrote where it must not");
  if (outcome === "taken") {
    // What READY's root is made of is what lies in memory, whatever was said.
    const noted = table.slice();
    kernels.digestPages(0, arena.ramPages, layout.digests);
    if (table.some((digest, page) => digest !== noted[page])) throw new Error("a digest is not that of its page");
  }
  return `channel ${outcome}`;
}

const CONVERSATION: readonly ControlMessage[] = [
  { type: "PING" },
  { type: "ACCEPT", software: "a test", mover: { kind: "dirtmap", token: TOKEN } },
  { type: "ROUND_BEGIN", round: 0, phase: "pre-copy", pages: 12 },
  { type: "DEVICE_STATE", device: "dev0", chunk: 0, last: true, data: Uint8Array.of(1, 2, 3) },
  { type: "ROUND_END", round: 0, pages: 12, zeroPages: 2, bytes: 41_000 },
  { type: "VCPU_STATE", data: new Uint8Array(300) },
  { type: "READY", rootDigest: TOKEN },
  { type: "RUNNING", resumeMs: 1.5 },
  { type: "DIGESTS", arena: 0, firstPage: 0, last: true, data: new Uint8Array(800) },
];

/** A changed conversation against what either side reads it with. */
function controlRun(random: Random): string {
  const honest = CONVERSATION.map((message, i) => Buffer.from(encodeControlFrame(i, message)));
  const bytes = Buffer.concat(changed(random, honest));
  const reader = new FrameReader(0, ["CONTROL"], 16 * 1024);
  let messages = 0;
  try {
    for (let from = 0; from < bytes.length; ) {
      const piece = random.between(1, 2000);
      for (const { body } of reader.push(bytes.subarray(from, from + piece))) {
        decodeMessage(body);
        messages++;
      }
      from += piece;
    }
  } catch (error) {
    if (error instanceof DirtmapError) return "control refused";
    throw error;
  }
  return messages === CONVERSATION.length ? "control taken" : "control cut off";
}

/** A whole migration; frames of one connection and direction are changed as they pass. */
async function wholeRun(random: Random): Promise<string> {
  const channels = random.between(1, 2);
  const victim = random.below(channels + 1);
  const index = random.below(victim === 0 ? 12 : 6);
  const toSource = random.chance(40);
  let held: Buffer | undefined;
  const meddle = (frame: Buffer, i: number, connection: number): Buffer => {
    if (connection !== victim) return frame;
    if (i === index) {
      held = frame;
      return Buffer.alloc(0);
    }
    if (held === undefined) return frame;
    const both = changed(random, [held, frame]);
    held = undefined;
    return Buffer.concat(both);
  };
  const meddlers = toSource ? { toSource: meddle } : { toDestination: meddle };
  const verify = random.chance(50) ? "before" : "after";
  return `whole ${await migrateThrough((port) => frameProxy(port, meddlers), { channels, verify })}`;
}

it(
  "a stream that is not as it should be crashes nothing, hangs nothing, and verifies nothing that is wrong",
  async () => {
    await forEachSeed("streams", FEW, async (seed) => {
      const random = new Random(seed);
      if (seed % WHOLE_EVERY === 0) return await wholeRun(random);
      return random.chance(60) ? sinkRun(random) : controlRun(random);
    });
  },
  24 * 60 * 60_000,
);
