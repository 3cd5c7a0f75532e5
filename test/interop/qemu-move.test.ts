import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import type { GuestTracker } from "../../src/qemu/guest-tracking.js";
import { type MoveGuestOptions, type MoveReport, moveGuest } from "../../src/qemu/move-guest.js";
import { Qemu } from "../../src/qemu/qmp/qemu.js";
import { SocketMonitor } from "../../src/qemu/qmp/socket-monitor.js";
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

async function move(from: Place, to: Place, options: Partial<MoveGuestOptions> = {}): Promise<MoveReport> {
  await using source = await connect(from.qmp);
  await using destination = await connect(to.qmp);
  return await moveGuest({ source, destination, uri: `unix:${to.qmp}-ram`, ...options });
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
      const report = await move(here, there, { trackers: { disk: tracker } });
      console.log(JSON.stringify({ ...report, error: report.error?.message }, null, 1));
      expect(report.error).toBeUndefined();
      expect(report.result).toBe("completed");
      await pause(LOAD_MS);
      const counted = await endLoad(there);
      console.log(JSON.stringify(counted));
      expect(report.warnings).toEqual([]);
      await here.guest.ended();
      here = there;
    },
    TEST_LIMIT_MS,
  );
});
