import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { makeCertificates, writeCertificates } from "../src/certs/certs.js";
import { interleave, type Summary, summarize } from "../src/evidence/statistics.js";
import { GiB, MiB } from "../src/memory/address.js";
import { migrateWithQemu } from "./peers/qemu.js";

/*
 * Whole migrations from process to process, by the program itself: a guest of random pages over two channels, plain and
 * by TLS, beside QEMU with two multifd channels in the same run; and the downtime of a guest whose devices write
 * 100 MB/s.
 */

export interface MigrationOptions {
  /** Bytes of the guest of random pages. */
  readonly bytes?: number;
  readonly repetitions?: number;
  /** Beside QEMU: from PATH, or from a tree to chroot into. */
  readonly qemu?: { readonly root?: string | undefined } | undefined;
}

export interface MigrationRow {
  readonly bench: "migration";
  readonly way: string;
  readonly bytes: number;
  /**
   * From the first page sent until the destination runs; QEMU's total-time, which begins at its `migrate` command. Both
   * destinations are up by then, their memory allocated.
   */
  readonly ms: Summary;
  readonly downtimeMs: Summary;
  /** Of the median. GB are 10^9 bytes. */
  readonly gbPerSecond: number;
  /** Of pairs that ran one after the other, the median of this way's time over QEMU's; null without QEMU. */
  readonly timeOverQemu: number | null;
}

interface Sample {
  readonly ms: number;
  readonly downtimeMs: number;
}

const PROGRAM = fileURLToPath(new URL("../../bin/dirtmap.js", import.meta.url));

/** A migration that takes longer than this has gone wrong. */
const LIMIT_MS = 120_000;

/** Runs the migrations. */
export async function run(options: MigrationOptions = {}): Promise<MigrationRow[]> {
  const { bytes = 2 * GiB, repetitions = 3, qemu } = options;
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
  try {
    const random = join(folder, "random.yaml");
    const loaded = join(folder, "loaded.yaml");
    writeFileSync(random, randomPages(bytes));
    writeFileSync(loaded, devicesWriting());
    const certificates = join(folder, "certificates");
    await writeCertificates(certificates, await makeCertificates({ hosts: ["127.0.0.1"] }));
    const ways = [
      { way: "random pages, tcp, 2 channels", bytes, go: () => migrate(random, folder) },
      { way: "random pages, tls, 2 channels", bytes, go: () => migrate(random, folder, certificates) },
      { way: "devices write 100 MB/s, tcp", bytes: GiB, go: () => migrate(loaded, folder) },
    ];
    if (qemu !== undefined) {
      const version = await qemuVersion(qemu.root, bytes);
      ways.push({ way: `QEMU ${version}, 2 multifd channels`, bytes, go: () => qemuSample(qemu.root, bytes) });
    }
    const samples = await interleave(
      ways.map(({ go }) => go),
      repetitions,
      false,
    );
    const peer = qemu === undefined ? undefined : samples.at(-1);
    return ways.map(({ way, bytes: moved }, index) => {
      const ms = summarize(samples[index].map((sample) => sample.ms));
      const comparable = peer !== undefined && samples[index] !== peer && moved === bytes && index < 2;
      return {
        bench: "migration",
        way,
        bytes: moved,
        ms,
        downtimeMs: summarize(samples[index].map((sample) => sample.downtimeMs)),
        gbPerSecond: moved / 1e6 / ms.median,
        timeOverQemu: comparable ? summarize(samples[index].map((sample, i) => sample.ms / peer[i].ms)).median : null,
      };
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A guest that does nothing, all of whose pages are random. */
function randomPages(bytes: number): string {
  return `machine:
  memory: ${bytes / MiB}M
  fill: 1
  vcpus: { count: 0 }
  devices: []
migration:
  channels: 2
  runAfter: 0ms
`;
}

function devicesWriting(): string {
  return `machine:
  memory: 1G
  fill: 0.5
  vcpus: { count: 0 }
  iommus:
    - { id: iommu0, format: amd-v1 }
  devices:
    - { id: vf0, model: mlx5, iommu: iommu0, load: { rate: 50, footprint: 8M } }
    - { id: nic0, model: nic, iommu: iommu0, load: { rate: 25, footprint: 4M } }
    - { id: disk0, model: blk, iommu: iommu0, load: { rate: 25, footprint: 8M } }
migration:
  trackers: { vf0: device }
  downtimeLimit: 50ms
  channels: 2
`;
}

/** What the bench uses of `migrate --json`. */
interface Report {
  readonly result: string;
  readonly verified: boolean | null;
  readonly downtimeMs: number | null;
  readonly phases: readonly { readonly phase: string; readonly ms: number }[];
  readonly error?: { readonly message: string };
}

const MOVING = new Set(["pre-copy", "pausing", "stop-copy", "handover"]);

async function migrate(scenario: string, folder: string, certificates?: string): Promise<Sample> {
  const tls = certificates === undefined ? [] : ["--tls-folder", certificates];
  const scheme = certificates === undefined ? "tcp" : "tls";
  const journal = ["--journal", join(folder, "journal")];
  const start = (args: readonly string[]) =>
    spawn(process.execPath, [PROGRAM, ...args], { stdio: ["ignore", "pipe", "inherit"], timeout: LIMIT_MS });
  const listen = ["--listen", `${scheme}://127.0.0.1:0`, "--once", "--json"];
  const destination = start(["receive", ...listen, ...journal, ...tls]);
  try {
    const [line] = (await once(createInterface({ input: destination.stdout }), "line")) as [string];
    const { address } = JSON.parse(line) as { address: string };
    const source = start([
      "migrate",
      "--scenario",
      scenario,
      "--to",
      address,
      "--json",
      "--quiet",
      "--no-store",
      ...journal,
      ...tls,
    ]);
    const [text] = await Promise.all([source.stdout.setEncoding("utf8").toArray(), once(source, "exit")]);
    const report = JSON.parse(text.join("")) as Report;
    if (report.result !== "completed" || report.verified !== true || report.downtimeMs === null) {
      throw new Error(`the migration ended with ${report.result}: ${report.error?.message ?? "not verified"}`);
    }
    const ms = report.phases.reduce((sum, phase) => sum + (MOVING.has(phase.phase) ? phase.ms : 0), 0);
    return { ms, downtimeMs: report.downtimeMs };
  } finally {
    destination.kill();
  }
}

async function qemuSample(root: string | undefined, memory: number): Promise<Sample> {
  const { totalMs, downtimeMs } = await migrateWithQemu({ root, memory, channels: 2 });
  return { ms: totalMs, downtimeMs };
}

async function qemuVersion(root: string | undefined, bytes: number): Promise<string> {
  return (await migrateWithQemu({ root, memory: Math.min(bytes, 64 * MiB), channels: 2 })).version;
}
