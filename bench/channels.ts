import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect as connectTcp, createServer } from "node:net";
import { argv } from "node:process";
import { fileURLToPath } from "node:url";
import { RamBitmap } from "../src/bitmap/ram-bitmap.js";
import { makeCertificates, type TryoutCertificates } from "../src/certs/certs.js";
import { interleave, type Summary, summarize } from "../src/evidence/statistics.js";
import { GiB, MiB } from "../src/memory/address.js";
import { fillMemory } from "../src/memory/fill.js";
import { createGuestMemory, type GuestMemory } from "../src/memory/guest-memory.js";
import { openReceiver } from "../src/migration/channels/receiver.js";
import { openSender } from "../src/migration/channels/sender.js";
import type { PageReceiver, RoundSent } from "../src/migration/data-plane.js";
import { listen } from "../src/migration/transport/listener.js";

/*
 * How fast the channels move a guest of random pages from one process to another over loopback, by one and two channels,
 * plain and by TLS, beside what node:net alone does in the same run.
 */

export interface ChannelOptions {
  /** Bytes of guest memory. */
  readonly bytes?: number;
  readonly repetitions?: number;
}

/** One way to move the bytes. */
export interface ChannelRow {
  readonly bench: "channels";
  readonly way: "node:net alone" | "tcp, 1 channel" | "tcp, 2 channels" | "tls, 1 channel" | "tls, 2 channels";
  readonly bytes: number;
  readonly seconds: Summary;
  /** User and system time of both processes. */
  readonly cpuSeconds: Summary;
  /** Of the median. GB are 10^9 bytes. */
  readonly gbPerSecond: number;
}

const RECEIVER = "--receiver";
const CHUNK = 1 * MiB;

interface Order {
  readonly raw: boolean;
  readonly bytes: number;
  readonly channels: number;
  readonly token: string;
  readonly tls: TryoutCertificates["server"] | undefined;
}

/** What the receiving process is asked for; it answers with a number. */
type Request = "usage" | { readonly begin: number } | { readonly end: number; readonly sent: RoundSent };

interface Sample {
  readonly seconds: number;
  readonly cpuSeconds: number;
}

/** Measures each way of sending one round of all pages. */
export async function run({ bytes = 2 * GiB, repetitions = 3 }: ChannelOptions = {}): Promise<ChannelRow[]> {
  const memory = createGuestMemory(bytes);
  fillMemory(memory, 1, 1);
  const certificates = await makeCertificates({ hosts: ["127.0.0.1"] });
  const ways: [ChannelRow["way"], () => Promise<Sample>][] = [
    ["node:net alone", () => sendRaw(bytes)],
    ["tcp, 1 channel", () => sendPages(memory, 1, undefined)],
    ["tcp, 2 channels", () => sendPages(memory, 2, undefined)],
    ["tls, 1 channel", () => sendPages(memory, 1, certificates)],
    ["tls, 2 channels", () => sendPages(memory, 2, certificates)],
  ];
  const samples = await interleave(
    ways.map(([, way]) => way),
    repetitions,
    false,
  );
  return ways.map(([way], index) => {
    const seconds = summarize(samples[index].map((sample) => sample.seconds));
    const cpuSeconds = summarize(samples[index].map((sample) => sample.cpuSeconds));
    return { bench: "channels", way, bytes, seconds, cpuSeconds, gbPerSecond: bytes / 1e9 / seconds.median };
  });
}

/** node:net alone, one connection. */
function sendRaw(bytes: number): Promise<Sample> {
  return withReceiver({ raw: true, bytes, channels: 1, token: "", tls: undefined }, async (port, measured) => {
    const socket = connectTcp(port, "127.0.0.1");
    await once(socket, "connect");
    const data = randomBytes(CHUNK);
    return await measured(async () => {
      for (let sent = 0; sent < bytes; sent += CHUNK) {
        if (!socket.write(data)) await once(socket, "drain");
      }
      await once(socket, "data");
    });
  });
}

async function sendPages(
  memory: GuestMemory,
  channels: number,
  certificates: TryoutCertificates | undefined,
): Promise<Sample> {
  const token = randomBytes(32).toString("hex");
  const order: Order = { raw: false, bytes: memory.bytes, channels, token, tls: certificates?.server };
  return await withReceiver(order, async (port, measured, child) => {
    const { signal } = new AbortController();
    const address = { host: "127.0.0.1", port, token, ...(certificates && { tls: certificates.client }) };
    await using sender = await openSender({ memory, address, channels, signal });
    const pages = new RamBitmap(memory);
    pages.setAll();
    const count = pages.count();
    await asked(child, { begin: 0 });
    return await measured(async () => {
      const { zeroPages, bytes } = await sender.sendRound(0, pages, signal);
      await asked(child, { end: 0, sent: { pages: count, zeroPages, bytes } });
    });
  });
}

/** Tells the receiving process something, as the control connection of a migration does, and waits until it is done. */
async function asked(child: ChildProcess, request: Request): Promise<number> {
  const answer = once(child, "message");
  child.send(request);
  const [value] = await answer;
  return value as number;
}

/** Starts the other process, and measures what `run` hands to `measured`, on both sides. */
async function withReceiver(
  order: Order,
  run: (port: number, measured: (work: () => Promise<void>) => Promise<Sample>, child: ChildProcess) => Promise<Sample>,
): Promise<Sample> {
  const child = fork(fileURLToPath(import.meta.url), [RECEIVER]);
  try {
    child.send(order);
    const [port] = await once(child, "message");
    const measured = async (work: () => Promise<void>) => {
      const receiverBefore = await asked(child, "usage");
      const before = process.cpuUsage();
      const startedAt = performance.now();
      await work();
      const seconds = (performance.now() - startedAt) / 1000;
      const { user, system } = process.cpuUsage(before);
      const receiver = (await asked(child, "usage")) - receiverBefore;
      return { seconds, cpuSeconds: (user + system) / 1e6 + receiver };
    };
    return await run(port as number, measured, child);
  } finally {
    child.disconnect();
    await once(child, "exit");
  }
}

/** The other process: receives what it is told to, and says what processor time it has used. */
async function receive(): Promise<void> {
  const [order]: [Order] = (await once(process, "message")) as [Order];
  let receiver: PageReceiver | undefined;
  process.on("message", async (request: Request) => {
    const { user, system } = process.cpuUsage();
    if (request !== "usage" && "begin" in request) await receiver?.beginRound(request.begin);
    if (request !== "usage" && "end" in request) await receiver?.endRound(request.end, request.sent);
    process.send?.((user + system) / 1e6);
  });
  if (order.raw) {
    const server = createServer((socket) => {
      let received = 0;
      socket.on("data", (data) => {
        received += data.length;
        if (received === order.bytes) socket.end("!");
      });
    });
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      if (typeof address === "object" && address !== null) process.send?.(address.port);
    });
    await once(process, "disconnect");
    process.exit(0);
  }
  const listener = await listen({
    endpoint: { scheme: order.tls === undefined ? "tcp" : "tls", host: "127.0.0.1", port: 0 },
    credentials: order.tls,
  });
  const { channels, token } = order;
  receiver = openReceiver({ memory: createGuestMemory(order.bytes), listener, channels, token });
  process.send?.(listener.endpoint.port);
  await Promise.race([receiver.failed, once(process, "disconnect")]);
  process.exit(0);
}

if (argv[1] === fileURLToPath(import.meta.url) && argv[2] === RECEIVER) await receive();
