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

/** What a guest has besides two disks, one of them behind a root port, the other without an id. */
export interface GuestShape {
  /** A device of another model, with memory that QEMU maps, which no driver uses. */
  readonly engine?: boolean;
  /** Models of devices that write stamped units, each driven by a program in the guest. */
  readonly writers?: readonly string[];
  /** The disks are QEMU's own, of this type. */
  readonly own?: string;
  /** What the disks interrupt with. Default: msix. */
  readonly interrupts?: "msix" | "msi" | "intx";
  /** Default: 2. */
  readonly vcpus?: number;
  /** More options of QEMU. */
  readonly options?: readonly string[];
}

/** Places of one guest: the first boots, each other one waits for it. The disks' files are all the same. */
export class Places implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "dirtmap-move-"));
  readonly #image: ShellImage;
  readonly #shape: GuestShape;
  readonly #all: Place[] = [];

  constructor(image: Omit<ShellImage, "initramfs">, shape: GuestShape = {}) {
    this.#shape = shape;
    this.#image = { vcpus: shape.vcpus, ...image, initramfs: makeShellInitramfs(root, this.folder) };
    for (const disk of DISKS) {
      const fd = openSync(join(this.folder, disk), "w");
      ftruncateSync(fd, DISK_BYTES);
      closeSync(fd);
    }
  }

  /** @param instead a place that is no more, whose sockets this one has */
  async add({ instead }: { instead?: Place } = {}): Promise<Place> {
    const { engine = false, writers = [], own, interrupts = "msix", options: others = [] } = this.#shape;
    const isFirst = this.#all.length === 0;
    const number = instead === undefined ? this.#all.length : this.#all.indexOf(instead);
    const at = (name: string) => join(this.folder, `${number}-${name}`);
    const incoming = isFirst ? [] : ["--incoming"];
    const servers: DeviceProgram[] = [];
    const devices = ["-device", "pcie-root-port,id=port1,chassis=1,addr=4.0"];
    const serve = async (model: string, name: string, options: readonly string[], its: object) => {
      const path = at(name);
      servers.push(await DeviceProgram.start(model, path, [...options, ...incoming]));
      devices.push("-device", JSON.stringify({ driver: "vfio-user-pci", socket: { type: "unix", path }, ...its }));
    };
    for (const [i, disk] of DISKS.entries()) {
      if (own !== undefined) {
        devices.push("-drive", `file=${join(this.folder, disk)},format=raw,if=none,id=${disk}`);
        devices.push("-device", `${own},drive=${disk},serial=${disk},addr=${5 + i}`);
        continue;
      }
      const its = [`file=${join(this.folder, disk)}`, `serial=${disk}`, `interrupts=${interrupts}`];
      const options = its.flatMap((option) => ["--option", option]);
      await serve("nvme", disk, options, i === 0 ? { id: "disk", bus: "port1" } : { addr: "5.0" });
    }
    if (engine) await serve("dma-engine", "engine", [], { id: "engine", addr: "6.0" });
    for (const [i, model] of writers.entries()) {
      await serve(model, model, ["--option", "rate=2"], { id: model, addr: `${hex2(WRITERS_FROM + i)}.0` });
    }
    const qmp = at("qmp");
    devices.push("-qmp", `unix:${qmp},server=on,wait=off`, ...others);
    const guest =
      isFirst
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
    if (instead === undefined) this.#all.push(place);
    else this.#all[number] = place;
    return place;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#all.map((place) => place[Symbol.asyncDispose]()));
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export const DISKS = ["disk0", "disk1"];
/** The slot of the first writer: they are on the root bus. */
const WRITERS_FROM = 8;
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

/** What must not be in the guest's log: a time-out, a reset, an I/O error; an interrupt that is lost, or that nobody wanted. */
export const COMPLAINT =
  /nvme nvme\d: .*(timeout|abort|reset|error|fail|polled)|I\/O error|nobody cared|Disabling IRQ|hung_task|rcu: INFO|BUG:|\bOops:/i;

/** Has each writer driven by its program. */
export async function startWriters({ guest }: Place, writers: readonly string[]): Promise<void> {
  const folders = writers.map((_, i) => `/sys/bus/pci/devices/0000:00:${hex2(WRITERS_FROM + i)}.0`);
  const started = folders.map((folder, n) => `stamped-pages ${folder} 200 /tmp/stop >/tmp/writer${n} 2>&1 &`);
  await guest.run(started.join("\n"));
  await guest.run(
    `for i in $(seq 600); do [ $(grep -l driving /tmp/writer? | wc -l) = ${writers.length} ] && exit 0; sleep 0.1; done; cat /tmp/writer?; exit 1`,
  );
}

/** Has what they wrote checked for the last time; {@link endLoad} has told them to stop. Returns units written, and pages checked. */
export async function endWriters({ guest }: Place, writers: readonly string[]) {
  const said = await guest.run(
    `for i in $(seq 600); do [ $(grep -lE '^(done|LOST)' /tmp/writer? | wc -l) = ${writers.length} ] && break; sleep 0.1; done; cat /tmp/writer?`,
  );
  const found = [...said.matchAll(/^done (\d+) (\d+)$/gm)];
  if (found.length !== writers.length) throw new Error(`the writers did not end well: ${said}`);
  return found.map(([, units, checked]) => ({ units: Number(units), checked: Number(checked) }));
}

const hex2 = (number: number) => number.toString(16).padStart(2, "0");

/** How often each disk's interrupts were counted by the guest, and by which kind of interrupt. */
export async function interruptsOf({ guest }: Place): Promise<{ kind: string; count: number }[]> {
  const lines = (await guest.run("cat /proc/interrupts")).split("\n").filter((line) => /\bnvme\d/.test(line));
  return lines.map((line) => {
    const counted = line.slice(line.indexOf(":") + 1).trim().split(/\s+/);
    const cpus = counted.findIndex((word) => !/^\d+$/.test(word));
    return { kind: counted[cpus], count: counted.slice(0, cpus).reduce((sum, count) => sum + Number(count), 0) };
  });
}

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
