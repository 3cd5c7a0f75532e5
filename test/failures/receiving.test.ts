import { mkdtempSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { machineSchema } from "../../src/host/description.js";
import { MiB } from "../../src/memory/address.js";
import { type ReceiveResult, receive } from "../../src/migration/destination.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import { migrate } from "../../src/migration/source.js";
import { type Listener, listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { leakedDescriptors, openDescriptors } from "../support/descriptors.js";
import { type PlayedChannel, PlayedSource } from "../support/played-source.js";
import { FakeMachine, Witness } from "./fake-machine.js";

/*
 * The destination's door: what a source must have sent before READY is said, and what strangers, other sources and
 * sources that leave cost.
 */

const journals = mkdtempSync(join(tmpdir(), "dirtmap-test-"));
afterAll(() => rmSync(journals, { recursive: true, force: true }));

const description = machineSchema.parse({ memory: 4 * MiB, vcpus: { count: 1 }, devices: [] });
/** Pages of the arena that 4 MiB make, the hole below 1 MiB included. */
const ARENAS = [1024];
let migrations = 0;

interface Destination extends AsyncDisposable {
  readonly listener: Listener;
  readonly port: number;
  readonly received: Promise<ReceiveResult>;
  readonly refused: unknown[];
  readonly machine: () => FakeMachine | undefined;
}

async function destination(witness = new Witness()): Promise<Destination> {
  const refused: unknown[] = [];
  const onRefused = (error: unknown) => refused.push(error);
  const listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 }, onRefused });
  let machine: FakeMachine | undefined;
  const received = listener.acceptControl().then((control) =>
    receive({
      source: acceptedSource(listener, control, onRefused),
      createMachine: async () => {
        machine = await FakeMachine.create({ name: "destination", witness, devices: [] });
        return machine;
      },
      journalDirectory: journals,
    }),
  );
  received.catch(() => {});
  return {
    listener,
    port: listener.endpoint.port,
    received,
    refused,
    machine: () => machine,
    async [Symbol.asyncDispose]() {
      await listener[Symbol.asyncDispose]();
      await received.catch(() => {});
      machine?.kill();
    },
  };
}

/** A played migration whose channels have joined and were accepted. */
async function joined(port: number, announced: number): Promise<{ source: PlayedSource; channels: PlayedChannel[] }> {
  const source = await PlayedSource.connect(port);
  const token = await source.offer(description, announced, `played-${migrations++}`);
  const channels: PlayedChannel[] = [];
  for (let number = 1; number <= announced; number++) {
    const channel = await source.channel(number);
    channel.hello(token, ARENAS);
    channels.push(channel);
  }
  for (const channel of channels) expect((await channel.answer())?.header.type).toBe("ACCEPTED");
  return { source, channels };
}

const PAGES = [
  { page: 300, byte: 1 },
  { page: 302, byte: 2 },
];

