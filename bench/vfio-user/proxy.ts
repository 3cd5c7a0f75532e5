import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { interleave, type Summary, summarize } from "../../src/evidence/statistics.js";
import { proxyDevice } from "../../src/vfio-user/proxy/proxy.js";
import { serveDevice } from "../../src/vfio-user/server/server.js";
import { makeShellInitramfs, ShellGuest } from "../../test/interop/guest-shell.js";
import { findKernel } from "../../tools/vm/kernel-image.js";
import { MissingError } from "../../tools/vm/missing.js";
import { findQemu } from "../../tools/vm/qemu.js";
import { BenchClient } from "./client.js";
import { diskOf, makeDisk, readsPerSecond } from "./nvme.js";
import { compile } from "./programs.js";
import { Servers, type Way } from "./servers.js";

/*
 * A server reached by way of `dirtmap device proxy`, next to the same server reached itself: accesses to registers, and reads of
 * an NVMe disk by a guest of QEMU, whose data passes no proxy.
 */

export interface ProxyRow {
  readonly bench: "proxy";
  readonly what: string;
  readonly unit: "us" | "reads/s";
  readonly direct: Summary;
  readonly proxied: Summary;
  /** The proxied figure over the direct one of the same turn: the median. */
  readonly ratio: number;
}

const BATCH = 300;
const BATCHES = 9;
const WARM_UP = 20_000;
const DEPTHS = [1, 32];
const SERVERS: readonly Way[] = ["dirtmap", "libvfio-user"];
const MESSAGES = {
  "register read": `read ${BATCH} block`,
  "register write": `write ${BATCH} block`,
  "posted write": `posted ${BATCH}`,
};

/** Without a C compiler, QEMU or a kernel: what can be measured, with a line that says what is missing. */
export async function run(options: { turns: number; seconds: number }): Promise<ProxyRow[]> {
  const rows: ProxyRow[] = [];
  for (const measure of [registers, reads]) {
    const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
    try {
      rows.push(...(await measure(folder, options)));
    } catch (error) {
      if (!(error instanceof MissingError)) throw error;
      process.stderr.write(`proxy skipped: ${error.message}\n`);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
  return rows;
}

const root = dirname(dirname(dirname(dirname(fileURLToPath(import.meta.url)))));

/** Microseconds per message. */
async function registers(folder: string, { turns }: { turns: number }): Promise<ProxyRow[]> {
  const programs = compile(root, folder);
  await using direct = await Servers.start(programs, mkdtempSync(join(folder, "direct-")), { ways: SERVERS });
  await using proxied = await Servers.start(programs, mkdtempSync(join(folder, "proxied-")), {
    ways: SERVERS,
    proxied: true,
  });
  const rows: ProxyRow[] = [];
  for (const [way, socket] of direct.sockets) {
    const sockets = [socket, proxied.sockets.get(way) ?? ""];
    for (const at of sockets) {
      await using client = await BenchClient.connect(programs.client, at);
      await client.measure(`read ${WARM_UP} block`);
    }
    for (const [what, command] of Object.entries(MESSAGES)) {
      const times = await interleave(
        sockets.map((at) => async () => {
          await using client = await BenchClient.connect(programs.client, at);
          const batches: number[] = [];
          for (let i = 0; i < BATCHES; i++) batches.push((await client.measure(command)) / BATCH);
          return summarize(batches).median;
        }),
        turns,
      );
      rows.push(rowOf(`${what}, ${way}`, "us", times));
    }
  }
  return rows;
}

/** Reads of 4 KiB per second, from two disks of one guest. */
async function reads(folder: string, { turns, seconds }: { turns: number; seconds: number }): Promise<ProxyRow[]> {
  const qemu = findQemu({ needs: [{ device: "vfio-user-pci" }] });
  const image = { qemu, kernel: findKernel(root), initramfs: makeShellInitramfs(root, folder) };
  const log = (line: string) => process.stderr.write(`${line}\n`);
  const serve = (serial: string) =>
    serveDevice({
      model: "nvme",
      options: { file: makeDisk(join(folder, `${serial}.img`)), serial },
      path: join(folder, serial),
      log,
    });
  await using direct = await serve("direct");
  await using behind = await serve("proxied");
  await using proxy = await proxyDevice({ server: behind.path, path: join(folder, "proxy"), log });
  const device = (path: string) => [
    "-device",
    JSON.stringify({ driver: "vfio-user-pci", socket: { type: "unix", path } }),
  ];
  await using guest = await ShellGuest.boot(image, join(folder, "guest"), [
    ...device(direct.path),
    ...device(proxy.path),
  ]);
  const disks = [await diskOf(guest, "direct"), await diskOf(guest, "proxied")];
  const rows: ProxyRow[] = [];
  for (const depth of DEPTHS) {
    const rates = await interleave(
      disks.map((disk) => () => readsPerSecond(guest, `random-reads ${disk} ${depth} ${seconds}`)),
      turns,
    );
    rows.push(rowOf(`nvme reads, ${depth} at a time`, "reads/s", rates));
  }
  return rows;
}

function rowOf(what: string, unit: ProxyRow["unit"], [direct, proxied]: readonly number[][]): ProxyRow {
  const ratio = summarize(proxied.map((figure, turn) => figure / direct[turn])).median;
  return { bench: "proxy", what, unit, direct: summarize(direct), proxied: summarize(proxied), ratio };
}
