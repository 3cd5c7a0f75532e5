import { randomBytes } from "node:crypto";
import { connect } from "node:net";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { RamBitmap } from "../../bitmap/ram-bitmap.js";
import { makeCertificates } from "../../certs/certs.js";
import { DirtmapError } from "../../errors.js";
import { KiB, MiB, PAGE_SIZE } from "../../memory/address.js";
import { createGuestMemory, type GuestMemory } from "../../memory/guest-memory.js";
import type { ChannelAddress, PageReceiver, PageSender } from "../data-plane.js";
import { encodeFrame } from "../stream/frame.js";
import { PROTOCOL_VERSION } from "../stream/messages.js";
import type { TlsCredentials } from "../transport/credentials.js";
import { type Listener, listen } from "../transport/listener.js";
import { openReceiver } from "./receiver.js";
import { openSender } from "./sender.js";

/*
 * Sender and receiver in one process, each with its own memory and threads, joined by loopback connections.
 */

const MEMORY = 4 * MiB;
const { signal: never } = new AbortController();

interface Pair extends AsyncDisposable {
  readonly source: GuestMemory;
  readonly destination: GuestMemory;
  readonly refused: unknown[];
  /** Sends the pages and checks that the two memories, and what either side says of them, are equal. */
  round(pages: RamBitmap): Promise<{ pages: number; zeroPages: number; bytes: number }>;
  readonly sender: PageSender;
  readonly receiver: PageReceiver;
  /** Begins the next round at the destination; its number. */
  begin(): Promise<number>;
  closeReceiver(): Promise<void>;
}

async function openPair(
  channels: number,
  tls?: { server: TlsCredentials; client: TlsCredentials },
  change: (address: ChannelAddress) => ChannelAddress = (address) => address,
  beforeChannels: (listener: Listener) => Promise<void> = async () => {},
): Promise<Pair> {
  const [source, destination] = [createGuestMemory(MEMORY), createGuestMemory(MEMORY)];
  const listener = await listen({
    endpoint: { scheme: tls === undefined ? "tcp" : "tls", host: "127.0.0.1", port: 0 },
    credentials: tls?.server,
  });
  const token = randomBytes(32).toString("hex");
  const refused: unknown[] = [];
  const receiver = openReceiver({
    memory: destination,
    listener,
    channels,
    token,
    onRefused: (error) => refused.push(error),
  });
  await beforeChannels(listener);
  const { port } = listener.endpoint;
  const address = change({ host: "127.0.0.1", port, token, ...(tls && { tls: tls.client }) });
  const closeReceiver = async () => {
    await receiver[Symbol.asyncDispose]();
    await listener[Symbol.asyncDispose]();
  };
  const sender = await openSender({ memory: source, address, channels, signal: never }).catch(async (error) => {
    await closeReceiver();
    throw error;
  });
  let rounds = 0;
  const begin = async () => {
    await receiver.beginRound(rounds);
    return rounds++;
  };
  return {
    source,
    destination,
    refused,
    sender,
    receiver,
    begin,
    closeReceiver,
    async round(pages) {
      const round = await begin();
      const sent = await sender.sendRound(round, pages, never);
      await receiver.endRound(round, sent);
      for (const [index, arena] of source.arenas.entries()) {
        const bytes = arena.ramPages * PAGE_SIZE;
        const other = destination.arenas[index].u8.subarray(0, bytes);
        expect(Buffer.compare(arena.u8.subarray(0, bytes), other)).toBe(0);
      }
      expect((await sender.digest()).arenas).toEqual(receiver.digests().arenas);
      return sent;
    },
    async [Symbol.asyncDispose]() {
      await sender[Symbol.asyncDispose]();
      await closeReceiver();
    },
  };
}

/** Writes pages of the source, and marks them: a few runs of pages, each of data or of zeroes. */
type Writes = readonly { first: number; pages: number; seed: number }[];
const writes = fc.array(
  fc.record({
    first: fc.nat(MEMORY / PAGE_SIZE - 1),
    pages: fc.integer({ min: 1, max: 200 }),
    seed: fc.oneof(fc.constant(0), fc.nat()),
  }),
  { maxLength: 12 },
);

function write({ arenas: [arena] }: GuestMemory, dirty: RamBitmap, list: Writes): void {
  for (const { first, pages, seed } of list) {
    for (let page = first; page < Math.min(first + pages, arena.ramPages); page++) {
      arena.u32.fill(seed === 0 ? 0 : seed + page, page * 1024, (page + 1) * 1024);
      dirty.arenas[0][page >>> 5] |= 1 << (page & 31);
    }
  }
}

function only(memory: GuestMemory, ...list: Writes): RamBitmap {
  const pages = new RamBitmap(memory);
  write(memory, pages, list);
  return pages;
}

const certificates = await makeCertificates({ hosts: ["127.0.0.1"] });

