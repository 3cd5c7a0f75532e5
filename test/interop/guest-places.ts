import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Qemu } from "../../src/qemu/qmp/qemu.js";
import { SocketMonitor } from "../../src/qemu/qmp/socket-monitor.js";
import { DeviceProgram } from "./device-program.js";
import { makeShellInitramfs, ShellGuest, type ShellImage } from "./guest-shell.js";

/*
 * Places for one guest of QEMU that moves with its disks, which `dirtmap device` serves, and a load that knows what each block of
 * these must hold.
 */

export const root = fileURLToPath(new URL("../../../", import.meta.url));

const DISK_BYTES = 64 * 2 ** 20;

/** One QEMU and the servers of its devices. */
export interface Place extends AsyncDisposable {
  readonly guest: ShellGuest;
  readonly servers: readonly DeviceProgram[];
  /** The monitor that is Dirtmap's alone. */
  readonly qmp: string;
  /** Another, for whoever watches. */
  readonly watched: string;
}

interface PlaceOptions {
  readonly engine?: boolean;
  readonly own?: string;
  readonly proxied?: "auto" | "messages";
}

/** Places of one guest: the first boots, each other one waits for it. The disks' files are all the same. */
export class Places implements AsyncDisposable {
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
   * maps, which no driver uses. With `own` the disks are QEMU's, of this type. With `proxied` QEMU reaches each server by way of
   * a proxy, with that mode of DMA, and the server's own control connection is left alone.
   */
  async add({ engine = false, own, proxied }: PlaceOptions = {}): Promise<Place> {
    const number = this.#all.length;
    const at = (name: string) => join(this.folder, `${number}-${name}`);
    const incoming = number === 0 ? [] : ["--incoming"];
    const servers: DeviceProgram[] = [];
    const devices = ["-device", "pcie-root-port,id=port1,chassis=1,addr=4.0"];
    const serve = async (model: string, name: string, options: readonly string[], its: object) => {
      const path = at(name);
      const served = proxied === undefined ? path : `${path}-served`;
      servers.push(await DeviceProgram.start(model, served, [...options, ...incoming]));
      if (proxied !== undefined) {
        servers.push(await DeviceProgram.start("proxy", path, ["--server", served, "--dma", proxied, ...incoming]));
      }
      devices.push("-device", JSON.stringify({ driver: "vfio-user-pci", socket: { type: "unix", path }, ...its }));
    };
    for (const [i, disk] of DISKS.entries()) {
      if (own !== undefined) {
        devices.push("-drive", `file=${join(this.folder, disk)},format=raw,if=none,id=${disk}`);
        devices.push("-device", `${own},drive=${disk},serial=${disk},addr=${5 + i}`);
        continue;
      }
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
      servers,
      qmp,
      watched: join(at("guest"), "qmp"),
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

export const DISKS = ["disk0", "disk1"];
/** The second disk's name: where it is. */
export const SECOND = "pcie.0-05.0";

/** A QEMU that has just been started has no monitor yet. */
export async function connect(path: string): Promise<Qemu> {
  for (let tries = 0; ; tries++) {
    try {
      return new Qemu(await SocketMonitor.open(path));
    } catch (error) {
      if ((error as { code?: string }).code !== "QMP_UNREACHABLE" || tries > 600) throw error;
      await pause(50);
    }
  }
}

export const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Has each disk read and written all the time. @param disks as the guest's kernel names them */
export async function startLoad({ guest }: Place, disks = ["/dev/nvme0n1", "/dev/nvme1n1"]): Promise<void> {
  const started = disks.map((disk, n) => `verified-io ${disk} 16 2048 1${n} /tmp/stop >/tmp/load${n} 2>&1 &`);
  await guest.run(["rm -f /tmp/stop /tmp/load*", ...started].join("\n"));
  await guest.run(
    "for i in $(seq 600); do [ $(grep -l wrote /tmp/load0 /tmp/load1 | wc -l) = 2 ] && exit 0; sleep 0.1; done; cat /tmp/load*; exit 1",
  );
}

/** Ends the load, and waits until it has checked all; returns what it said. */
export async function endLoad({ guest }: Place): Promise<string> {
  await guest.run("touch /tmp/stop");
  return await guest.run(
    "for i in $(seq 600); do [ $(grep -lE '^(done|LOST|ERROR)' /tmp/load0 /tmp/load1 | wc -l) = 2 ] && break; sleep 0.1; done; cat /tmp/load0 /tmp/load1",
  );
}

/** What it counted. @throws where it found anything wrong */
export function counts(said: string) {
  const found = [...said.matchAll(/^took (\d+) (\d+)\ndone (\d+) (\d+) (\d+) (\d+)$/gm)];
  if (found.length !== DISKS.length) throw new Error(`the load did not end well: ${said}`);
  return found.map(([, ...numbers]) => {
    const [medianUs, p999Us, reads, writes, kept, slowestMs] = numbers.map(Number);
    return { medianUs, p999Us, reads, writes, kept, slowestMs };
  });
}

/** The driver's complaints: a time-out, a reset, an I/O error. */
export const COMPLAINT = /nvme nvme\d: .*(timeout|abort|reset|error|fail)|I\/O error/i;

/** The program, as an operator runs it. */
export async function runDirtmap(
  args: readonly string[],
): Promise<{ stdout: string; stderr: string; status: number | null }> {
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
