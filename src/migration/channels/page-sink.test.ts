import { crc32 } from "node:zlib";
import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import { DirtmapError } from "../../errors.js";
import { loadKernels } from "../../kernels/kernels.js";
import { xxh3 } from "../../kernels/twins/xxh3.js";
import { MiB, PAGE_SIZE } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { ramArena } from "../../memory/guest-memory.js";
import { encodeFrame, encodeHeader, FRAME_HEADER_BYTES } from "../stream/frame.js";
import { PROTOCOL_VERSION } from "../stream/messages.js";
import { encodeBody } from "./hello.js";
import { scratchLayout } from "./layout.js";
import { OtherSource, PageSink, type SinkEvents } from "./page-sink.js";

const RAM_BYTES = 1 * MiB;
const RAM_PAGES = RAM_BYTES / PAGE_SIZE;
const TOKEN = "5a".repeat(32);

/** One arena for all tests: what lies behind the sink's slice must never change. */
const arena = ramArena(createArena(RAM_BYTES + 2.5 * MiB), RAM_BYTES);
const sinkArena = { arena, kernels: loadKernels(arena.memory), layout: scratchLayout(arena, 2) };
const CHANNELS = 2;
const SLICE = 0;

/** A sink that is answered at once, as by a migration whose other channels have joined and whose rounds are begun. */
function openSink(events: Partial<SinkEvents> = {}): PageSink {
  const sink: PageSink = openUnansweredSink({
    ...events,
    onHello: () => sink.answered(),
    onRoundEnd: (carried) => {
      sink.answered();
      events.onRoundEnd?.(carried);
    },
  });
  return sink;
}

function openUnansweredSink(events: Partial<SinkEvents> = {}): PageSink {
  const nothing = { onHello: () => {}, onRoundEnd: () => {}, onClose: () => {} };
  return new PageSink({ arenas: [sinkArena], token: TOKEN, channels: CHANNELS, events: { ...nothing, ...events } });
}

/** Gives a sink bytes as a socket would, in pieces. */
function feed(sink: PageSink, bytes: Uint8Array, piece = 1000): void {
  for (let at = 0; at < bytes.length; ) {
    const taken = Math.min(sink.target.length, bytes.length - at, piece);
    sink.target.set(bytes.subarray(at, at + taken));
    sink.advance(taken);
    at += taken;
  }
}

interface Run {
  first: number;
  pages: number;
  zero: boolean;
}

function pageData(seed: number): Uint8Array {
  return new Uint8Array(PAGE_SIZE).fill((seed % 255) | 1);
}

/** A PAGES frame as a sender would make it, and, for hostile ones, with a header that lies about it. */
function pagesFrame(
  sequence: number,
  runs: readonly Run[],
  lie: { bodyBytes?: number; dataBytes?: number; round?: number } = {},
) {
  const pages = runs
    .filter(({ zero }) => !zero)
    .flatMap(({ first, pages }) => Array.from({ length: pages }, (_, i) => first + i));
  const body = new DataView(new ArrayBuffer(runs.length * 8 + pages.length * 8));
  runs.forEach(({ first, pages, zero }, i) => {
    body.setUint32(i * 8, first, true);
    body.setUint32(i * 8 + 4, pages * 2 + Number(zero), true);
  });
  pages.forEach((page, i) => {
    body.setBigUint64(runs.length * 8 + i * 8, xxh3(pageData(page)), true);
  });
  const bytes = new Uint8Array(body.buffer);
  const frame = new Uint8Array(FRAME_HEADER_BYTES + bytes.length + pages.length * PAGE_SIZE);
  encodeHeader(frame, 0, {
    type: "PAGES",
    channel: 1,
    arena: 0,
    sequence,
    round: 0,
    runs: runs.length,
    bodyBytes: bytes.length,
    dataBytes: pages.length * PAGE_SIZE,
    bodyChecksum: crc32(bytes),
    ...lie,
  });
  frame.set(bytes, FRAME_HEADER_BYTES);
  pages.forEach((page, i) => {
    frame.set(pageData(page), FRAME_HEADER_BYTES + bytes.length + i * PAGE_SIZE);
  });
  return frame;
}