describe.each([
  ["tcp", 1, undefined],
  ["tcp", 3, undefined],
  ["tls", 2, certificates],
] as const)("over %s with %i channels", (_, channels, tls) => {
  let opened: Promise<Pair> | undefined;
  afterAll(async () => {
    await (await opened)?.[Symbol.asyncDispose]();
  });

  it("digest the source's memory also when the destination has gone", async () => {
    await using pair = await openPair(2);
    const [arena] = pair.source.arenas;
    arena.u8.fill(7, 2 ** 20, arena.ramPages * PAGE_SIZE);
    const pages = new RamBitmap(pair.source);
    pages.setAll();
    await pair.round(pages);
    const [before] = (await pair.sender.digest()).arenas;
    const expected = before.slice();
    before.fill(0n);
    await pair.closeReceiver();
    await expect(pair.sender.sendRound(9, pages, never)).rejects.toMatchObject({ code: expect.any(String) });
    expect((await pair.sender.digest()).arenas).toEqual([expected]);
  });

  it("the destination's memory equals the source's after each round of random writes", async () => {
    opened ??= openPair(channels, tls);
    const pair = await opened;
    await fc.assert(
      fc.asyncProperty(writes, async (list) => {
        const pages = only(pair.source, ...list);
        const { pages: sent } = await pair.round(pages);
        expect(sent).toBe(pages.count());
      }),
      { numRuns: 15 },
    );
  });

  it("lone pages all over memory arrive, and their neighbours stay", async () => {
    opened ??= openPair(channels, tls);
    const pair = await opened;
    const sparse = Array.from({ length: 300 }, (_, i) => ({ first: i * 3, pages: 1, seed: i + 1 }));
    const { pages } = await pair.round(only(pair.source, ...sparse));
    expect(pages).toBe(300);
  });

  it("zero pages travel as runs, and make memory zero that was not", async () => {
    opened ??= openPair(channels, tls);
    const pair = await opened;
    await pair.round(only(pair.source, { first: 0, pages: 1024, seed: 7 }));
    const sent = await pair.round(only(pair.source, { first: 0, pages: 1024, seed: 0 }));
    expect(sent).toMatchObject({ pages: 1024, zeroPages: 1024 });
    expect(sent.bytes).toBeLessThan(1 * KiB);
  });
});

describe("a sender", () => {
  it("stops after the frame in flight when it is cancelled, and can go on with another round", async () => {
    await using pair = await openPair(2);
    pair.sender.setBandwidth(100 * KiB);
    const cancel = new AbortController();
    const all = only(pair.source, { first: 0, pages: 1024, seed: 3 });
    const round = pair.sender.sendRound(await pair.begin(), all, cancel.signal);
    while (pair.sender.progress().pages === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    cancel.abort(new Error("that's enough"));
    await expect(round).rejects.toThrow("that's enough");
    expect(pair.sender.progress().pages).toBeLessThan(1024);
    pair.sender.setBandwidth(Number.POSITIVE_INFINITY);
    await pair.round(all);
  });

  it("tells when the destination is gone", async () => {
    await using pair = await openPair(1);
    pair.sender.setBandwidth(100 * KiB);
    const round = pair.sender.sendRound(0, only(pair.source, { first: 0, pages: 1024, seed: 3 }), never);
    const outcome = expect(round).rejects.toMatchObject({ code: expect.stringMatching(/LOST/) });
    while (pair.sender.progress().pages === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await pair.closeReceiver();
    await outcome;
    await expect(pair.sender.sendRound(1, new RamBitmap(pair.source), never)).rejects.toThrow(DirtmapError);
  });

  it("is refused without the migration's token", async () => {
    const opening = openPair(1, undefined, (address) => ({ ...address, token: "0".repeat(64) }));
    await expect(opening).rejects.toMatchObject({ code: "FRAME_REFUSED" });
  });

  it("is refused with a certificate of another CA, with an expired one, and without TLS", async () => {
    const other = await makeCertificates({ hosts: ["127.0.0.1"] });
    const { ca } = certificates.client;
    const wrong = { server: certificates.server, client: { ...other.client, ca } };
    await expect(openPair(1, wrong)).rejects.toMatchObject({ code: "CERTIFICATE_REFUSED" });
    const plain = openPair(1, certificates, ({ tls: _, ...address }) => address);
    await expect(plain).rejects.toThrow(DirtmapError);
  });
});

describe("a receiver", () => {
  it("turns strangers away and still takes the migration's own channels", async () => {
    await using pair = await openPair(1, undefined, undefined, async ({ endpoint }) => {
      const socket = connect(endpoint.port, "127.0.0.1");
      socket.end("GET / HTTP/1.1\r\nHost: of something else altogether\r\n\r\n");
      await new Promise((resolve) => socket.once("close", resolve).resume());
    });
    expect(pair.refused).toMatchObject([{ code: "FRAME_REFUSED" }]);
    await pair.round(only(pair.source, { first: 5, pages: 3, seed: 1 }));
  });

  it("tells when a channel of the migration ends without a goodbye", async () => {
    const memory = createGuestMemory(MEMORY);
    await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
    const token = randomBytes(32).toString("hex");
    await using receiver = openReceiver({ memory, listener, channels: 1, token });
    const hello = {
      protocol: PROTOCOL_VERSION,
      token,
      channel: 1,
      arenas: memory.arenas.map(({ ramPages }) => ramPages),
    };
    const body = new TextEncoder().encode(JSON.stringify(hello));
    const socket = connect(listener.endpoint.port, "127.0.0.1");
    socket.write(encodeFrame({ type: "CHANNEL_HELLO", channel: 1, sequence: 0 }, body));
    await new Promise((resolve) => socket.once("data", resolve));
    socket.end(encodeFrame({ type: "ROUND_END", channel: 1, sequence: 1 }, body).subarray(0, 50));
    await expect(receiver.failed).rejects.toMatchObject({ code: "CHANNEL_LOST" });
  });
});
