import { once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, createConnection, createServer, type Server } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import { PAGE_SIZE } from "../../src/memory/address.js";
import { readPhysical } from "../../src/qemu/config-space.js";
import { DestinationGuest } from "../../src/qemu/destination-guest.js";
import type { GuestState } from "../../src/qemu/guest-state.js";
import type { GuestTracker } from "../../src/qemu/guest-tracking.js";
import type { PciState } from "../../src/qemu/pci-state.js";
import { SocketMonitor } from "../../src/qemu/qmp/socket-monitor.js";
import { SourceGuest } from "../../src/qemu/source-guest.js";
import { checkStreamSecurity } from "../../src/qemu/stream-address.js";
import { MissingError } from "../../tools/vm/missing.js";
import { blocksOf } from "../docs/blocks.js";
import { MOVES_A_GUEST } from "../docs/declared.js";
import { expectForm, transcriptsOf } from "../docs/transcript.js";
import { Child } from "../support/child.js";
import { requireFound } from "../support/required.js";
import {
  COMPLAINT,
  connect,
  counts,
  endLoad,
  endWriters,
  giveCredentials,
  interruptsOfReads,
  move,
  type Place,
  Places,
  pause,
  root,
  runDirtmap,
  SECOND,
  startLoad,
  startWriters,
  timeOf,
} from "./guest-places.js";
import { findShellImage } from "./guest-shell.js";

/*
 * A guest of QEMU, with Linux's own nvme driver and a load that knows what each block must hold, is moved from QEMU to QEMU with
 * its disk, which `dirtmap device nvme` serves on both sides.
 */

const PROGRAM = join(root, "bin/dirtmap.js");
const TEST_LIMIT_MS = 300_000;
/** How long the load runs before a move and after it. */
const LOAD_MS = 1500;

const found = findShellImage(root);
requireFound("QEMU 10.1 or later as a client of vfio-user", found);

