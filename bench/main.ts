import { parseArgs } from "node:util";
import { watchMachine } from "../src/evidence/machine.js";
import type { Comparison, Summary } from "../src/evidence/statistics.js";
import { GiB, KiB, MiB, TiB } from "../src/memory/address.js";
import { table } from "../src/observe/table.js";
import { type ChannelRow, run as runChannels } from "./channels.js";
import { type DmaRow, run as runDma } from "./dma.js";
import { type DoorRow, run as runDoors } from "./doors.js";
import { type IoctlRow, run as runIoctl } from "./ioctl.js";
import { type LogRow, run as runLogs } from "./logs.js";
import { type MigrationRow, run as runMigration } from "./migration.js";
import { type ObserveRow, run as runObserve } from "./observe.js";
import { metShare, type PredictRow, run as runPredict } from "./predict.js";
import { type QemuMoveRow, type QemuTrackingRow, run as runQemu, runTracking } from "./qemu.js";
import { run as runScan, type ScanRow } from "./scan.js";
import { type NvmeRow, run as runNvme } from "./vfio-user/nvme.js";
import { type ProxyRow, run as runProxy } from "./vfio-user/proxy.js";
import { WAYS } from "./vfio-user/servers.js";
import { run as runVfioUser, type VfioUserRow } from "./vfio-user.js";

/*
 *   npm run bench -- [scan] [logs] [dma] [channels] [migration] [ioctl] [observe] [vfio-user] [predict] [doors] [qemu] [proxy]
 *                    [--full] [--json] [--qemu | --qemu-root DIR]
 *
 * By default all benches but `qemu` and `proxy`, in about three minutes on an idle machine; `qemu` takes ten, `proxy` one. Progress on standard error. --full maps up to 1 TiB and repeats more.
 * QEMU runs beside `migration` where it is asked for: from PATH, or from a Debian tree to chroot into.
 */

/** Raised when a field of the JSON changes its meaning. */
const SCHEMA_VERSION = 1;

type Row =
  | ScanRow
  | LogRow
  | DmaRow
  | ChannelRow
  | MigrationRow
  | IoctlRow
  | VfioUserRow
  | ObserveRow
  | PredictRow
  | DoorRow
  | NvmeRow
  | ProxyRow
  | QemuMoveRow
  | QemuTrackingRow;

interface Options {
  readonly full: boolean;
  readonly qemu: { readonly root?: string | undefined } | undefined;
}

const BENCHES: Readonly<Record<string, (options: Options) => Promise<readonly Row[]>>> = {
  scan: ({ full }) =>
    runScan(
      full ? { sizes: [GiB, 16 * GiB, 128 * GiB, TiB], repetitions: 5 } : { sizes: [GiB, 16 * GiB], repetitions: 5 },
    ),
  logs: ({ full }) => runLogs(full ? { sizes: [GiB, 16 * GiB, TiB] } : {}),
  dma: ({ full }) => runDma({ rounds: full ? 300 : 100 }),
  channels: ({ full }) => runChannels(full ? { bytes: 2 * GiB, repetitions: 7 } : { bytes: GiB, repetitions: 3 }),
  migration: ({ full, qemu }) => runMigration({ repetitions: full ? 7 : 3, qemu }),
  ioctl: ({ full }) => runIoctl({ repetitions: full ? 2000 : 300 }),
  observe: ({ full }) => runObserve({ pairs: full ? 31 : 7, pageMs: full ? 30_000 : 10_000 }),
  "vfio-user": async ({ full }) => [
    ...(await runVfioUser({ turns: full ? 21 : 5 })),
    ...(await runNvme({ turns: full ? 11 : 5, seconds: 1 })),
  ],
  predict: ({ full }) => runPredict({ repetitions: full ? 5 : 1 }),
  qemu: async ({ full }) => [
    ...(await runQemu({ turns: full ? 11 : 3 })),
    ...(await runTracking({ turns: full ? 21 : 5 })),
  ],
  proxy: ({ full }) => runProxy({ turns: full ? 21 : 5, seconds: 1 }),
  doors: ({ full }) => runDoors({ turns: full ? 31 : 7 }),
};

/** Numbers as a table shows them: three digits that count. */
function short(value: number | null): string {
  return value === null ? "-" : Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 3 });
}

function spread({ median, min, max }: Summary): string {
  return `${short(median)} (${short(min)} to ${short(max)})`;
}

/** A figure, or why there is none. */
function figure(value: Summary | string | undefined): string {
  return typeof value === "object" ? spread(value) : (value ?? "-");
}

function ratio({ ratio: median, low, high, pairs }: Comparison): string {
  return `${short(median)} (${short(low)} to ${short(high)}, ${pairs} pairs)`;
}

const percent = (share: number) => `${short(share * 100)} %`;

function size(bytes: number): string {
  if (bytes >= GiB) return `${bytes / GiB} GiB`;
  return bytes >= MiB ? `${bytes / MiB} MiB` : `${bytes / KiB} KiB`;
}

