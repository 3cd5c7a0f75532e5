import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect as connectTcp, createServer } from "node:net";
import { argv, stdout } from "node:process";
import { fileURLToPath } from "node:url";
import { RamBitmap } from "../src/bitmap/ram-bitmap.js";
import { GiB, MiB } from "../src/memory/address.js";
import { createGuestMemory, type GuestMemory } from "../src/memory/guest-memory.js";
import { openReceiver } from "../src/migration/channels/receiver.js";
import { openSender } from "../src/migration/channels/sender.js";
import { makeCertificates, type TryoutCertificates } from "../src/migration/transport/certs.js";
import { listen } from "../src/migration/transport/listener.js";

/*
 * How fast the channels move a guest: 2 GiB of random pages (or as many as the second argument says) from one process
 * to another over loopback, by one and two channels, plain and by TLS, beside what node:net alone does in the same run.
 *
 *   node dist/bench/channels.js [runs] [bytes] [--json]
 */

const RECEIVER = "--receiver";
const CHUNK = 1 * MiB;

interface Order {
  readonly raw: boolean;
  readonly bytes: number;
  readonly channels: number;
  readonly token: string;
  readonly tls: TryoutCertificates["server"] | undefined;
}

/** The other process: receives what it is told to. */
async function receive(): Promise<void> {
  const [order]: [Order] = (await once(process, "message")) as [Order];
  if (order.raw) {
    const buffer = new Uint8Array(CHUNK);
    const server = createServer({ pauseOnConnect: false }, (socket) => {
      let received = 0;
      socket.on("data", (data) => {
        received += data.length;
        if (received === order.bytes) socket.end(buffer.subarray(0, 1));
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
  const receiver = openReceiver({ memory: createGuestMemory(order.bytes), listener, channels, token });
  process.send?.(listener.endpoint.port);
  await Promise.race([receiver.failed, once(process, "disconnect")]);
  process.exit(0);
}

async function withReceiver<T>(order: Order, run: (port: number) => Promise<T>): Promise<T> {
  const child: ChildProcess = fork(fileURLToPath(import.meta.url), [RECEIVER]);
  try {
    child.send(order);
    const [port] = await once(child, "message");
    return await run(port as number);
  } finally {
    child.disconnect();
    await once(child, "exit");
  }
}

/** node:net alone, one connection: seconds. */
function rawSeconds(bytes: number): Promise<number> {
  return withReceiver({ raw: true, bytes, channels: 1, token: "", tls: undefined }, async (port) => {
    const socket = connectTcp(port, "127.0.0.1");
    await once(socket, "connect");
    const data = randomBytes(CHUNK);
    const startedAt = performance.now();
    for (let sent = 0; sent < bytes; sent += CHUNK) {
      if (!socket.write(data)) await once(socket, "drain");
    }
    await once(socket, "data");
    return (performance.now() - startedAt) / 1000;
  });
}

async function channelSeconds(
  memory: GuestMemory,
  channels: number,
  certificates: TryoutCertificates | undefined,
): Promise<number> {
  const token = randomBytes(32).toString("hex");
  const order: Order = { raw: false, bytes: memory.bytes, channels, token, tls: certificates?.server };
  return await withReceiver(order, async (port) => {
    const { signal } = new AbortController();
    const address = { host: "127.0.0.1", port, token, ...(certificates && { tls: certificates.client }) };
    await using sender = await openSender({ memory, address, channels, signal });
    const pages = new RamBitmap(memory);
    pages.setAll();
    const { ms } = await sender.sendRound(0, pages, signal);
    return ms / 1000;
  });
}

function fillRandom({ arenas }: GuestMemory): void {
  for (const { u32, ramPages } of arenas) {
    let x = 0x9e3779b9;
    for (let i = 0; i < ramPages * 1024; i++) {
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      u32[i] = x;
    }
  }
}

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

async function main(): Promise<void> {
  const numbers = argv.slice(2).filter((argument) => argument !== "--json");
  const runs = Number(numbers[0] ?? 5);
  const bytes = Number(numbers[1] ?? 2 * GiB);
  const memory = createGuestMemory(bytes);
  fillRandom(memory);
  const certificates = await makeCertificates({ hosts: ["127.0.0.1"] });
  const cases: [string, () => Promise<number>][] = [
    ["node:net alone", () => rawSeconds(bytes)],
    ["tcp, 1 channel", () => channelSeconds(memory, 1, undefined)],
    ["tcp, 2 channels", () => channelSeconds(memory, 2, undefined)],
    ["tls, 1 channel", () => channelSeconds(memory, 1, certificates)],
    ["tls, 2 channels", () => channelSeconds(memory, 2, certificates)],
  ];
  const results = cases.map(([name]) => ({ name, seconds: [] as number[] }));
  // Round-robin, so that a noisy minute touches all cases alike.
  for (let run = 0; run < runs; run++) {
    for (let i = 0; i < cases.length; i++) results[i].seconds.push(await cases[i][1]());
  }
  const table = results.map(({ name, seconds }) => {
    const middle = median(seconds);
    return { name, medianSeconds: middle, gigabytesPerSecond: bytes / 1e9 / middle, seconds };
  });
  if (argv.includes("--json")) {
    stdout.write(`${JSON.stringify({ schemaVersion: 1, bytes, runs, results: table }, null, 2)}\n`);
    return;
  }
  stdout.write(`${bytes / MiB} MiB of random pages over loopback, median of ${runs}\n`);
  for (const { name, medianSeconds, gigabytesPerSecond } of table) {
    stdout.write(`${name.padEnd(18)} ${medianSeconds.toFixed(3)} s  ${gigabytesPerSecond.toFixed(2)} GB/s\n`);
  }
}

await (argv.includes(RECEIVER) ? receive() : main());