describe.skipIf(found instanceof MissingError)("a guest of QEMU that moves with its disks", () => {
  let places: Places;
  let [first, here]: Place[] = [];
  const writers = ["nic"];

  beforeAll(async () => {
    if (found instanceof MissingError) return;
    places = new Places(found, { engine: true, writers, interrupts: ["msix", "intx"] });
    first = here = await places.add();
    await startLoad(here);
    await startWriters(here, writers);
  }, TEST_LIMIT_MS);

  afterAll(async () => {
    await places?.[Symbol.asyncDispose]();
  }, TEST_LIMIT_MS);

  it.each<{ tracker: GuestTracker; multifdChannels: number; way: string }>([
    { tracker: "messages", multifdChannels: 0, way: "there" },
    { tracker: "device", multifdChannels: 2, way: "back to where it came from" },
  ])(
    "goes on with its I/O $way, tracked by $tracker, with $multifdChannels channels of multifd",
    async ({ tracker, multifdChannels }) => {
      await pause(LOAD_MS);
      const there = await places.add(first === here ? {} : { instead: first });
      const trackers = { disk: tracker, [SECOND]: tracker, engine: tracker };
      const { report, received, warnings, pauseMs } = await move(here, there, { trackers, multifdChannels });
      expect(report.error).toBeUndefined();
      expect([report.result, received.outcome]).toEqual(["completed", "running"]);
      expect([...report.warnings, ...warnings]).toEqual([]);
      for (const { id, pagesReported } of report.devices) {
        if (id === "engine") expect(pagesReported).toBe(0);
        else if (writers.includes(id)) expect(pagesReported).toBeNull();
        else expect(pagesReported).toBeGreaterThan(100);
      }
      console.log(`${tracker}: vCPUs paused for ${pauseMs?.toFixed(0)} ms`);
      await here.guest.ended();
      await here[Symbol.asyncDispose]();
      here = there;
      await pause(LOAD_MS);
    },
    TEST_LIMIT_MS,
  );

  it(
    "is refused from and to the wrong QEMU, and where another client holds the monitor",
    async () => {
      await using there = await places.add();
      await using source = await connect(here.qmp);
      await using destination = await connect(there.qmp);
      await expect(SourceGuest.open(destination)).rejects.toMatchObject({
        code: "WRONG_STATE",
        remedy: expect.stringContaining("waits for one itself"),
      });
      await expect(DestinationGuest.open(source)).rejects.toMatchObject({
        code: "WRONG_STATE",
        remedy: expect.stringContaining("this one runs one"),
      });
      await expect(SocketMonitor.open(here.qmp)).rejects.toMatchObject({ code: "QMP_BUSY" });
      await destination.migrateIncoming(`unix:${there.qmp}-another`);
      await expect(DestinationGuest.open(destination)).rejects.toMatchObject({
        code: "WRONG_STATE",
        message: expect.stringContaining("takes a guest already"),
      });
      expect(await source.status()).toMatchObject({ running: true });
    },
    TEST_LIMIT_MS,
  );

  it(
    "goes on at the source where the move is cancelled in the pause, and moves afterwards",
    async () => {
      const cancel = new AbortController();
      const beforePhase = (phase: string) => {
        if (phase === "stop-copy") cancel.abort(new Error("enough"));
      };
      const handover = { journalDirectory: `${here.qmp}-journals`, signal: cancel.signal, hooks: { beforePhase } };
      await using there = await places.add();
      const { report, warnings } = await move(here, there, { handover });
      expect([report.result, report.warnings, warnings]).toEqual(["cancelled", [], []]);
      expect(await here.guest.run("grep -c . /tmp/load0")).toContain("1");
      await pause(LOAD_MS);
    },
    TEST_LIMIT_MS,
  );

  it(
    "stands still where `dirtmap migrate` is killed in the pause, and goes on by `dirtmap resume`",
    async () => {
      await using there = await places.add();
      await using watched = await connect(here.watched);
      await (await connect(there.qmp))[Symbol.asyncDispose]();
      using events = watched.events();
      const journals = join(places.folder, "killed-journals");
      const common = ["--journal", journals, "--qemu-address", `unix:${there.qmp}-killed`, "--json"];
      const listen = ["--qmp", there.qmp, "--listen", "tcp://127.0.0.1:0"];
      await using receiving = new Child(PROGRAM, "receive", ...listen, ...common);
      const { address } = await receiving.said("event", "listening");
      const args = ["migrate", "--qmp", here.qmp, "--to", String(address), "--no-store", ...common];
      await using migrating = new Child(PROGRAM, ...args);
      // From the beginning of QEMU's migration on the destination says nothing, so that the guest is not given up.
      await timeOf(events, "MIGRATION");
      receiving.kill("SIGSTOP");
      await timeOf(events, "STOP");
      migrating.kill("SIGKILL");
      await migrating.ended;
      receiving.kill("SIGCONT");
      const { stdout } = await runDirtmap(["list", "--journal", journals, "--json"]);
      const [{ migration, standing }] = JSON.parse(stdout).migrations.filter(
        ({ side }: { side: string }) => side === "source",
      );
      expect(standing).toBe("waits");
      const resumed = await runDirtmap(["resume", migration, "--journal", journals]);
      expect(resumed.status, resumed.stderr).toBe(0);
      expect(await here.guest.run("grep -c . /tmp/load0")).toContain("1");
      // The destination's QEMU had begun to take the guest: it is told to quit.
      expect(await receiving.ended).toBe(1);
      await there.guest.ended();
      await pause(LOAD_MS);
    },
    TEST_LIMIT_MS,
  );

  it(
    "is moved by one command to another QEMU of its machine, which prints what the README shows",
    async () => {
      const there = await places.add();
      await (await connect(there.qmp))[Symbol.asyncDispose]();
      const args = ["migrate", "--qmp", here.qmp, "--qmp-to", there.qmp, "--no-store"];
      const journals = join(places.folder, "local-journals");
      const { stdout, stderr, status } = await runDirtmap([...args, "--journal", journals]);
      expect(status, stderr).toBe(0);
      const transcripts = blocksOf("README.md").flatMap(({ text }) => transcriptsOf(text));
      const [transcript] = transcripts.filter(({ command }) => MOVES_A_GUEST.test(command));
      // The README's guest has the two disks and nothing else.
      expectForm(stdout.replaceAll(/^(engine|nic)\b.*\n/gm, ""), transcript);
      await here.guest.ended();
      await here[Symbol.asyncDispose]();
      here = there;
    },
    TEST_LIMIT_MS,
  );

  it(
    "is moved by the command line, Dirtmap's connection and QEMU's own over TLS",
    async () => {
      const there = await places.add();
      // It is up once its monitor is.
      await (await connect(there.qmp))[Symbol.asyncDispose]();
      const [certs, journals] = [join(places.folder, "certs"), join(places.folder, "tls-journals")];
      await runDirtmap(["certs", certs, "--name", "localhost"]);
      const isSecure = async () => {
        await using qemu = await connect(here.watched);
        await checkStreamSecurity(qemu, "tcp:192.0.2.1:4444", false);
      };
      await expect(isSecure()).rejects.toMatchObject({ code: "INSECURE_ADDRESS" });
      await giveCredentials(here, certs, "client");
      await giveCredentials(there, certs, "server");
      await isSecure();
      // An address on loopback that no other test has, and between the two QEMUs one who listens.
      const ours = `127.${process.pid >> 16}.${(process.pid >> 8) & 255}.${(process.pid & 127) + 2}`;
      await using tap = await Tap.start({ host: ours, port: 4444 });
      const common = ["--tls-folder", certs, "--journal", journals, "--json"];
      const listen = ["--qmp", there.qmp, "--listen", "tls://127.0.0.1:0", "--qemu-address", `tcp:${ours}:4444`];
      await using receiving = new Child(PROGRAM, "receive", ...listen, ...common);
      const { address } = await receiving.said("event", "listening");
      const report = join(places.folder, "report.md");
      const to = String(address).replace("127.0.0.1", "localhost");
      const kept = ["--no-store", "--report", report, "--qemu-address", `tcp:127.0.0.1:${tap.port}`];
      const { stdout, stderr, status } = await runDirtmap([
        "migrate",
        "--qmp",
        here.qmp,
        "--to",
        to,
        ...kept,
        ...common,
      ]);
      expect(status, `${stderr}${receiving.errors}`).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({
        result: "completed",
        warnings: [],
        conditions: { transport: { scheme: "tls", local: false }, policy: { order: "qemu" } },
      });
      expect(readFileSync(report, "utf8")).toContain("QEMU does its writes itself");
      expect(await receiving.ended).toBe(0);
      // A handshake's first record (RFC 8446, 5.1), and not QEMU_VM_FILE_MAGIC, "QEVM".
      expect(tap.begins.map((bytes) => bytes.subarray(0, 2))).toEqual([Buffer.of(0x16, 0x03)]);
      await here.guest.ended();
      await here[Symbol.asyncDispose]();
      here = there;
    },
    TEST_LIMIT_MS,
  );

  it(
    "has lost nothing in all of these: no read, no write, no interrupt",
    async () => {
      await pause(LOAD_MS);
      const said = counts(await endLoad(here));
      console.log(`I/O verified: ${said.map(({ reads, writes }) => `${reads} reads, ${writes} writes`).join("; ")}`);
      for (const { reads, writes, slowestMs } of said) {
        expect(reads).toBeGreaterThan(1000);
        expect(writes).toBeGreaterThan(500);
        expect(slowestMs).toBeLessThan(5000);
      }
      for (const { units, checked } of await endWriters(here, writers)) {
        expect(units).toBeGreaterThan(1000);
        expect(checked).toBeGreaterThan(1000);
      }
      expect(await here.guest.run("dmesg")).not.toMatch(COMPLAINT);
    },
    TEST_LIMIT_MS,
  );

  it(
    "takes an interrupt for each that its disks raise, by MSI-X and by INTx",
    async () => {
      const messages = await interruptsOfReads(here, "disk0");
      expect(messages.reads).toBeGreaterThan(10);
      expect(messages).toMatchObject({ kinds: ["PCI-MSIX"], raised: messages.reads, counted: messages.reads });
      const line = await interruptsOfReads(here, "disk1");
      expect(line.reads).toBeGreaterThan(10);
      expect(line).toMatchObject({ kinds: ["IO-APIC"], raised: line.reads });
      // The line may be up once more than it had to: QEMU takes the next command's doorbell for the interrupt's end, too.
      expect(line.counted).toBeGreaterThanOrEqual(line.reads);
    },
    TEST_LIMIT_MS,
  );
});

