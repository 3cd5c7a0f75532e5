import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { GuestState } from "../../src/qemu/guest-state.js";
import type { GuestTracker } from "../../src/qemu/guest-tracking.js";
import { type Moved, type MoveOptions, moveGuest } from "../../src/qemu/move.test.helper.js";
import type { PciState } from "../../src/qemu/pci-state.js";
import type { EventStream } from "../../src/qemu/qmp/event-stream.js";
import { Qemu } from "../../src/qemu/qmp/qemu.js";
import { SocketMonitor } from "../../src/qemu/qmp/socket-monitor.js";
import type { SourceGuest } from "../../src/qemu/source-guest.js";
import { MissingError } from "../../tools/vm/missing.js";
import { DeviceProgram } from "./device-program.js";
import { findShellImage, makeShellInitramfs, ShellGuest, type ShellImage } from "./guest-shell.js";

/*
 * A guest of QEMU, with Linux's own nvme driver and a load that knows what each block must hold, is moved from QEMU to QEMU with
 * its disk, which `dirtmap device nvme` serves on both sides.
 */

const root = fileURLToPath(new URL("../../../", import.meta.url));

const DISK_BYTES = 64 * 2 ** 20;
const TEST_LIMIT_MS = 300_000;
/** How long the load runs before a move and after it. */
const LOAD_MS = 1500;

const found = findShellImage(root);

if (found instanceof MissingError) {
  test.skipIf(!process.env.CI)(`QEMU 10.1 or later as a client of vfio-user: ${found.message}`, () => {
    throw found;
  });
}

/** One QEMU and the servers of its devices. */
interface Place extends AsyncDisposable {
  readonly guest: ShellGuest;
  readonly qmp: string;
}

