import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { receiveBy } from "../../src/migration/destination.js";
import type { MigrationReport } from "../../src/migration/report.js";
import { type HandoverOptions, migrateBy } from "../../src/migration/source.js";
import { connectControl } from "../../src/migration/transport/connect.js";
import { formatEndpoint } from "../../src/migration/transport/endpoint.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DestinationGuest } from "../../src/qemu/destination-guest.js";
import { QemuDestination } from "../../src/qemu/destination-memory.js";
import type { GuestTracker } from "../../src/qemu/guest-tracking.js";
import type { EventStream } from "../../src/qemu/qmp/event-stream.js";
import { Qemu } from "../../src/qemu/qmp/qemu.js";
import { SocketMonitor } from "../../src/qemu/qmp/socket-monitor.js";
import { SourceGuest } from "../../src/qemu/source-guest.js";
import { QemuMover, type QemuMoverOptions } from "../../src/qemu/source-mover.js";
import { findKernel } from "../vm/kernel-image.js";
import { MissingError } from "../vm/missing.js";
import { findQemu } from "../vm/qemu.js";
import { DeviceProgram } from "./device-program.js";
import { makeShellInitramfs, ShellGuest, type ShellImage } from "./guest-shell.js";

/*
 * A guest of QEMU, with Linux's own nvme driver and a load that knows what each block must hold, is moved from QEMU to QEMU with
 * its disk, which `dirtmap device nvme` serves on both sides.
 */

const root = fileURLToPath(new URL("../../../", import.meta.url));

const DISK_BYTES = 64 * 2 ** 20;
const TEST_LIMIT_MS = 300_000;
/** How long the load runs before a move and after it. */
const LOAD_MS = 1500;

function findImage(): Omit<ShellImage, "initramfs"> | MissingError {
  try {
    return { qemu: findQemu({ needs: [{ device: "vfio-user-pci" }] }), kernel: findKernel(root) };
  } catch (error) {
    if (error instanceof MissingError) return error;
    throw error;
  }
}

const found = findImage();

if (found instanceof MissingError) {
  test.skipIf(!process.env.CI)(`QEMU 10.1 or later as a client of vfio-user: ${found.message}`, () => {
    throw found;
  });
}

/** One QEMU and the servers of its devices. */
interface Place extends AsyncDisposable {
  readonly guest: ShellGuest;
  readonly qmp: string;
  readonly servers: readonly DeviceProgram[];
}