describe.skipIf(found instanceof MissingError)("what a guest of QEMU finds where something was left out", () => {
  it(
    "of the log: reads that are lost, or a driver that waits in vain",
    async () => {
      if (found instanceof MissingError) return;
      await using places = new Places(found);
      const here = await places.add();
      await startLoad(here);
      const there = await places.add();
      const trackers = { disk: "device", [SECOND]: "device" } as const;
      const hooks = { afterRead: (_: string, dirty: DirtyBitmap) => dirty.clear() };
      const { report } = await move(here, there, { trackers, hooks });
      expect(report.result).toBe("completed");
      await pause(LOAD_MS);
      const said = await endLoad(there).catch(() => "no answer");
      expect(/^done .*\n.*^done /ms.test(said) && !COMPLAINT.test(there.guest.kernelLog)).toBe(false);
    },
    TEST_LIMIT_MS,
  );

  it(
    "of the PCI state: a driver that waits in vain",
    async () => {
      if (found instanceof MissingError) return;
      await using places = new Places(found);
      const here = await places.add();
      await startLoad(here);
      const there = await places.add();
      const { report } = await move(here, there, { hooks: { guestState: asAfterReset } });
      expect(report.error).toBeUndefined();
      expect(report.result).toBe("completed");
      // The driver gives up after nvme_core.io_timeout.
      await expect.poll(() => there.guest.kernelLog, { timeout: 60_000, interval: 200 }).toMatch(COMPLAINT);
    },
    TEST_LIMIT_MS,
  );
});