/** Places of one guest: the first boots, each other one waits for it. The disks' files are all the same. */
class Places implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "dirtmap-move-"));
  readonly #image: ShellImage;
  readonly #all: Place[] = [];

  constructor(image: Omit<ShellImage, "initramfs">) {
    this.#image = { ...image, initramfs: makeShellInitramfs(root, this.folder) };
    for (const disk of DISKS) {
      const fd = openSync(join(this.folder, disk), "w");
      ftruncateSync(fd, DISK_BYTES);
      closeSync(fd);
    }
  }

  /**
   * Two disks, one behind a root port, the other without an id; with `engine` a device of another model, with memory that QEMU
   * maps, which no driver uses.
   */
  async add({ engine = false } = {}): Promise<Place> {
    const number = this.#all.length;
    const at = (name: string) => join(this.folder, `${number}-${name}`);
    const incoming = number === 0 ? [] : ["--incoming"];
    const servers: DeviceProgram[] = [];
    const devices = ["-device", "pcie-root-port,id=port1,chassis=1,addr=4.0"];
    const serve = async (model: string, name: string, options: readonly string[], its: object) => {
      const path = at(name);
      servers.push(await DeviceProgram.start(model, path, [...options, ...incoming]));
      devices.push("-device", JSON.stringify({ driver: "vfio-user-pci", socket: { type: "unix", path }, ...its }));
    };
    for (const [i, disk] of DISKS.entries()) {
      const options = ["--option", `file=${join(this.folder, disk)}`, "--option", `serial=${disk}`];
      await serve("nvme", disk, options, i === 0 ? { id: "disk", bus: "port1" } : { addr: "5.0" });
    }
    if (engine) await serve("dma-engine", "engine", [], { id: "engine", addr: "6.0" });
    const qmp = at("qmp");
    devices.push("-qmp", `unix:${qmp},server=on,wait=off`);
    const guest =
      number === 0
        ? await ShellGuest.boot(this.#image, at("guest"), devices)
        : ShellGuest.incoming(this.#image, at("guest"), devices);
    const place = {
      guest,
      qmp,
      [Symbol.asyncDispose]: async () => {
        await guest[Symbol.asyncDispose]();
        await Promise.all(servers.map((each) => each[Symbol.asyncDispose]()));
      },
    };
    this.#all.push(place);
    return place;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#all.map((place) => place[Symbol.asyncDispose]()));
    rmSync(this.folder, { recursive: true, force: true });
  }
}

const DISKS = ["disk0", "disk1"];
/** The second disk's name: where it is. */
const SECOND = "pcie.0-05.0";

/** A QEMU that has just been started has no monitor yet. */
async function connect(path: string): Promise<Qemu> {
  for (let tries = 0; ; tries++) {
    try {
      return new Qemu(await SocketMonitor.open(path));
    } catch (error) {
      if ((error as { code?: string }).code !== "QMP_UNREACHABLE" || tries > 600) throw error;
      await pause(50);
    }
  }
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Moves the guest; with the pause of its vCPUs by QEMU's own clock, from the source's STOP to the destination's RESUME. */
async function move(
  from: Place,
  to: Place,
  options: Partial<MoveOptions> = {},
): Promise<Moved & { pauseMs: number | null }> {
  await using source = await connect(from.qmp);
  await using destination = await connect(to.qmp);
  using stopped = source.events();
  using resumed = destination.events();
  const handover = { journalDirectory: `${from.qmp}-journals`, ...options.handover };
  const moved = await moveGuest(source, destination, { ...options, address: `unix:${to.qmp}-stream`, handover });
  if (moved.report.result !== "completed") return { ...moved, pauseMs: null };
  return { ...moved, pauseMs: (await timeOf(resumed, "RESUME")) - (await timeOf(stopped, "STOP")) };
}

async function timeOf(events: EventStream, name: string): Promise<number> {
  for await (const event of events) if (event.name === name) return event.at;
  throw new Error(`no event ${name}`);
}

/** Has each disk read and written all the time. */
async function startLoad({ guest }: Place): Promise<void> {
  await guest.run(
    'rm -f /tmp/stop /tmp/load*; for n in 0 1; do verified-io /dev/nvme"$n"n1 16 2048 1$n /tmp/stop >/tmp/load$n 2>&1 & done',
  );
  await guest.run(
    "for i in $(seq 600); do [ $(grep -l wrote /tmp/load0 /tmp/load1 | wc -l) = 2 ] && exit 0; sleep 0.1; done; cat /tmp/load*; exit 1",
  );
}

/** Ends the load, and waits until it has checked all; returns what it said. */
async function endLoad({ guest }: Place): Promise<string> {
  await guest.run("touch /tmp/stop");
  return await guest.run(
    "for i in $(seq 600); do [ $(grep -lE '^(done|LOST|ERROR)' /tmp/load0 /tmp/load1 | wc -l) = 2 ] && break; sleep 0.1; done; cat /tmp/load0 /tmp/load1",
  );
}

/** What it counted. @throws where it found anything wrong */
function counts(said: string): { reads: number; writes: number; kept: number; slowestMs: number }[] {
  const found = [...said.matchAll(/^done (\d+) (\d+) (\d+) (\d+)$/gm)];
  expect(found.length, said).toBe(2);
  return found.map(([, ...numbers]) => {
    const [reads, writes, kept, slowestMs] = numbers.map(Number);
    return { reads, writes, kept, slowestMs };
  });
}

/** The driver's complaints: a time-out, a reset, an I/O error. */
const COMPLAINT = /nvme nvme\d: .*(timeout|abort|reset|error|fail)|I\/O error/i;

describe.skipIf(found instanceof MissingError)("a guest of QEMU that moves with its disks", () => {
  let places: Places;
  let here: Place;

  beforeAll(async () => {
    if (found instanceof MissingError) return;
    places = new Places(found);
    here = await places.add({ engine: true });
    await startLoad(here);
  }, TEST_LIMIT_MS);

  afterAll(async () => {
    await places?.[Symbol.asyncDispose]();
  }, TEST_LIMIT_MS);

  it.each<{ tracker: GuestTracker; multifdChannels: number }>([
    { tracker: "messages", multifdChannels: 0 },
    { tracker: "device", multifdChannels: 2 },
  ])(
    "goes on with its I/O, tracked by $tracker, with $multifdChannels channels of multifd",
    async ({ tracker, multifdChannels }) => {
      await pause(LOAD_MS);
      const there = await places.add({ engine: true });
      const trackers = { disk: tracker, [SECOND]: tracker, engine: tracker };
      const { report, received, warnings, pauseMs } = await move(here, there, { trackers, multifdChannels });
      expect(report.error).toBeUndefined();
      expect([report.result, received.outcome]).toEqual(["completed", "running"]);
      expect([...report.warnings, ...warnings]).toEqual([]);
      for (const { id, pagesReported } of report.devices) {
        if (id === "engine") expect(pagesReported).toBe(0);
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
    "goes on at the source where the move is cancelled in the pause, and moves afterwards",
    async () => {
      const cancel = new AbortController();
      const beforePhase = (phase: string) => {
        if (phase === "stop-copy") cancel.abort(new Error("enough"));
      };
      const handover = { journalDirectory: `${here.qmp}-journals`, signal: cancel.signal, hooks: { beforePhase } };
      await using there = await places.add({ engine: true });
      const { report, warnings } = await move(here, there, { handover });
      expect([report.result, report.warnings, warnings]).toEqual(["cancelled", [], []]);
      expect(await here.guest.run("grep -c . /tmp/load0")).toContain("1");
      await pause(LOAD_MS);
    },
    TEST_LIMIT_MS,
  );

  it(
    "is moved by the command line",
    async () => {
      const there = await places.add({ engine: true });
      // It is up once its monitor is.
      await (await connect(there.qmp))[Symbol.asyncDispose]();
      const args = ["migrate", "--qmp", here.qmp, "--qmp-to", there.qmp, "--journal", `${here.qmp}-journals`];
      const { stdout, stderr, status } = await runDirtmap(args);
      expect(status, stderr).toBe(0);
      expect(stdout).toMatch(/^completed · downtime /);
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
      for (const { reads, writes, slowestMs } of said) {
        expect(reads).toBeGreaterThan(1000);
        expect(writes).toBeGreaterThan(500);
        expect(slowestMs).toBeLessThan(5000);
      }
      expect(await here.guest.run("dmesg")).not.toMatch(COMPLAINT);
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

  it(
    "of the device's state: nothing, since it never runs at the destination",
    async () => {
      if (found instanceof MissingError) return;
      await using places = new Places(found);
      const here = await places.add();
      await startLoad(here);
      const machine = (guest: SourceGuest) => ({ devices: guest.devices.slice(1), mayP2p: () => false });
      const { report } = await move(here, await places.add(), { machine });
      expect([report.result, report.error?.code]).toEqual(["failed", "BAD_DEVICE_STATE"]);
      await pause(LOAD_MS);
      counts(await endLoad(here));
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

/** Where the models have their MSI-X capability. */
const MSIX_OFFSET = 0x50;

/** The program, as an operator runs it. */
async function runDirtmap(args: readonly string[]): Promise<{ stdout: string; stderr: string; status: number | null }> {
  const child = spawn(process.execPath, [join(root, "bin/dirtmap.js"), ...args], { stdio: ["ignore", "pipe", "pipe"] });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const [status] = (await once(child, "close")) as [number | null];
  return { stdout, stderr, status };
}