describe("a destination is READY", () => {
  it("when each channel has ended the round, and all together carried what the source says", async () => {
    await using there = await destination();
    const { source, channels } = await joined(there.port, 2);
    await using _source = source;
    await source.begin(0, 2);
    const bytes = channels[0].pages(0, PAGES);
    channels[0].endRound(0, 2);
    channels[1].endRound(0, 0);
    for (const channel of channels) expect((await channel.answer())?.header.type).toBe("ROUND_ACK");
    await source.end(0, 2, bytes);
    expect(await source.prepare(0)).toBe("READY");
    expect(there.machine()?.memory.arenas[0].u8[302 * 4096]).toBe(2);
  });

  it("also when the channels were a round ahead of a control connection that was held up", async () => {
    await using there = await destination();
    const { source, channels } = await joined(there.port, 1);
    await using _source = source;
    const [channel] = channels;
    await source.begin(0, 2, "pre-copy");
    const first = channel.pages(0, PAGES);
    channel.endRound(0, 2);
    expect((await channel.answer())?.header.type).toBe("ROUND_ACK");
    const second = channel.pages(1, PAGES.slice(1));
    channel.endRound(1, 1);
    // The thread has them before the control connection says anything of them.
    await expect.poll(() => there.machine()?.memory.arenas[0].u8[302 * 4096]).toBe(2);
    await source.end(0, 2, first);
    await source.begin(1, 1);
    expect((await channel.answer())?.header).toMatchObject({ type: "ROUND_ACK", round: 1 });
    await source.end(1, 1, second);
    expect(await source.prepare(1)).toBe("READY");
  });

  /** What a source leaves out or says wrongly, and what the destination says to it. */
  const wrong: [
    what: string,
    said: RegExp,
    play: (source: PlayedSource, channels: PlayedChannel[]) => Promise<void>,
  ][] = [
    [
      "a channel has not ended the round",
      /a channel has not ended it/,
      async (source, [first]) => {
        await source.begin(0, 2);
        const bytes = first.pages(0, PAGES);
        first.endRound(0, 2);
        await first.answer();
        await source.end(0, 2, bytes);
      },
    ],
    [
      "fewer pages arrived than were sent",
      /sent with 3 pages, and 2 arrived/,
      async (source, channels) => {
        await source.begin(0, 3);
        await source.end(0, 3, await wholeRound(channels));
      },
    ],
    [
      "fewer bytes arrived than were sent",
      /bytes, and \d+ arrived/,
      async (source, channels) => {
        await source.begin(0, 2);
        await source.end(0, 2, (await wholeRound(channels)) + 1);
      },
    ],
    [
      "other pages are zero than were sent",
      /sent with 1 zero pages, and 0 arrived/,
      async (source, channels) => {
        await source.begin(0, 2);
        await source.end(0, 2, await wholeRound(channels), 1);
      },
    ],
    [
      "a round ends with other pages than it began with",
      /began with 3 pages and ends with 2/,
      async (source, channels) => {
        await source.begin(0, 3);
        await source.end(0, 2, await wholeRound(channels));
      },
    ],
    [
      "pages are of another round",
      /PAGES frame of round 1 arrived in round 0/,
      async (source, [first]) => {
        await source.begin(0, 2);
        first.pages(1, PAGES);
      },
    ],
    [
      "a round is left out",
      /round 1 begins where round 0 is due/,
      async (source) => {
        await source.begin(1, 0);
      },
    ],
    [
      "the last round is of pre-copy",
      /the machine still ran/,
      async (source, channels) => {
        await source.begin(0, 2, "pre-copy");
        await source.end(0, 2, await wholeRound(channels));
        await source.prepare(0).catch(() => {});
      },
    ],
    [
      "pages came after the last round",
      /which was never begun|follows the last round/,
      async (source, channels) => {
        await source.begin(0, 2);
        await source.end(0, 2, await wholeRound(channels));
        channels[0].pages(1, PAGES);
        // They are there, or on their way, when PREPARE comes.
        await new Promise((resolve) => channels[0].socket.write(new Uint8Array(0), resolve));
        await source.prepare(0);
      },
    ],
    [
      "the vCPUs' state came twice",
      /came twice/,
      async (source) => {
        for (let n = 0; n < 2; n++) await source.control.send({ type: "VCPU_STATE", data: Uint8Array.of(48) });
      },
    ],
  ];
  it.each(wrong)("not when %s", async (_, said, play) => {
    await using there = await destination();
    const { source, channels } = await joined(there.port, 2);
    await using _source = source;
    await play(source, channels);
    const result = await there.received;
    expect(result.outcome).toBe("discarded");
    expect("error" in result && result.error.message).toMatch(said);
  });

  it("not when some of the channels that were announced never joined", async () => {
    await using there = await destination();
    await using source = await PlayedSource.connect(there.port);
    const token = await source.offer(description, 16, `played-${migrations++}`);
    const channel = await source.channel(1);
    channel.hello(token, ARENAS);
    await source.begin(0, 0);
    expect(await source.verdict()).toMatch(/round 0 begins with [01] of 16 channels/);
  });

  it("and takes no page before all have joined, nor two channels of one number", async () => {
    await using there = await destination();
    await using source = await PlayedSource.connect(there.port);
    const token = await source.offer(description, 2, `played-${migrations++}`);
    const [first, twin] = [await source.channel(1), await source.channel(1)];
    first.hello(token, ARENAS);
    twin.hello(token, ARENAS);
    const turnedAway = await Promise.race([first.answer(), twin.answer()]);
    expect(turnedAway?.header.type).toBe("REFUSED");
    expect(Buffer.from(turnedAway?.body ?? []).toString()).toMatch(/channel 1 has joined already/);
    // One of the two has joined.
    for (const channel of [first, twin]) channel.pages(0, PAGES);
    expect(await source.verdict()).toMatch(/precedes the answer to the hello/);
  });
});

/** Sends {@link PAGES} over the first channel and ends round 0 on all. Returns the bytes. */
async function wholeRound(channels: readonly PlayedChannel[]): Promise<number> {
  const bytes = channels[0].pages(0, PAGES);
  for (const [i, channel] of channels.entries()) channel.endRound(0, i === 0 ? 2 : 0);
  for (const channel of channels) expect((await channel.answer())?.header.type).toBe("ROUND_ACK");
  return bytes;
}

async function stranger(port: number, says?: string): Promise<Socket> {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => {}).resume();
  await new Promise((resolve) => socket.once("connect", resolve));
  if (says !== undefined) socket.write(says);
  return socket;
}