describe.skipIf(found instanceof MissingError)("what one guest of QEMU finds where something was left out", () => {
  let places: Places;
  let here: Place;

  beforeAll(async () => {
    if (found instanceof MissingError) return;
    places = new Places(found, { interrupts: ["msi", "msi"] });
    here = await places.add();
    await startLoad(here, { pool: 256 });
  }, TEST_LIMIT_MS);

  afterAll(async () => {
    await places?.[Symbol.asyncDispose]();
  }, TEST_LIMIT_MS);

  it(
    "of the device's state: nothing, since it never runs at the destination",
    async () => {
      const machine = (guest: SourceGuest) => ({ devices: guest.devices.slice(1), mayP2p: () => false });
      const { report } = await move(here, await places.add(), { machine });
      expect([report.result, report.error?.code]).toEqual(["failed", "BAD_DEVICE_STATE"]);
      await pause(LOAD_MS);
      expect(await here.guest.run("grep -c . /tmp/load0 /tmp/load1")).toBe("/tmp/load0:1\n/tmp/load1:1\n");
      expect(await here.guest.run("dmesg")).not.toMatch(COMPLAINT);
    },
    TEST_LIMIT_MS,
  );

  it(
    "of one page that a disk has written: a read that is lost",
    async () => {
      const [told, ...pool] = (await here.guest.run("cat /tmp/frames0")).trim().split("\n").map(Number);
      const there = await places.add();
      await using watched = await connect(here.watched);
      // What the program keeps of each page: the number of a block that was read there, and its version.
      const look = () => readPhysical(watched, BigInt(told * PAGE_SIZE), pool.length * 2);
      const changed = (from: readonly number[], to: readonly number[]) =>
        pool.filter((_, i) => [2 * i, 2 * i + 1].some((at) => from[at] !== to[at]) && to[2 * i] !== NOTHING_KEPT);
      // Once QEMU has moved all memory at least once, it goes on until a disk has written some of these pages again.
      let moved: number[] = [];
      const watching = (async () => {
        while (((await watched.migration()).ram?.["dirty-sync-count"] ?? 0) < 3) await pause(20);
        moved = await look();
        while (changed(moved, await look()).length === 0) await pause(20);
        await watched.setParameters({ "downtime-limit": 5000 });
      })();
      let kept: number[] = [];
      const beforePhase = async (phase: string) => {
        if (phase === "stop-copy") kept = await look();
      };
      let withheld: number | undefined;
      const afterRead = (_: string, dirty: DirtyBitmap) => {
        const { iova, bits } = dirty;
        const bitOf = (frame: number) => frame - Number(iova / BigInt(PAGE_SIZE));
        const isNamed = (frame: number) => bitOf(frame) >= 0 && bitOf(frame) < bits && dirty.get(bitOf(frame));
        const frame = changed(moved, kept).find(isNamed);
        if (withheld !== undefined || frame === undefined) return;
        withheld = frame;
        dirty.words[Math.floor(bitOf(withheld) / 32)] &= ~(1 << (bitOf(withheld) & 31));
      };
      const trackers = { disk: "device", [SECOND]: "device" } as const;
      const handover = { journalDirectory: `${here.qmp}-journals`, hooks: { beforePhase } };
      const options = { trackers, hooks: { afterRead }, handover, downtimeLimitMs: 0 };
      const [{ report }] = await Promise.all([move(here, there, options), watching]);
      expect(report.error).toBeUndefined();
      expect(withheld).toBeDefined();
      await pause(LOAD_MS);
      expect(await endLoad(there)).toMatch(/^LOST (while kept|at the end)/m);
    },
    TEST_LIMIT_MS,
  );
});

