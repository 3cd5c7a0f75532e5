import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, copyFileSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Moved, type MoveOptions, moveGuest } from "../../src/qemu/move.test.helper.js";
import type { EventStream } from "../../src/qemu/qmp/event-stream.js";
import { Qemu } from "../../src/qemu/qmp/qemu.js";
import { SocketMonitor } from "../../src/qemu/qmp/socket-monitor.js";
import { VfioUserDevice } from "../../src/vfio-user/client/device.js";
import { controlPath } from "../../src/vfio-user/control-path.js";
import { DeviceProgram } from "./device-program.js";
import { makeShellInitramfs, ShellGuest, type ShellImage } from "./guest-shell.js";

/*
 * Places for one guest of QEMU that moves with its disks, which `dirtmap device` serves, and a load that knows what each block of
 * these must hold.
 */

export const root = fileURLToPath(new URL("../../../", import.meta.url));

/** Blocks that the load writes to, from the disk's beginning on, and the bytes of each. */
export const LOAD_BLOCKS = 2048;
export const LOAD_BLOCK_BYTES = 4096;

const DISK_BYTES = 64 * 2 ** 20;

/** One QEMU and the servers of its devices. */
export interface Place extends AsyncDisposable {
  readonly guest: ShellGuest;
  readonly servers: readonly DeviceProgram[];
  /** The monitor that is Dirtmap's alone. */
  readonly qmp: string;
  /** Another, for whoever watches. */
  readonly watched: string;
  /** Where a device is served; {@link DISKS} are two. */
  socketOf(device: string): string;
}

export type Interrupts = "msix" | "msi" | "intx";

/** What a guest has besides two disks, one of them behind a root port, the other without an id. */
export interface GuestShape {
  /** A device of another model, with memory that QEMU maps, which no driver uses. */
  readonly engine?: boolean;
  /** Models of devices that write stamped units, each driven by a program in the guest. */
  readonly writers?: readonly string[];
  /** The disks are QEMU's own, of this type. */
  readonly own?: string;
  /** What each disk interrupts with. Default: MSI-X. */
  readonly interrupts?: readonly Interrupts[];
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

