import { type Comparison, comparePairs, interleave, type Summary, summarize } from "../src/evidence/statistics.js";
import { countersOf } from "../src/qemu/guest-devices.js";
import { DeviceTracking, type GuestTracker } from "../src/qemu/guest-tracking.js";
import { moveGuest } from "../src/qemu/move.test.helper.js";
import type { EventStream } from "../src/qemu/qmp/event-stream.js";
import type { Qemu } from "../src/qemu/qmp/qemu.js";
import { SourceGuest } from "../src/qemu/source-guest.js";
import {
  connect,
  counts,
  endLoad,
  type Place,
  Places,
  pause,
  root,
  SECOND,
  startLoad,
} from "../test/interop/guest-places.js";
import { findShellImage, type ShellImage } from "../test/interop/guest-shell.js";
import { MissingError } from "../tools/vm/missing.js";

/*
 * A guest of QEMU with two disks that it reads and writes all the time, or not at all, moved with these: the disks served by Dirtmap,
 * tracked in both ways, and, beside them in the same run, the same guest with two disks of QEMU's own, moved by QEMU alone. Each move
 * is of a guest of its own, that has just booted. And, without a move, what tracking costs the guest's I/O: of one guest, in turns.
 * All is by TCG: the ratios say more than the figures.
 */

export interface QemuMoveRow {
  readonly bench: "qemu";
  /** Whose disks, how they were tracked, and whether the guest was idle. */
  readonly way: string;
  /** From the source's STOP until the destination's RESUME, by QEMU's events. */
  readonly pauseMs: Summary;
  /** QEMU's total-time. */
  readonly totalMs: Summary;
  /** Of QEMU's stream. */
  readonly bytes: Summary;
  /** Of the guest's reads and writes, from a second before the move until a second after it; null of an idle one. */
  readonly io: {
    readonly medianUs: Summary;
    readonly p999Us: Summary;
    readonly slowestMs: Summary;
    readonly perSecond: Summary;
  } | null;
}

/** The commands that two served disks do in a second, while nobody moves them. */
export interface QemuTrackingRow {
  readonly bench: "qemu-tracking";
  readonly way: string;
  readonly perSecond: Summary;
  /** Of what they do untracked, turn by turn. */
  readonly ratio: Comparison | null;
}

interface Sample {
  readonly pauseMs: number;
  readonly totalMs: number;
  readonly bytes: number;
  readonly io: Load | null;
}

type Load = { readonly [Name in keyof NonNullable<QemuMoveRow["io"]>]: number };

/** The load before a move, and after it. */
const LOAD_MS = 1000;
/** A device is tracked for this long. */
const TRACKED_MS = 2000;
/** QEMU has no other way to say when a move by itself is over. */
const LOOK_MS = 20;
const LIMIT_MS = 120_000;
/** QEMU's own disks, in the order of preference: its nvme may refuse to migrate. */
const OWN = ["nvme", "virtio-blk-pci"] as const;

/** Runs the moves. Without a QEMU that has vfio-user there are none. */
export async function run({ turns = 3 }: { turns?: number } = {}): Promise<QemuMoveRow[]> {
  const image = imageOrNone();
  if (image === undefined) return [];
  const own = await firstThatMigrates(image);
  const ways = [false, true].flatMap((idle): [string, () => Promise<Sample>][] => {
    const name = (way: string) => (idle ? `${way}, idle` : way);
    return [
      [name("served, by messages"), () => moved(image, { idle, mover: byDirtmap("messages") })],
      [name("served, by the device's log"), () => moved(image, { idle, mover: byDirtmap("device") })],
      [name(`QEMU's own ${own}`), () => moved(image, { idle, own, mover: byQemu })],
    ];
  });
  const samples = await interleave(
    ways.map(([, way]) => way),
    turns,
    false,
  );
  return ways.map(([way], i) => ({ bench: "qemu", way, ...summaries(samples[i]) }));
}

function imageOrNone(): Omit<ShellImage, "initramfs"> | undefined {
  const image = findShellImage(root);
  if (!(image instanceof MissingError)) return image;
  process.stderr.write(`no moves of QEMU guests: ${image.message}\n`);
  return undefined;
}

function summaries(samples: readonly Sample[]): Omit<QemuMoveRow, "bench" | "way"> {
  const of = (value: (sample: Sample) => number) => summarize(samples.map(value));
  const loads = samples.flatMap(({ io }) => io ?? []);
  const io = (name: keyof Load) => summarize(loads.map((load) => load[name]));
  return {
    pauseMs: of((sample) => sample.pauseMs),
    totalMs: of((sample) => sample.totalMs),
    bytes: of((sample) => sample.bytes),
    io:
      loads.length === 0
        ? null
        : {
            medianUs: io("medianUs"),
            p999Us: io("p999Us"),
            slowestMs: io("slowestMs"),
            perSecond: io("perSecond"),
          },
  };
}

