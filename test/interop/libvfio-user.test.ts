import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, test } from "vitest";
import { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import { PAGE_SIZE } from "../../src/memory/address.js";
import { DmaMemory } from "../../src/memory/dma-memory.js";
import { EventFd } from "../../src/sys/eventfd.js";
import { POLLIN, PollSet } from "../../src/sys/poll.js";
import type { VfioUserDevice } from "../../src/vfio-user/client/device.js";
import { VfioUserHost } from "../../src/vfio-user/client/host.js";
import { proxyDevice } from "../../src/vfio-user/proxy/proxy.js";
import { type DeviceServer, startServer } from "../../src/vfio-user/server/server.js";
import { foundOrMissing, MissingError } from "../../tools/vm/missing.js";
import { findLibvfioUser } from "./libvfio-user.js";
import { BAR1_BYTES } from "./sample-device.js";

/*
 * Dirtmap and libvfio-user, the C implementation: our client with its sample servers, its sample client with our server.
 * What was found on the way is in docs/vfio-user.md.
 */

const LIMIT_MS = 30_000;
const LONG = { timeout: 120_000 };
const BAR0 = 0;
const BAR1 = 1;
const CONFIG = 7;

const found = foundOrMissing(findLibvfioUser);
if (found instanceof MissingError) {
  test.skip(`libvfio-user as a peer: ${found.message}`, () => {});
}

let folder: string;
let children: Program[];
let proxies: DeviceServer[];
let proxyLines: string[];
beforeEach(() => {
  proxies = [];
  proxyLines = [];
  folder = mkdtempSync(join(tmpdir(), "dirtmap-libvfio-user-"));
  children = [];
});
afterEach(async () => {
  for (const proxy of proxies) await proxy.close();
  for (const child of children) await child.end();
  rmSync(folder, { recursive: true, force: true });
});

/** One of libvfio-user's samples. */
class Program {
  output = "";
  readonly #child: ChildProcess;
  readonly #exit: Promise<unknown>;
  #wake: () => void = () => {};

  constructor(path: string, args: readonly string[]) {
    // A group of its own: the sample client becomes two processes.
    this.#child = spawn(path, args, { stdio: ["ignore", "pipe", "pipe"], detached: true });
    this.#exit = once(this.#child, "exit");
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding("utf8").on("data", (text: string) => {
        this.output += text;
        this.#wake();
      });
    }
    this.#child.on("exit", () => this.#wake());
    children.push(this);
  }

  /** Waits until something is so. */
  async until(what: string, isSo: () => boolean): Promise<void> {
    const until = performance.now() + LIMIT_MS;
    while (!isSo()) {
      if (this.#child.exitCode !== null || this.#child.signalCode !== null) {
        const how = this.#child.exitCode ?? this.#child.signalCode;
        throw new Error(`it ended before ${what}, with ${how}: ${this.output.slice(-2000)}`);
      }
      if (performance.now() > until) throw new Error(`never ${what}: ${this.output.slice(-2000)}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 20);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  async end(): Promise<void> {
    const { pid } = this.#child;
    try {
      if (pid !== undefined) process.kill(-pid, "SIGKILL");
    } catch {
      // All of the group have ended.
    }
    await this.#exit;
  }
}

/** Starts a sample server, verbose; it takes one client, and ends with it. */
async function startSample(name: string, socket: string): Promise<{ path: string; program: Program }> {
  if (found instanceof MissingError) throw found;
  const path = join(folder, socket);
  const program = new Program(join(found.samples, name), name === "server" ? ["-v", path] : [path]);
  await program.until("it listened", () => existsSync(path));
  return { path, program };
}

/** A device of a sample server, with two regions of a page each: the first is at 0. */
async function attached(host: VfioUserHost, id: string, memory: DmaMemory): Promise<VfioUserDevice> {
  const iommufd = await host.openIommufd();
  const ioas = await iommufd.allocIoas();
  for (const page of [0, 1]) {
    const span = { arena: memory.arena, offset: memory.offset + page * PAGE_SIZE, length: PAGE_SIZE };
    await iommufd.map(ioas, span, { iova: BigInt(page * PAGE_SIZE), readable: true, writeable: true });
  }
  const device = await host.openDevice(id);
  await device.bind(iommufd);
  await device.attach(ioas);
  return device;
}

/** A time_t, in so many seconds from now. */
function inSeconds(seconds: number): Uint8Array {
  const time = Buffer.alloc(8);
  time.writeBigInt64LE(BigInt(Math.floor(Date.now() / 1000) + seconds));
  return time;
}

/** Waits for an interrupt, while messages are answered. */
async function interrupted(eventFd: EventFd): Promise<void> {
  const set = new PollSet([{ fd: eventFd.fd, events: POLLIN }]);
  for (const until = performance.now() + LIMIT_MS; set.wait(0) === 0; ) {
    if (performance.now() > until) throw new Error("no interrupt came");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** The state that a device saves from where it is to the end, by way of PRE_COPY. */
async function save(device: VfioUserDevice): Promise<{ preCopy: Uint8Array[]; stopCopy: Uint8Array[] }> {
  const stream = await device.setState("PRE_COPY");
  if (stream?.direction !== "saving") throw new Error("no stream to read");
  const read = async () => {
    const parts: Uint8Array[] = [];
    for (;;) {
      const part = await stream.read(4096).catch((error: { code?: string }) => {
        if (error.code === "ENOMSG") return new Uint8Array(0);
        throw error;
      });
      if (part.byteLength === 0) return parts;
      parts.push(part);
    }
  };
  const preCopy = await read();
  expect(await device.setState("STOP_COPY")).toBeNull();
  return { preCopy, stopCopy: await read() };
}

/** A sample server, with a proxy before it: the path is the proxy's. */
async function startProxied(name: string, socket: string): Promise<{ path: string; program: Program }> {
  const { path, program } = await startSample(name, socket);
  const proxied = `${path}-proxy`;
  proxies.push(await proxyDevice({ server: path, path: proxied, log: (line) => proxyLines.push(line) }));
  return { path: proxied, program };
}

const WAYS = [
  { who: "our client", startSample },
  { who: "our client, by way of a proxy,", startSample: startProxied },
];

describe.skipIf(found instanceof MissingError).each(WAYS)("$who", ({ startSample }) => {
  it("finds out what libvfio-user's devices have", LONG, async () => {
    const { path } = await startSample("gpio-pci-idio-16", "gpio");
    await using host = new VfioUserHost([{ path, id: "gpio" }]);
    const device = await host.openDevice("gpio");
    expect(device.regions.map(({ index, bytes }) => [index, bytes])).toEqual([
      [2, 256],
      [CONFIG, 256],
    ]);
    expect(Buffer.from(await device.regionRead(CONFIG, 0, 4)).toString("hex")).toBe("4f49c80d");
    expect(device.irqs.map(({ index }) => index)).toContain(0);
    expect(await device.migration()).toEqual({ stopCopy: true, p2p: false, preCopy: true });
    expect(await device.supports("DMA_LOGGING_REPORT")).toBe(true);
    expect(await device.supports("MIG_DATA_SIZE")).toBe(false);
    expect(await device.state()).toBe("RUNNING");
    const { model, stateVersion, config, facts } = await device.shape();
    expect({ model, stateVersion, facts }).toEqual({ model: "vfio-user", stateVersion: null, facts: {} });
    expect(config).toMatch(/^4f49c80d/);
    await expect(device.regionRead(2, 255, 2)).rejects.toThrow(/EINVAL/);
  });

  it("has its log name what its device wrote, directly and by messages", LONG, async () => {
    const { path, program } = await startSample("server", "server");
    using memory = DmaMemory.allocate(2 * PAGE_SIZE, { kind: "memfd" });
    using eventFd = EventFd.create();
    await using host = new VfioUserHost([{ path, id: "sample" }]);
    const device = await attached(host, "sample", memory);
    await device.setIrqEventFds(0, 0, [eventFd.fd]);
    const range = { iova: 0n, length: BigInt(2 * PAGE_SIZE) };
    expect(await device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [range] })).toBe(PAGE_SIZE);
    const report = async (part = range) => {
      const into = new DirtyBitmap({ ...part, granule: PAGE_SIZE });
      await device.reportDmaLogging({ ...part, pageSize: PAGE_SIZE, into });
      return Array.from({ length: into.bits }, (_, bit) => into.get(bit));
    };
    expect(await report()).toEqual([false, false]);
    await device.regionWrite(BAR0, 0, inSeconds(1));
    await interrupted(eventFd);
    // It writes to the second region first, and then to the first, by messages; it reads them back. It takes no command
    // meanwhile: one that came would end it.
    await program.until("its DMA was done", () => program.output.includes("MESSAGE success"));
    const text = Buffer.from(memory.arena.u8.subarray(memory.offset, memory.offset + 2 * PAGE_SIZE));
    const expected = Buffer.from("ABCD".replaceAll(/./g, (letter) => letter.repeat(1024)));
    expect(text.equals(Buffer.concat([expected, expected]))).toBe(true);
    // The first is in no log but ours; asked for alone, the second's bit is kept.
    expect(await report({ iova: 0n, length: BigInt(PAGE_SIZE) })).toEqual([true]);
    expect(await report()).toEqual([false, true]);
    expect(await report()).toEqual([false, false]);
    await device.stopDmaLogging();
    await expect(report()).rejects.toThrow(/EINVAL/);
  });

  it("moves the device of one of its servers to another's, which goes on", LONG, async () => {
    const { path: from } = await startSample("server", "from");
    const { path: to } = await startSample("server", "to");
    using memory = DmaMemory.allocate(2 * PAGE_SIZE, { kind: "memfd" });
    using eventFd = EventFd.create();
    await using host = new VfioUserHost([
      { path: from, id: "source" },
      { path: to, id: "destination" },
    ]);
    const source = await host.openDevice("source");
    const contents = new Uint8Array(BAR1_BYTES).map((_, i) => i * 31 + (i >> 8));
    await source.regionWrite(BAR1, 0, contents);
    await source.regionWrite(BAR0, 0, inSeconds(3));
    const { preCopy, stopCopy } = await save(source);
    expect(Buffer.concat(preCopy).equals(contents)).toBe(true);
    expect(await source.dataSize()).toBe(0);
    await source.setState("STOP");

    const destination = await attached(host, "destination", memory);
    await destination.setIrqEventFds(0, 0, [eventFd.fd]);
    const stream = await destination.setState("RESUMING");
    if (stream?.direction !== "resuming") throw new Error("no stream to write");
    // Its data in STOP_COPY is all of the state, and takes no other before it.
    for (const part of stopCopy) await stream.write(part);
    await destination.setState("STOP");
    expect(Buffer.from(await destination.regionRead(BAR1, 0, BAR1_BYTES)).equals(contents)).toBe(true);
    await destination.setState("RUNNING");
    await interrupted(eventFd);
  });
});

describe.skipIf(found instanceof MissingError)("a proxy before libvfio-user's sample server", () => {
  it("has its device moved over control connections, while its client stays", LONG, async () => {
    const { path: from } = await startProxied("server", "from");
    const { path: to } = await startProxied("server", "to");
    using memory = DmaMemory.allocate(2 * PAGE_SIZE, { kind: "memfd" });
    using eventFd = EventFd.create();
    await using clients = new VfioUserHost([
      { path: from, id: "source" },
      { path: to, id: "destination" },
    ]);
    const source = await attached(clients, "source", memory);
    await source.setIrqEventFds(0, 0, [eventFd.fd]);
    const contents = new Uint8Array(BAR1_BYTES).map((_, i) => i * 31 + (i >> 8));
    await source.regionWrite(BAR1, 0, contents);
    await source.regionWrite(BAR0, 0, inSeconds(3));
    const config = await source.regionRead(CONFIG, 0, 256);

    await using controls = new VfioUserHost([
      { path: from, id: "source" },
      { path: to, id: "destination" },
    ]);
    const saving = await controls.openControl("source");
    expect(await saving.serverCounters()).toMatchObject({
      state: "RUNNING",
      dmaLogging: { pageSizes: [PAGE_SIZE] },
      writePath: { possible: ["direct"] },
      mapped: [{ iova: 0n, bytes: 2 * PAGE_SIZE }],
    });
    const { stopCopy } = await save(saving);
    // The server itself takes no access in STOP_COPY; QEMU's part of the state is read then.
    expect(Buffer.from(await source.regionRead(CONFIG, 0, 256)).equals(Buffer.from(config))).toBe(true);
    await saving.announceHandover("committing", "1f0c93ab");

    const destination = await attached(clients, "destination", memory);
    const loading = await controls.openControl("destination");
    const stream = await loading.setState("RESUMING");
    if (stream?.direction !== "resuming") throw new Error("no stream to write");
    for (const part of stopCopy) await stream.write(part);
    await loading.setState("STOP");
    // In STOP it takes no interrupts either, and QEMU sets its own then: the proxy does it as the device runs.
    await destination.setIrqEventFds(0, 0, [eventFd.fd]);
    expect(Buffer.from(await destination.regionRead(BAR1, 0, BAR1_BYTES)).equals(contents)).toBe(true);
    eventFd.take();
    await loading.setState("RUNNING");
    await interrupted(eventFd);
    eventFd.take();
    // The first was the proxy's, in case one was lost; this is the device's timer.
    await interrupted(eventFd);
    expect((await saving.serverCounters())?.migration).toMatchObject({ notice: "committing", connected: true });
  });

  it("lets its device run again when the process that moved it dies, and resets it for an operator", LONG, async () => {
    // The other sample ends where it leaves STOP_COPY before all of its data was read.
    const { path } = await startProxied("gpio-pci-idio-16", "gpio");
    using memory = DmaMemory.allocate(2 * PAGE_SIZE, { kind: "memfd" });
    await using clients = new VfioUserHost([{ path, id: "device" }]);
    const device = await attached(clients, "device", memory);
    const movers = new VfioUserHost([{ path, id: "device" }]);
    await (await movers.openControl("device")).setState("STOP_COPY");
    await movers[Symbol.asyncDispose]();
    await using controls = new VfioUserHost([{ path, id: "device" }]);
    const control = await controls.openControl("device");
    expect(await control.serverCounters()).toMatchObject({ state: "RUNNING", migration: null });
    expect(proxyLines.join()).toMatch(/has gone and left 'device' in STOP_COPY: it runs again/);
    // A reset is refused by the server while it is stopped.
    await control.setState("STOP");
    await control.reset();
    expect(await control.serverCounters()).toMatchObject({ state: "RUNNING", migration: null });
    expect(await device.state()).toBe("RUNNING");
  });
});

describe.skipIf(found instanceof MissingError)("libvfio-user's sample client", () => {
  it("goes through all its steps with our server, up to the destination that it starts", LONG, async () => {
    if (found instanceof MissingError) throw found;
    const path = join(folder, "device");
    const lines: string[] = [];
    await using _server = await startServer(
      new URL("./sample-device-thread.js", import.meta.url),
      { model: "sample", options: {}, id: "sample", dma: "messages", busy: false },
      { path, log: (line) => lines.push(line) },
    );
    // It starts its destination as a program `server` beside itself.
    const started = join(folder, "started");
    symlinkSync(join(found.samples, "client"), join(folder, "client"));
    writeFileSync(join(folder, "server"), `#!/bin/sh\necho "$@" >'${started}'\n`);
    chmodSync(join(folder, "server"), 0o755);
    const client = new Program(join(folder, "client"), [path]);
    await client.until("it started its destination", () => existsSync(started));
    await using host = new VfioUserHost([{ path, id: "sample" }]);
    const control = await host.openControl("sample");
    // It has read all the state that there is, by way of PRE_COPY, and left the device stopped.
    expect(await control.state()).toBe("STOP");
    const counters = await control.serverCounters();
    expect(counters?.device).toEqual({ rounds: 1, mismatches: 0 });
    expect(counters?.log).toBeNull();
    expect(lines.filter((line) => !/region 3735928559|EINVAL/.test(line))).toEqual([]);
  });
});
