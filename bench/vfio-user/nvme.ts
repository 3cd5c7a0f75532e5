import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { interleave, type Summary, summarize } from "../../src/evidence/statistics.js";
import { MiB } from "../../src/memory/address.js";
import { serveDevice } from "../../src/vfio-user/server/server.js";
import { makeShellInitramfs, ShellGuest } from "../../test/interop/guest-shell.js";
import { findKernel } from "../../tools/vm/kernel-image.js";
import { MissingError } from "../../tools/vm/missing.js";
import { findQemu } from "../../tools/vm/qemu.js";

/*
 * Random reads of 4 KiB from an NVMe disk, as a guest sees them: Dirtmap's nvme, served to QEMU, next to QEMU's own, in the
 * same guest. The guest's processors are emulated in software, which is most of the time of either.
 */

export interface NvmeRow {
  readonly bench: "nvme";
  /** Reads that are under way at a time. */
  readonly depth: number;
  /** Reads per second. */
  readonly dirtmap: Summary;
  readonly qemu: Summary;
  /** Dirtmap's over QEMU's, of the same turn: the median. */
  readonly ratio: number;
}

const DISK_BYTES = 64 * MiB;
const DEPTHS = [1, 32];

/** Nothing where QEMU or the kernel are missing, with a line that says so. */
export async function run({ turns, seconds }: { turns: number; seconds: number }): Promise<NvmeRow[]> {
  const root = dirname(dirname(dirname(dirname(fileURLToPath(import.meta.url)))));
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
  try {
    const qemu = findQemu({ needs: [{ device: "vfio-user-pci" }, { device: "nvme" }] });
    const image = { qemu, kernel: findKernel(root), initramfs: makeShellInitramfs(root, folder) };
    const [ours, theirs] = ["dirtmap", "qemu"].map((name) => makeDisk(join(folder, `${name}.img`)));
    const socket = join(folder, "nvme");
    await using _server = await serveDevice({
      model: "nvme",
      options: { file: ours, serial: "dirtmap" },
      path: socket,
      log: (line) => process.stderr.write(`${line}\n`),
    });
    await using guest = await ShellGuest.boot(image, join(folder, "guest"), [
      ...["-device", JSON.stringify({ driver: "vfio-user-pci", socket: { type: "unix", path: socket } })],
      ...["-drive", `file=${theirs},format=raw,if=none,id=disk`, "-device", "nvme,drive=disk,serial=qemu"],
    ]);
    const disks = [await diskOf(guest, "dirtmap"), await diskOf(guest, "qemu")];
    const rows: NvmeRow[] = [];
    for (const depth of DEPTHS) {
      const [dirtmap, peer] = await interleave(
        disks.map((disk) => () => readsPerSecond(guest, `random-reads ${disk} ${depth} ${seconds}`)),
        turns,
      );
      rows.push({
        bench: "nvme",
        depth,
        dirtmap: summarize(dirtmap),
        qemu: summarize(peer),
        ratio: summarize(dirtmap.map((reads, turn) => reads / peer[turn])).median,
      });
    }
    return rows;
  } catch (error) {
    if (!(error instanceof MissingError)) throw error;
    process.stderr.write(`nvme skipped: ${error.message}\n`);
    return [];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A disk of which no block is a hole. */
export function makeDisk(path: string): string {
  const fd = openSync(path, "w");
  try {
    const part = new Uint8Array(MiB).fill(0x5a);
    for (let done = 0; done < DISK_BYTES; done += part.byteLength) writeSync(fd, part);
  } finally {
    closeSync(fd);
  }
  return path;
}

/** The disk in the guest whose controller has this serial number. */
export async function diskOf(guest: ShellGuest, serial: string): Promise<string> {
  const name = (await guest.run(`basename $(dirname $(grep -lw ${serial} /sys/class/nvme/*/serial))`)).trim();
  return `/dev/${name}n1`;
}

/** Reads per second that a load in the guest has done. */
export async function readsPerSecond(guest: ShellGuest, command: string): Promise<number> {
  const [reads, nanoseconds] = (await guest.run(command)).trim().split(" ").map(Number);
  return (reads / nanoseconds) * 1e9;
}