const helloFrame = encodeFrame(
  { type: "CHANNEL_HELLO", channel: 1, sequence: 0 },
  encodeBody({ protocol: PROTOCOL_VERSION, token: TOKEN, channel: 1, arenas: [RAM_PAGES] }),
);

const endFrame = (sequence: number, pages: number, zeroPages: number, round = 0) =>
  encodeFrame({ type: "ROUND_END", channel: 1, sequence, round }, encodeBody({ pages, zeroPages }));

const goodbye = { type: "CLOSE", channel: 1 } as const;

/** The frame with another 16-bit field in its header, and a checksum that fits. */
function withField(frame: Uint8Array, at: number, value: number): Uint8Array {
  const view = new DataView(frame.buffer, frame.byteOffset);
  view.setUint16(at, value, true);
  view.setUint32(36, crc32(frame.subarray(0, 36)), true);
  return frame;
}

/** A small stream with both ways of storing: long runs (received directly), and lone pages (by way of staging). */
const RUNS: Run[][] = [
  [{ first: 8, pages: 9, zero: false }],
  [
    { first: 100, pages: 1, zero: false },
    { first: 102, pages: 2, zero: true },
    { first: 110, pages: 1, zero: false },
  ],
];
const STREAM = Buffer.concat([
  helloFrame,
  ...RUNS.map((runs, i) => pagesFrame(i + 1, runs)),
  endFrame(3, 13, 2),
  encodeFrame({ type: "CLOSE", channel: 1, sequence: 4 }, new Uint8Array(0)),
]);

/** The memory that a sink may not write: everything but RAM, the digest table and its own slice. */
function guarded(): Uint8Array[] {
  const { layout } = sinkArena;
  const slice = layout.slices[SLICE];
  return [
    arena.u8.subarray(layout.bitmap, slice),
    arena.u8.subarray(slice + layout.sliceBytes, arena.scratch.offset + arena.scratch.bytes),
  ];
}

beforeEach(() => {
  arena.u8.fill(0, 0, RAM_BYTES);
  for (const memory of guarded()) memory.fill(0xa5);
});

function expectGuardsIntact(): void {
  for (const memory of guarded()) expect(Buffer.compare(memory, new Uint8Array(memory.length).fill(0xa5))).toBe(0);
}