/** PCI states with BARs, commands and interrupts as they are after a reset. */
function asAfterReset(state: GuestState): GuestState {
  const off = ({ config }: PciState): PciState => {
    const without = [...config];
    without[1] &= ~0xffff;
    for (let bar = 4; bar < 10; bar++) without[bar] &= 0xf;
    without[MSIX_OFFSET / 4] &= 0x3fff_ffff;
    return { config: without.map((dword) => dword >>> 0), msixTable: null };
  };
  return { ...state, devices: new Map(Array.from(state.devices, ([id, pci]) => [id, off(pci)])) };
}

/** Passes connections on, and keeps what their clients say first. */
class Tap implements AsyncDisposable {
  readonly begins: Buffer[] = [];
  readonly #server: Server;

  private constructor(to: { host: string; port: number }) {
    this.#server = createServer((client) => {
      const onward = createConnection(to);
      client.once("data", (bytes: Buffer) => this.begins.push(bytes));
      client.pipe(onward).pipe(client);
      client.on("error", () => onward.destroy());
      onward.on("error", () => client.destroy());
    });
  }

  static async start(to: { host: string; port: number }): Promise<Tap> {
    const tap = new Tap(to);
    await once(tap.#server.listen(0, "127.0.0.1"), "listening");
    return tap;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
  }
}

/** What verified-io says of a page that it keeps nothing in. */
const NOTHING_KEPT = 0xffff_ffff;

/** Where the models have their MSI-X capability. */
const MSIX_OFFSET = 0x50;