class Places implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "dirtmap-move-"));
  readonly #image: ShellImage;
  readonly #all: Place[] = [];

  constructor(image: Omit<ShellImage, "initramfs">) {
    this.#image = { ...image, initramfs: makeShellInitramfs(root, this.folder) };
    const fd = openSync(this.#disk, "w");
    ftruncateSync(fd, DISK_BYTES);
    closeSync(fd);
  }

  get #disk(): string {
    return join(this.folder, "disk.img");
  }

  /** The first place boots; each other one waits for a guest. */
  async add({ behindRootPort = false } = {}): Promise<Place> {
    const folder = join(this.folder, `place${this.#all.length}`);
    const first = this.#all.length === 0;
    const socket = `${folder}-nvme`;
    const qmp = `${folder}-qmp`;
    const options = ["--option", `file=${this.#disk}`, "--option", "serial=moving", ...(first ? [] : ["--incoming"])];
    const server = await DeviceProgram.start("nvme", socket, options);
    const disk = { driver: "vfio-user-pci", id: "disk", socket: { type: "unix", path: socket } };
    const devices = [
      ...["-device", "pcie-root-port,id=port1,chassis=1"],
      ...["-device", JSON.stringify(behindRootPort ? { ...disk, bus: "port1" } : disk)],
      ...["-qmp", `unix:${qmp},server=on,wait=off`],
    ];
    const guest = first
      ? await ShellGuest.boot(this.#image, folder, devices)
      : ShellGuest.incoming(this.#image, folder, devices);
    const servers = [server];
    const place = {
      guest,
      qmp,
      servers,
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

interface Moved {
  readonly report: MigrationReport;
  /** Of the vCPUs, by QEMU's own clock: from the source's STOP to the destination's RESUME; null: one of them did not come. */
  readonly pauseMs: number | null;
  readonly warnings: readonly string[];
}

/** Moves the guest, as `dirtmap migrate` and `dirtmap receive` do. */
async function move(
  from: Place,
  to: Place,
  { handover, ...options }: Partial<QemuMoverOptions> & { handover?: HandoverOptions } = {},
): Promise<Moved> {
  const journalDirectory = mkdtempSync(join(tmpdir(), "dirtmap-move-journals-"));
  const address = `unix:${to.qmp}-ram`;
  const warnings: string[] = [];
  const warn = (text: string) => warnings.push(text);
  await using source = await connect(from.qmp);
  await using destination = await connect(to.qmp);
  using stopped = source.events();
  using resumed = destination.events();
  await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  const { endpoint } = listener;
  const receiving = listener
    .acceptControl()
    .then((control) =>
      receiveBy(
        ({ signal }) =>
          new QemuDestination(
            () => DestinationGuest.open(destination, { warn }),
            { ...options, address, warn },
            signal,
          ),
        { from: "test", control },
        { journalDirectory },
      ),
    );
  await using guest = await SourceGuest.open(source);
  const report = await migrateBy(
    new QemuMover(guest, { ...options, address }),
    guest,
    { destination: formatEndpoint(endpoint), connect: (signal) => connectControl({ endpoint, signal }) },
    { journalDirectory, runAfterMs: 0, ...handover },
  );
  const received = await receiving;
  if ("machine" in received) await received.machine[Symbol.asyncDispose]();
  rmSync(journalDirectory, { recursive: true, force: true });
  const [stop, resume] =
    report.result === "completed" ? [await timeOf(stopped, "STOP"), await timeOf(resumed, "RESUME")] : [];
  return { report, pauseMs: stop === undefined || resume === undefined ? null : resume - stop, warnings };
}

async function timeOf(events: EventStream, name: string): Promise<number> {
  for await (const event of events) if (event.name === name) return event.at;
  throw new Error(`no event ${name}`);
}

async function startLoad({ guest }: Place): Promise<void> {
  await guest.run("rm -f /tmp/stop /tmp/load; verified-io /dev/nvme0n1 16 4096 1 /tmp/stop >/tmp/load 2>&1 &");
  await guest.run("for i in $(seq 300); do grep -q wrote /tmp/load && exit 0; sleep 0.1; done; cat /tmp/load; exit 1");
}

/** Ends the load; returns what it counted. */
async function endLoad({ guest }: Place): Promise<{ reads: number; writes: number; kept: number; slowestMs: number }> {
  await guest.run("touch /tmp/stop");
  const output = await guest.run(
    "for i in $(seq 300); do grep -qE '^(done|LOST|ERROR)' /tmp/load && break; sleep 0.1; done; cat /tmp/load",
  );
  const done = /^done (\d+) (\d+) (\d+) (\d+)/m.exec(output);
  expect(done, output).not.toBeNull();
  const [reads, writes, kept, slowestMs] = (done ?? []).slice(1).map(Number);
  return { reads, writes, kept, slowestMs };
}

describe.skipIf(found instanceof MissingError)("a guest of QEMU that moves with its nvme disk", () => {
  let places: Places;
  let here: Place;

  beforeAll(async () => {
    if (found instanceof MissingError) return;
    places = new Places(found);
    here = await places.add();
  }, TEST_LIMIT_MS);

  afterAll(async () => {
    await places?.[Symbol.asyncDispose]();
  }, TEST_LIMIT_MS);

  it.each<GuestTracker>(["messages", "device"])(
    "goes on with its I/O, tracked by %s",
    async (tracker) => {
      await startLoad(here);
      await pause(LOAD_MS);
      const there = await places.add();
      const { report, pauseMs, warnings } = await move(here, there, { trackers: { disk: tracker } });
      console.log(JSON.stringify({ report, pauseMs }));
      expect(report.error).toBeUndefined();
      expect(report.result).toBe("completed");
      await pause(LOAD_MS);
      const counted = await endLoad(there);
      console.log(JSON.stringify(counted));
      expect([...report.warnings, ...warnings]).toEqual([]);
      await here.guest.ended();
      here = there;
    },
    TEST_LIMIT_MS,
  );
});