  /**
   * @param instead a place that is no more, whose sockets this one has
   * @param proxied QEMU reaches each server by way of a proxy, with this mode of DMA, and the server's own control connection is
   * left alone
   */
  async add({ instead, proxied }: { instead?: Place; proxied?: "auto" | "messages" } = {}): Promise<Place> {
    const { engine = false, writers = [], own, interrupts = [], options: others = [] } = this.#shape;
    const isFirst = this.#all.length === 0;
    const number = instead === undefined ? this.#all.length : this.#all.indexOf(instead);
    const at = (name: string) => join(this.folder, `${number}-${name}`);
    const incoming = isFirst ? [] : ["--incoming"];
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
      const its = [`file=${join(this.folder, disk)}`, `serial=${disk}`, `interrupts=${interrupts[i] ?? "msix"}`];
      const options = its.flatMap((option) => ["--option", option]);
      await serve("nvme", disk, options, i === 0 ? { id: "disk", bus: "port1" } : { addr: "5.0" });
    }
    if (engine) await serve("dma-engine", "engine", [], { id: "engine", addr: "6.0" });
    for (const [i, model] of writers.entries()) {
      await serve(model, model, ["--option", "rate=2"], { id: model, addr: `${hex2(WRITERS_FROM + i)}.0` });
    }
    const qmp = at("qmp");
    devices.push("-qmp", `unix:${qmp},server=on,wait=off`, ...others);
    const guest = isFirst
      ? await ShellGuest.boot(this.#image, at("guest"), devices)
      : ShellGuest.incoming(this.#image, at("guest"), devices);
    const place = {
      guest,
      servers,
      qmp,
      watched: join(at("guest"), "qmp"),
      socketOf: at,
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

/** Moves the guest; with the pause of its vCPUs by QEMU's own clock, from the source's STOP to the destination's RESUME. */
export async function move(
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

/** The stream goes on behind the event. */
export async function timeOf(events: EventStream, name: string): Promise<number> {
  for (;;) {
    const { value } = await events.next();
    if (value === undefined) throw new Error(`no event ${name}`);
    if (value.name === name) return value.at;
  }
}

/** Gives a QEMU TLS credentials for its own stream, as its operator does. @param certs of `dirtmap certs` */
export async function giveCredentials({ watched }: Place, certs: string, endpoint: "client" | "server"): Promise<void> {
  const dir = `${certs}-${endpoint}`;
  mkdirSync(dir, { recursive: true });
  // By QEMU's names (docs/system/tls.rst).
  copyFileSync(join(certs, "ca.pem"), join(dir, "ca-cert.pem"));
  copyFileSync(join(certs, `${endpoint}.pem`), join(dir, `${endpoint}-cert.pem`));
  copyFileSync(join(certs, `${endpoint}-key.pem`), join(dir, `${endpoint}-key.pem`));
  await using qemu = await connect(watched);
  await qemu.monitor.execute("object-add", {
    "qom-type": "tls-creds-x509",
    id: `tls-${endpoint}`,
    dir,
    endpoint,
    "verify-peer": true,
  });
  const parameters = endpoint === "client" ? { "tls-hostname": "localhost" } : {};
  await qemu.setParameters({ "tls-creds": `tls-${endpoint}`, ...parameters });
}

export const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Has each disk read and written all the time.
 * @param disks as the guest's kernel names them
 * @param pool pages that each reads into, which are told in /tmp/frames0 and /tmp/frames1; left out: many, and not told
 */
export async function startLoad(
  { guest }: Place,
  { disks = ["/dev/nvme0n1", "/dev/nvme1n1"], pool }: { disks?: readonly string[]; pool?: number } = {},
): Promise<void> {
  const told = (n: number) => (pool === undefined ? "" : `${pool} /tmp/frames${n}`);
  const started = disks.map(
    (disk, n) => `verified-io ${disk} 16 ${LOAD_BLOCKS} 1${n} /tmp/stop ${told(n)} >/tmp/load${n} 2>&1 &`,
  );
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
  /nvme nvme\d: .*(timeout|abort|reset|error|fail|polled)|I\/O error|nobody cared|Disabling IRQ|kernel BUG|\bOops:/i;

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

/** What the guest's kernel calls a disk's controller. */
export async function controllerOf({ guest }: Place, disk: string): Promise<string> {
  return (await guest.run(`basename $(dirname $(grep -l '^${disk} *$' /sys/class/nvme/*/serial))`)).trim();
}

/** How often a disk's interrupts were counted by the guest, and of which kind they are. */
async function interruptsOf({ guest }: Place, controller: string): Promise<{ kinds: string[]; count: number }> {
  const lines = (await guest.run("cat /proc/interrupts")).split("\n").filter((line) => line.includes(`${controller}q`));
  const told = lines.map((line) => {
    const counted = line
      .slice(line.indexOf(":") + 1)
      .trim()
      .split(/\s+/);
    const cpus = counted.findIndex((word) => !/^\d+$/.test(word));
    return { kind: counted[cpus], count: counted.slice(0, cpus).reduce((sum, count) => sum + Number(count), 0) };
  });
  return {
    kinds: [...new Set(told.map(({ kind }) => kind.replace(/-[0-9a-f:.]+$/, "")))],
    count: told.reduce((sum, { count }) => sum + count, 0),
  };
}

/**
 * Reads from an idle disk, one block after the other: how many, how many interrupts the device raised for them, and how many the
 * guest counted.
 */
export async function interruptsOfReads(place: Place, disk: string) {
  await using control = await VfioUserDevice.open({
    path: controlPath(place.socketOf(disk)),
    id: disk,
    control: true,
  });
  const raised = async () => {
    const counters = (await control.serverCounters()) as { readonly device?: { readonly interrupts?: number } } | null;
    if (counters?.device?.interrupts === undefined) throw new Error("the server does not tell of interrupts");
    return counters.device.interrupts;
  };
  const controller = await controllerOf(place, disk);
  const before = { raised: await raised(), counted: (await interruptsOf(place, controller)).count };
  const reads = Number((await place.guest.run(`random-reads /dev/${controller}n1 1 1`)).split(" ")[0]);
  const { kinds, count } = await interruptsOf(place, controller);
  return { kinds, reads, raised: (await raised()) - before.raised, counted: count - before.counted };
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