describe("strangers among a migration's channels", () => {
  it("that say nothing hold up no channel, and those that say something else are turned away", async () => {
    await using there = await destination();
    await using source = await PlayedSource.connect(there.port);
    const token = await source.offer(description, 3, `played-${migrations++}`);
    const strangers: Socket[] = [];
    const channels: PlayedChannel[] = [];
    for (let number = 1; number <= 3; number++) {
      strangers.push(await stranger(there.port), await stranger(there.port), await stranger(there.port, "GET /"));
      const channel = await source.channel(number);
      channel.hello(token, ARENAS);
      channels.push(channel);
    }
    for (const channel of channels) expect((await channel.answer())?.header.type).toBe("ACCEPTED");
    await source.begin(0, 2);
    await source.end(0, 2, await wholeRound(channels));
    expect(await source.prepare(0)).toBe("READY");
    for (const socket of strangers) socket.destroy();
  });

  it("are told that the destination is busy where they are another migration's source", async () => {
    await using there = await destination();
    await using source = await PlayedSource.connect(there.port);
    const token = await source.offer(description, 1, "the-first");
    // The channel is still waited for.
    await using second = await PlayedSource.connect(there.port);
    const told = {
      type: "REFUSE",
      code: "BUSY",
      message: expect.stringMatching(/migration the-first from .*, since 20/),
    };
    expect(await second.control.receive()).toMatchObject(told);
    const channel = await source.channel(1);
    channel.hello(token, ARENAS);
    expect((await channel.answer())?.header.type).toBe("ACCEPTED");
    await using third = await PlayedSource.connect(there.port);
    expect(await third.control.receive()).toMatchObject(told);
  });
});

describe("a destination that has received many", () => {
  it("is told by a source at once that it is busy, as an error of one line", async () => {
    await using there = await destination();
    await using first = await PlayedSource.connect(there.port);
    await first.offer(description, 1, "one-before");
    await using machine = await FakeMachine.create({
      name: "source",
      witness: new Witness(),
      running: true,
      devices: [],
    });
    const attempt = migrate({
      machine,
      description,
      transport: sourceTransport({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: there.port } }),
      policy: DEFAULT_POLICY,
      design: "split",
      journalDirectory: journals,
    });
    await expect(attempt).rejects.toMatchObject({
      code: "BUSY",
      message: expect.stringMatching(/busy with migration one-before/),
    });
  });

  it("leaves no descriptor open of migrations that were cancelled at any point, and warns of no listeners", async () => {
    const warnings: Error[] = [];
    const warned = (warning: Error) => warnings.push(warning);
    process.on("warning", warned);
    // What is opened once, for good.
    await cancelled("pre-copy");
    const before = openDescriptors();
    try {
      for (let n = 0; n < 4; n++) await cancelled(n % 2 === 0 ? "tracking" : "pre-copy");
      expect(await leakedDescriptors(before)).toEqual([]);
      expect(warnings).toEqual([]);
    } finally {
      process.off("warning", warned);
    }
  }, 300_000);

  it("leaves no descriptor open of sources that were refused or left, and warns of no listeners", async () => {
    const warnings: Error[] = [];
    const warned = (warning: Error) => warnings.push(warning);
    process.on("warning", warned);
    const stop = new AbortController();
    const before = openDescriptors();
    try {
      await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
      for (let n = 0; n < 24; n++) {
        const accepted = listener.acceptControl(stop.signal);
        const source = await PlayedSource.connect(listener.endpoint.port);
        const received = receive({
          source: acceptedSource(listener, await accepted),
          createMachine: async () => {
            throw new Error("no room");
          },
          journalDirectory: journals,
          signal: stop.signal,
        });
        if (n % 2 === 0) await expect(source.offer(description, 1, `refused-${n}`)).rejects.toThrow("REFUSE");
        await source[Symbol.asyncDispose]();
        expect((await received).outcome).toBe("refused");
      }
      await listener[Symbol.asyncDispose]();
      expect(await leakedDescriptors(before)).toEqual([]);
      expect(warnings).toEqual([]);
    } finally {
      process.off("warning", warned);
    }
  });
});

/** A migration in this process that is cancelled as it enters a phase. */
async function cancelled(at: "tracking" | "pre-copy"): Promise<void> {
  const witness = new Witness();
  await using there = await destination(witness);
  await using machine = await FakeMachine.create({ name: "source", witness, running: true, devices: [] });
  const cancel = new AbortController();
  const report = await migrate({
    machine,
    description,
    transport: sourceTransport({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: there.port } }),
    policy: DEFAULT_POLICY,
    design: "split",
    journalDirectory: journals,
    signal: cancel.signal,
    hooks: {
      beforePhase: (phase) => {
        if (phase === at) cancel.abort(new Error("that is enough"));
      },
    },
  });
  expect(report.result).toBe("cancelled");
  expect((await there.received).outcome).toBe("discarded");
}