/** What tracking costs a guest whose disks are at work: by the devices' own counters, for some seconds each, in turns. */
export async function runTracking({ turns = 7 }: { turns?: number } = {}): Promise<QemuTrackingRow[]> {
  const image = imageOrNone();
  if (image === undefined) return [];
  await using places = new Places(image);
  const place = await places.add();
  await startLoad(place);
  await using qemu = await connect(place.qmp);
  await using guest = await SourceGuest.open(qemu);
  const commands = async () => {
    const counted = await Promise.all(guest.devices.map(({ vfio }) => countersOf(vfio)));
    return counted.reduce((sum, { device }) => sum + device.commands, 0);
  };
  const perSecond = async () => {
    const [before, began] = [await commands(), performance.now()];
    await pause(TRACKED_MS);
    return ((await commands()) - before) / ((performance.now() - began) / 1000);
  };
  const tracked = (tracker: GuestTracker) => async () => {
    const tracking: DeviceTracking[] = [];
    for (const device of guest.devices) tracking.push(await DeviceTracking.start(device, tracker));
    try {
      return await perSecond();
    } finally {
      for (const each of tracking) await each.stop();
    }
  };
  const ways = {
    "served, untracked": perSecond,
    "served, by the device's log": tracked("device"),
    "served, by messages": tracked("messages"),
  };
  const [untracked, ...others] = await interleave(Object.values(ways), turns);
  const ratios = [
    null,
    ...others.map((samples) => comparePairs(untracked.map((a, turn) => ({ a, b: samples[turn] })))),
  ];
  counts(await endLoad(place));
  return Object.keys(ways).map((way, i) => {
    const samples = [untracked, ...others][i];
    return { bench: "qemu-tracking", way, perSecond: summarize(samples), ratio: ratios[i] };
  });
}

type Mover = (source: Qemu, destination: Qemu, at: { address: string; journals: string }) => Promise<void>;

function byDirtmap(tracker: "messages" | "device"): Mover {
  return async (source, destination, { address, journals }) => {
    const trackers = { disk: tracker, [SECOND]: tracker };
    // The source stays, so that it can be asked what its migration was like.
    const options = { address, trackers, keepSource: true, handover: { journalDirectory: journals } };
    const { report } = await moveGuest(source, destination, options);
    if (report.result !== "completed") throw new Error(`the move has ${report.result}: ${report.error?.message}`);
  };
}

const byQemu: Mover = async (source, destination, { address }) => {
  await destination.migrateIncoming(address);
  await source.migrate(address);
  for (const until = performance.now() + LIMIT_MS; performance.now() < until; await pause(LOOK_MS)) {
    const { status } = await source.migration();
    if (status === "failed" || status === "cancelled") throw new Error(`QEMU's migration has ${status}`);
    if (status !== "completed" || (await destination.status()).status === "inmigrate") continue;
    await destination.cont();
    return;
  }
  throw new Error(`QEMU's migration took longer than ${LIMIT_MS} ms`);
};

/** One move of a guest of its own. */
async function moved(
  image: Omit<ShellImage, "initramfs">,
  { idle, own, mover }: { idle: boolean; own?: string; mover: Mover },
): Promise<Sample> {
  await using places = new Places(image);
  const its = own === undefined ? {} : { own };
  const here = await places.add(its);
  const there = await places.add(its);
  if (idle) await here.guest.run("true");
  else await startLoad(here, own === "virtio-blk-pci" ? ["/dev/vda", "/dev/vdb"] : undefined);
  const began = performance.now();
  await pause(LOAD_MS);
  await using source = await connect(here.qmp);
  await using destination = await connect(there.qmp);
  using stopped = source.events();
  using resumed = destination.events();
  await mover(source, destination, { address: `unix:${there.qmp}-stream`, journals: `${here.qmp}-journals` });
  const pauseMs = (await timeOf(resumed, "RESUME")) - (await timeOf(stopped, "STOP"));
  const { ram, "total-time": totalMs } = await source.migration();
  if (ram === undefined || totalMs === undefined) throw new Error("QEMU does not tell what its migration was like");
  await pause(LOAD_MS);
  return { pauseMs, totalMs, bytes: ram.transferred, io: idle ? null : await loadOf(there, began) };
}

/** Of both disks, the worse one's latency. */
async function loadOf(place: Place, began: number): Promise<Load> {
  const loads = counts(await endLoad(place));
  const seconds = (performance.now() - began) / 1000;
  const worst = (name: "medianUs" | "p999Us" | "slowestMs") => Math.max(...loads.map((load) => load[name]));
  return {
    medianUs: worst("medianUs"),
    p999Us: worst("p999Us"),
    slowestMs: worst("slowestMs"),
    perSecond: loads.reduce((sum, { reads, writes }) => sum + reads + writes, 0) / seconds,
  };
}

async function timeOf(events: EventStream, name: string): Promise<number> {
  for await (const event of events) if (event.name === name) return event.at;
  throw new Error(`no event ${name}`);
}

/** A type of disk of QEMU's own that it lets migrate. */
async function firstThatMigrates(image: Omit<ShellImage, "initramfs">): Promise<string> {
  for (const own of OWN) {
    await using places = new Places(image);
    const { qmp } = await places.add({ own });
    await using qemu = await connect(qmp);
    if (((await qemu.migration())["blocked-reasons"] ?? []).length === 0) return own;
  }
  throw new Error(`QEMU lets none of its disks migrate: ${OWN.join(", ")}`);
}