describe("a page sink", () => {
  it("stores what a stream says, however its bytes are cut", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5000 }), (piece) => {
        arena.u8.fill(0xee, 0, RAM_BYTES);
        const rounds: unknown[] = [];
        const sink = openSink({ onRoundEnd: (carried) => rounds.push(carried) });
        feed(sink, STREAM, piece);
        const bytes = RUNS.reduce((sum, runs, i) => sum + pagesFrame(i + 1, runs).length, 0);
        expect(rounds).toEqual([{ round: 0, pages: 13, zeroPages: 2, bytes }]);
        expect(sink.closed).toBe(true);
        expect(sink.midFrame).toBe(false);
        for (let page = 0; page < RAM_PAGES; page++) {
          const run = RUNS.flat().find(({ first, pages }) => page >= first && page < first + pages);
          const expected =
            run === undefined
              ? new Uint8Array(PAGE_SIZE).fill(0xee)
              : run.zero
                ? new Uint8Array(PAGE_SIZE)
                : pageData(page);
          expect(Buffer.compare(arena.u8.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE), expected)).toBe(0);
        }
        expectGuardsIntact();
      }),
      { numRuns: 10 },
    );
  });

  it("stores long runs on both sides of zero pages, and frames of zero pages alone", () => {
    arena.u8.fill(0xee, 0, RAM_BYTES);
    const rounds: unknown[] = [];
    const sink = openSink({ onRoundEnd: (carried) => rounds.push(carried) });
    const frames = [
      pagesFrame(1, [
        { first: 0, pages: 2, zero: true },
        { first: 10, pages: 20, zero: false },
        { first: 40, pages: 3, zero: true },
        { first: 50, pages: 20, zero: false },
      ]),
      pagesFrame(2, [{ first: 90, pages: 5, zero: true }]),
    ];
    feed(sink, Buffer.concat([helloFrame, ...frames, endFrame(3, 50, 10)]));
    expect(rounds).toMatchObject([{ round: 0, pages: 50, zeroPages: 10 }]);
    for (let page = 0; page < RAM_PAGES; page++) {
      const within = (first: number, pages: number) => page >= first && page < first + pages;
      const zero = within(0, 2) || within(40, 3) || within(90, 5);
      const byte = zero ? 0 : within(10, 20) || within(50, 20) ? pageData(page)[0] : 0xee;
      const bytes = arena.u8.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
      if (!bytes.every((each) => each === byte)) expect.fail(`page ${page}`);
    }
    expectGuardsIntact();
  });

  it("counts each round anew", () => {
    const rounds: unknown[] = [];
    const sink = openSink({ onRoundEnd: (carried) => rounds.push(carried) });
    const frame = (sequence: number, round: number) =>
      pagesFrame(
        sequence,
        [
          { first: 0, pages: 2, zero: false },
          { first: 2, pages: 1, zero: true },
        ],
        { round },
      );
    feed(sink, Buffer.concat([helloFrame, frame(1, 0), endFrame(2, 3, 1), frame(3, 1), endFrame(4, 3, 1, 1)]));
    const bytes = frame(1, 0).length;
    expect(rounds).toEqual([0, 1].map((round) => ({ round, pages: 3, zeroPages: 1, bytes })));
    // What a round has carried does not keep the sink from being sealed after it.
    expect(() => sink.seal()).not.toThrow();
  });

  it("knows at every point of a stream that it is cut off there, except between frames", () => {
    const sink = openSink();
    const boundaries = new Set([helloFrame.length]);
    RUNS.reduce((at, runs, i) => {
      const next = at + pagesFrame(i + 1, runs).length;
      boundaries.add(next);
      return next;
    }, helloFrame.length);
    const end = STREAM.length - FRAME_HEADER_BYTES;
    boundaries.add(end);
    for (let at = 1; at < STREAM.length; at++) {
      feed(sink, STREAM.subarray(at - 1, at));
      // An expect() per byte would take most of the time.
      if (sink.closed || sink.midFrame === boundaries.has(at)) expect.fail(`after ${at} bytes`);
    }
  });

  it("refuses a stream in which any bit is flipped", () => {
    const refused = (bit: number) => {
      const damaged = Uint8Array.from(STREAM);
      damaged[bit >>> 3] ^= 1 << (bit & 7);
      let ended = 0;
      const sink = openSink({ onRoundEnd: () => ended++ });
      try {
        feed(sink, damaged, 1 << 20);
      } catch (error) {
        expect(error).toBeInstanceOf(DirtmapError);
        expect(error).toMatchObject({ code: "FRAME_REFUSED" });
        return true;
      }
      return ended === 0;
    };
    // Every bit of headers and bodies, and a sample of the pages' bits.
    const heads = [helloFrame.length + FRAME_HEADER_BYTES + 8 + 9 * 8, STREAM.length - 300];
    for (let bit = 0; bit < heads[0] * 8; bit++) if (!refused(bit)) expect.fail(`bit ${bit} went unnoticed`);
    for (let bit = heads[1] * 8; bit < STREAM.length * 8; bit++) {
      if (!refused(bit)) expect.fail(`bit ${bit} went unnoticed`);
    }
    fc.assert(fc.property(fc.nat(STREAM.length * 8 - 1), (bit) => refused(bit)));
    expectGuardsIntact();
  });

  const hostile: [what: string, frame: () => Uint8Array][] = [
    ["a run behind the end of RAM", () => pagesFrame(1, [{ first: RAM_PAGES, pages: 1, zero: false }])],
    ["a run that reaches over the end of RAM", () => pagesFrame(1, [{ first: RAM_PAGES - 1, pages: 2, zero: true }])],
    ["a run whose end wraps around", () => pagesFrame(1, [{ first: 0xffffffff, pages: 2, zero: true }])],
    ["an empty run", () => pagesFrame(1, [{ first: 0, pages: 0, zero: true }])],
    ["a frame without runs", () => pagesFrame(1, [])],
    [
      "more pages than follow",
      () => pagesFrame(1, [{ first: 0, pages: 3, zero: false }], { bodyBytes: 16, dataBytes: PAGE_SIZE }),
    ],
    ["a body of 4 GiB", () => pagesFrame(1, [{ first: 0, pages: 1, zero: true }], { bodyBytes: 0xffffffff })],
    ["data of 4 GiB", () => pagesFrame(1, [{ first: 0, pages: 1, zero: true }], { dataBytes: 0xfffff000 })],
    ["a round's end with another number of pages", () => endFrame(1, 1, 0)],
    ["a round's end with another number of zero pages", () => endFrame(1, 0, 1)],
    ["the end of another round", () => endFrame(1, 0, 0, 1)],
    ["pages of another round", () => pagesFrame(1, [{ first: 0, pages: 1, zero: false }], { round: 1 })],
    ["pages of another arena", () => withField(pagesFrame(1, [{ first: 0, pages: 1, zero: false }]), 10, 1)],
    ["a goodbye that names a round", () => encodeFrame({ ...goodbye, sequence: 1, round: 1 }, new Uint8Array(0))],
    [
      "anything after a goodbye",
      () => Buffer.concat([1, 2].map((sequence) => encodeFrame({ ...goodbye, sequence }, new Uint8Array(0)))),
    ],
    ["an acceptance", () => encodeFrame({ type: "ACCEPTED", channel: 1, sequence: 1 }, new Uint8Array(0))],
    [
      "a goodbye that names an arena",
      () => withField(encodeFrame({ ...goodbye, sequence: 1 }, new Uint8Array(0)), 10, 1),
    ],
    ["flags", () => withField(encodeFrame({ ...goodbye, sequence: 1 }, new Uint8Array(0)), 6, 1)],
    ["a second hello", () => encodeFrame({ type: "CHANNEL_HELLO", channel: 1, sequence: 1 }, helloFrame.subarray(40))],
    ["a frame of another channel", () => encodeFrame({ type: "CLOSE", channel: 2, sequence: 1 }, new Uint8Array(0))],
    ["a frame that is left out", () => encodeFrame({ type: "CLOSE", channel: 1, sequence: 2 }, new Uint8Array(0))],
    ["a control message", () => encodeFrame({ type: "CONTROL", channel: 1, sequence: 1 }, new Uint8Array(10))],
  ];
  it.each(hostile)("refuses %s, and writes nothing", (_, frame) => {
    const sink = openSink();
    feed(sink, helloFrame);
    expect(() => feed(sink, frame())).toThrow(expect.objectContaining({ code: "FRAME_REFUSED" }));
    expect(Buffer.compare(arena.u8.subarray(0, RAM_BYTES), new Uint8Array(RAM_BYTES))).toBe(0);
    expectGuardsIntact();
  });

  it("takes nothing before a hello with the migration's token and memory", () => {
    const good = { protocol: PROTOCOL_VERSION, token: TOKEN, channel: 1, arenas: [RAM_PAGES] };
    const bad = [
      { ...good, token: "5b".repeat(32) },
      { ...good, arenas: [RAM_PAGES, RAM_PAGES] },
      { ...good, arenas: [RAM_PAGES + 1] },
      { ...good, channel: 2 },
    ];
    const frameOf = (hello: typeof good, channel = 1) =>
      encodeFrame({ type: "CHANNEL_HELLO", channel, sequence: 0 }, encodeBody(hello));
    for (const hello of bad) {
      expect(() => feed(openSink(), frameOf(hello))).toThrow(expect.objectContaining({ code: "FRAME_REFUSED" }));
    }
    expect(() => feed(openSink(), frameOf({ ...good, channel: 3 }, 3))).toThrow("channel 3 of 2");
    expect(() => feed(openSink(), frameOf({ ...good, protocol: 1 }))).toThrow(
      expect.objectContaining({ code: "INCOMPATIBLE", remedy: "upgrade Dirtmap at the source" }),
    );
    const pages = pagesFrame(0, [{ first: 0, pages: 1, zero: false }]);
    expect(() => feed(openSink(), pages)).toThrow(/before the hello/);
  });

  it("takes no page before its hello was answered, nor between a round's end and its answer", () => {
    const waiting = openUnansweredSink();
    feed(waiting, helloFrame);
    expect(() => feed(waiting, pagesFrame(1, [{ first: 0, pages: 1, zero: false }]))).toThrow(/answer to the hello/);

    const sink: PageSink = openUnansweredSink({ onHello: () => sink.answered() });
    feed(sink, Buffer.concat([helloFrame, endFrame(1, 0, 0)]));
    const next = pagesFrame(2, [{ first: 0, pages: 1, zero: false }], { round: 1 });
    expect(() => feed(sink, next)).toThrow(/answer to the round's end/);
    expect(arena.u8.subarray(0, RAM_BYTES).every((byte) => byte === 0)).toBe(true);
  });

  it("takes no page once it is sealed, and can't be sealed in the middle of a round", () => {
    const page = [{ first: 0, pages: 1, zero: false }];
    const sealed = openSink();
    feed(sealed, helloFrame);
    sealed.seal();
    expect(() => feed(sealed, pagesFrame(1, page))).toThrow(/follows the last round/);

    const goodbye = openSink();
    feed(goodbye, helloFrame);
    goodbye.seal();
    feed(goodbye, encodeFrame({ type: "CLOSE", channel: 1, sequence: 1 }, new Uint8Array(0)));
    expect(goodbye.closed).toBe(true);

    // Half a frame without pages has no page that could be lost.
    const ending = openSink();
    feed(ending, helloFrame);
    feed(ending, endFrame(1, 0, 0).subarray(0, FRAME_HEADER_BYTES + 3));
    expect(() => ending.seal()).not.toThrow();

    for (const cut of [FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + 16, FRAME_HEADER_BYTES + 100, undefined]) {
      const begun = openSink();
      feed(begun, helloFrame);
      feed(begun, pagesFrame(1, page).subarray(0, cut));
      expect(() => begun.seal()).toThrow(/never begun/);
    }
  });

  it("knows another source's control connection, and TLS, by their first bytes", () => {
    const ping = encodeFrame({ type: "CONTROL", channel: 0, sequence: 0, round: PROTOCOL_VERSION }, new Uint8Array(0));
    expect(() => feed(openSink(), ping)).toThrow(OtherSource);
    expect(() => feed(openSink(), Uint8Array.of(0x16, 3, 1))).toThrow(
      expect.objectContaining({ code: "WRONG_SCHEME" }),
    );
    const damage = expect.objectContaining({ code: "FRAME_REFUSED" });
    expect(() => feed(openSink(), Buffer.from("GET"))).toThrow(damage);
    // Behind the hello the same bytes are damage.
    const joined = openSink();
    feed(joined, helloFrame);
    expect(() => feed(joined, new Uint8Array(FRAME_HEADER_BYTES).fill(0x16))).toThrow(damage);
  });
});