/** A row as the table shows it: by column. */
function cells(row: Row): Readonly<Record<string, string>> {
  switch (row.bench) {
    case "scan":
      return {
        format: row.format,
        mapped: size(row.mappedBytes),
        dirty: percent(row.dirty),
        ms: spread(row.ms),
        "CPU ms": short(row.cpuMs.median),
        "ns/IOPTE": short(row.nsPerIopte),
        "GB/s": short(row.gbPerSecond),
        "memcmp GB/s": short(row.streamGbPerSecond),
      };
    case "logs":
      return {
        tracker: row.tracker,
        span: size(row.spanBytes),
        dirty: percent(row.dirty),
        ms: spread(row.ms),
        "ns/dirty page": short(row.nsPerDirtyPage),
      };
    case "dma":
      return {
        format: row.format,
        tracking: row.tracking,
        "bytes/write": String(row.bytesPerWrite),
        "writes/s": short(row.writesPerSecond),
        cost: percent(row.cost),
      };
    case "channels":
      return {
        way: row.way,
        memory: size(row.bytes),
        s: spread(row.seconds),
        "CPU s": spread(row.cpuSeconds),
        "GB/s": short(row.gbPerSecond),
      };
    case "predict":
      return {
        scenario: row.scenario,
        "downtime ms": short(row.downtimeMs),
        predicted: short(row.predictedDowntimeMs),
        error: row.downtimeError === null ? "-" : percent(row.downtimeError),
        rounds: String(row.rounds),
        "predicted rounds": String(row.predictedRounds),
        "total ms": short(row.movingMs),
        "predicted total": short(row.predictedMovingMs),
        "within 20 %, one round": row.met ? "yes" : "no",
      };
    case "doors":
      return {
        door: row.door ?? "bare Node",
        "CPU ms": spread(row.cpuMs),
        "/ bare Node's": short(row.overBare),
        "resident MiB": short(row.residentBytes.median / MiB),
      };
    case "migration":
      return {
        way: row.way,
        memory: size(row.bytes),
        ms: spread(row.ms),
        "downtime ms": spread(row.downtimeMs),
        "GB/s": short(row.gbPerSecond),
        "time / QEMU's": short(row.timeOverQemu),
      };
    case "ioctl":
      return {
        call: row.call,
        range: size(row.rangeBytes),
        on: row.thread ? "a thread" : "this one",
        "bare us": spread(row.bareUs),
        "library us": spread(row.libraryUs),
        "added us": short(row.addedUs.median),
        "added, fastest": short(row.libraryUs.min - row.bareUs.min),
        "heap bytes": short(row.heapBytes),
      };
    case "observe":
      return {
        measured: row.what,
        ms: spread(row.ms),
        "observed / unseen": row.observedOver === undefined ? "-" : ratio(row.observedOver),
        "99th percentile": short(row.frames?.p99Ms ?? null),
        "CPU ms per read": short(row.cpuMsPerRead ?? null),
        "late frames": row.frames === undefined ? "-" : `${row.frames.late} of ${row.frames.count}`,
      };
    case "vfio-user":
      return {
        measured: row.what,
        unit: row.unit,
        ...Object.fromEntries(WAYS.map((way) => [way, figure(row.figures[way])])),
        "/ libvfio-user": short(row.ratio),
        "/ its poll": short(row.pollRatio),
      };
    case "qemu":
      return {
        disks: row.way,
        "pause ms": spread(row.pauseMs),
        "total ms": spread(row.totalMs),
        "sent MiB": short(row.bytes.median / MiB),
        "I/O us": figure(row.io?.medianUs),
        "99.9 %": figure(row.io?.p999Us),
        "slowest ms": figure(row.io?.slowestMs),
        "I/O a second": short(row.io?.perSecond.median ?? null),
      };
    case "qemu-tracking":
      return {
        disks: row.way,
        "I/O a second": spread(row.perSecond),
        "/ untracked": row.ratio === null ? "-" : ratio(row.ratio),
      };
    case "proxy":
      return {
        measured: row.what,
        unit: row.unit,
        direct: spread(row.direct),
        proxied: spread(row.proxied),
        "/ direct": short(row.ratio),
      };
    case "nvme":
      return {
        "reads under way": String(row.depth),
        "dirtmap, reads/s": spread(row.dirtmap),
        "QEMU's nvme": spread(row.qemu),
        "/ QEMU's": short(row.ratio),
      };
  }
}

function print(rows: readonly Row[]): void {
  const shown = rows.map(cells);
  const columns = Object.keys(shown[0]);
  const lines = table([columns, ...shown.map((row) => Object.values(row))]);
  process.stdout.write(`\n${rows[0].bench}\n${lines.join("\n")}\n`);
  const predicted = rows.filter((row) => row.bench === "predict");
  if (predicted.length > 0) process.stdout.write(`met: ${percent(metShare(predicted))}, of which the aim is 90 %\n`);
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      full: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      qemu: { type: "boolean", default: false },
      "qemu-root": { type: "string" },
    },
  });
  const root = values["qemu-root"];
  const options = { full: values.full, qemu: values.qemu || root !== undefined ? { root } : undefined };
  const unknown = positionals.filter((name) => !Object.hasOwn(BENCHES, name));
  if (unknown.length > 0) {
    process.stderr.write(`there is no bench '${unknown[0]}'; there are: ${Object.keys(BENCHES).join(", ")}\n`);
    process.exitCode = 2;
    return;
  }
  const describe = watchMachine();
  const results: Row[] = [];
  const byDefault = Object.keys(BENCHES).filter((name) => name !== "qemu" && name !== "proxy");
  for (const name of positionals.length > 0 ? positionals : byDefault) {
    process.stderr.write(`${name} …\n`);
    const rows = await BENCHES[name](options);
    results.push(...rows);
    if (values.json) continue;
    // Rows of one kind have the same columns.
    for (const kind of new Set(rows.map(({ bench }) => bench))) print(rows.filter(({ bench }) => bench === kind));
  }
  const machine = describe();
  if (values.json) {
    process.stdout.write(`${JSON.stringify({ schemaVersion: SCHEMA_VERSION, machine, results }, null, 2)}\n`);
    return;
  }
  const steal = machine.stealShare === null ? "unknown" : percent(machine.stealShare);
  process.stdout.write(
    `\n${machine.cpu}, ${machine.cores} cores, Node ${machine.node}, load ${short(machine.load)}, stolen ${steal}\n` +
      "Medians, with the least and the greatest in brackets.\n",
  );
}

await main();
