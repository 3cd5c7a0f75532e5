import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { CDPSession } from "playwright-core";
import { RamBitmap } from "../src/bitmap/ram-bitmap.js";
import { ReadRecorder } from "../src/cli/kept/record-run.js";
import { type Comparison, comparePairs, interleave, type Summary, summarize } from "../src/evidence/statistics.js";
import { GiB } from "../src/memory/address.js";
import { createGuestMemory } from "../src/memory/guest-memory.js";
import { publish, publishRead } from "../src/migration/events.js";
import { followFeed, openFeeds } from "../src/observe/feed/follow.js";
import { publishFeed } from "../src/observe/feed/publish.js";
import type { DirtyRead } from "../src/tracking/dirty-source.js";
import { header, read } from "../test/dashboard/evidence.js";
import { chromiumPath, openBrowser, Rig } from "../test/dashboard/rig.js";

/*
 * What observation costs: whole migrations that are followed and kept, against such that nobody sees, in pairs; what it
 * takes to tell of one read; and whether the dashboard's page stays smooth with 64 devices at ten reads a second.
 */

export interface ObserveOptions {
  /** Of migrations; 0: none. */
  readonly pairs: number;
  /** For how long the page is watched. */
  readonly pageMs: number;
}

export interface ObserveRow {
  readonly bench: "observe";
  readonly what: string;
  readonly ms: Summary;
  /** Of a migration: its time while observed, over its time while not. */
  readonly observedOver?: Comparison;
  /** Of the page: the 99th percentile of the time between frames; frames that came a frame late or more; all frames. */
  readonly frames?: { readonly p99Ms: number; readonly late: number; readonly count: number };
  /** Processor time per read: of the process that tells, or of the page's. Tells more than time where others use the machine. */
  readonly cpuMsPerRead?: number;
}

const PROGRAM = fileURLToPath(new URL("../../bin/dirtmap.js", import.meta.url));
/** A migration that takes longer than this has gone wrong. */
const LIMIT_MS = 300_000;
/** Sixty a second, as headless Chromium draws. */
const FRAME_MS = 1000 / 60;
/** Devices of the page, reads a second. */
const DEVICES = 64;
const READS_PER_SECOND = 10;
/** Of telling of a read. */
const WARM_UPS = 10;
const REPETITIONS = 50;

/** Runs all three. */
export async function run({ pairs, pageMs }: ObserveOptions): Promise<ObserveRow[]> {
  const rows = [...(pairs > 0 ? await migrations(pairs) : []), await telling(4, GiB), await telling(DEVICES, 16 * GiB)];
  if (chromiumPath !== undefined) rows.push(await page(pageMs));
  return rows;
}

async function migrations(pairs: number): Promise<ObserveRow[]> {
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
  try {
    const scenario = join(folder, "bench.yaml");
    writeFileSync(scenario, SCENARIO);
    const go = (args: readonly string[], follow: boolean) => () =>
      migrate([...args, "--scenario", scenario], folder, follow);
    const store = join(folder, "evidence.db");
    const [alone, observed] = await interleave(
      [go(["--no-store", "--no-feed"], false), go(["--store", store], true)],
      pairs,
    );
    return [
      { bench: "observe", what: "migration, unseen", ms: summarize(alone) },
      {
        bench: "observe",
        what: "migration, followed and kept",
        ms: summarize(observed),
        observedOver: comparePairs(alone.map((a, i) => ({ a, b: observed[i] }))),
      },
    ];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Several rounds of a guest that goes on writing. */
const SCENARIO = `machine:
  memory: 512M
  fill: 0.5
  vcpus: { count: 2, rate: 10, footprint: 8M }
  iommus:
    - { id: iommu0, format: amd-v1 }
  devices:
    - { id: vf0, model: mlx5, iommu: iommu0, load: { rate: 20, footprint: 8M } }
    - { id: nic0, model: nic, iommu: iommu0, load: { rate: 10, footprint: 4M } }
    - { id: gpu0, model: vgpu, load: { rate: 10, footprint: 4M } }
migration:
  trackers: { vf0: device }
  downtimeLimit: 1s
  channels: 2
  runAfter: 0ms
`;

const MOVING = new Set(["pre-copy", "pausing", "stop-copy", "handover"]);

/** Milliseconds from the first page sent until the destination runs. */
async function migrate(args: readonly string[], folder: string, follow: boolean): Promise<number> {
  const journal = ["--journal", join(folder, "journal")];
  const source = spawn(process.execPath, [PROGRAM, "migrate", "--json", "--quiet", ...journal, ...args], {
    stdio: ["ignore", "pipe", "inherit"],
    timeout: LIMIT_MS,
  });
  const ended = once(source, "close");
  const followed = follow ? followBench(AbortSignal.any([AbortSignal.timeout(LIMIT_MS)])) : undefined;
  const text = await source.stdout.setEncoding("utf8").toArray();
  await ended;
  if ((await followed) === 0) throw new Error("the migration's feed told nothing");
  const { result, phases, error } = JSON.parse(text.join("")) as Report;
  if (result !== "completed") throw new Error(`the migration ended with ${result}: ${error?.message}`);
  return phases.reduce((sum, { phase, ms }) => sum + (MOVING.has(phase) ? ms : 0), 0);
}

interface Report {
  readonly result: string;
  readonly error?: { readonly message: string };
  readonly phases: readonly { readonly phase: string; readonly ms: number }[];
}

/** Follows the bench's migration once it has a feed; the number of events. */
async function followBench(signal: AbortSignal): Promise<number> {
  for (;;) {
    signal.throwIfAborted();
    const found = (await openFeeds()).find(({ scenario }) => scenario === "bench");
    if (found === undefined) {
      await setTimeout(50);
      continue;
    }
    using feed = await followFeed(found.run, { signal });
    let events = 0;
    for await (const _ of feed) events++;
    return events;
  }
}

/** What the migration's thread does for one read that is published, kept and followed, a hundredth of its pages dirty. */
async function telling(devices: number, bytes: number): Promise<ObserveRow> {
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
  try {
    const one = dirtyRead(devices, bytes);
    await using _feed = await publishFeed(header("bench", devices), { folder: join(folder, "feeds") });
    using _recorder = new ReadRecorder();
    using followed = await followFeed("bench", { folder: join(folder, "feeds") });
    const following = (async () => {
      for await (const event of followed) if (event.type === "phase") return;
    })();
    const samples: number[] = [];
    let cpuMs = 0;
    for (let i = -WARM_UPS; i < REPETITIONS; i++) {
      const from = performance.now();
      const before = process.cpuUsage();
      publishRead(one, { atMs: i + WARM_UPS, round: 0, elapsedMs: 100 });
      const { user, system } = process.cpuUsage(before);
      if (i >= 0) {
        samples.push(performance.now() - from);
        cpuMs += (user + system) / 1000;
      }
      await setTimeout(5);
    }
    publish({ type: "phase", phase: "completed", atMs: 0 });
    await following;
    return {
      bench: "observe",
      what: `telling of a read: ${devices} devices, ${bytes / GiB} GiB`,
      ms: summarize(samples),
      cpuMsPerRead: cpuMs / REPETITIONS,
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function dirtyRead(devices: number, bytes: number): DirtyRead {
  const memory = createGuestMemory(bytes);
  const owners = Array.from({ length: devices }, (_, owner) => {
    const pages = new RamBitmap(memory);
    for (let page = owner; page < bytes / 4096; page += 100) pages.addPages(page, 1);
    return [`dev${owner}`, pages] as const;
  });
  const counts = owners.map(([owner, pages]) => [owner, { reported: pages.count(), exclusive: 0, readMs: 1 }] as const);
  return {
    dirty: owners[0][1],
    always: null,
    byOwner: Object.fromEntries(counts),
    pagesByOwner: new Map(owners),
    unread: [],
    failures: [],
    ms: 1,
  };
}

/** The page of a run in progress, in a browser, while reads come in. */
async function page(forMs: number): Promise<ObserveRow> {
  await using rig = await Rig.start();
  const browser = await openBrowser();
  try {
    await rig.begin(header("bench", DEVICES), [{ type: "phase", phase: "pre-copy", atMs: 0 }]);
    const owners = ["cpu", ...Array.from({ length: DEVICES }, (_, i) => `dev${i}`)];
    const tab = await browser.newPage({ viewport: { width: 1400, height: 1000 } });
    await tab.goto(`${rig.url}#/live/bench`);
    await tab.getByText("Heat of the address space").waitFor();
    const reads = Array.from({ length: READS_PER_SECOND * 6 }, (_, i) => read(i, owners, 1000 / READS_PER_SECOND));
    let told = 0;
    const timer = setInterval(
      () => publish({ ...reads[told++ % reads.length], atMs: told * 100 }),
      1000 / READS_PER_SECOND,
    );
    try {
      // The first second draws what is there for the first time.
      await setTimeout(1000);
      const session = await browser.newBrowserCDPSession();
      const before = { cpuMs: await pageCpuMs(session), told };
      const frames = await tab.evaluate<number[]>(`new Promise((done) => {
        const between = [];
        let last = performance.now();
        const until = last + ${forMs};
        const frame = (now) => {
          between.push(now - last);
          last = now;
          if (now < until) requestAnimationFrame(frame);
          else done(between.slice(1));
        };
        requestAnimationFrame(frame);
      })`);
      const cpuMsPerRead = ((await pageCpuMs(session)) - before.cpuMs) / (told - before.told);
      const sorted = frames.toSorted((a, b) => a - b);
      return {
        bench: "observe",
        what: `the page's frames: ${DEVICES} devices, ${READS_PER_SECOND} reads a second`,
        ms: summarize(frames),
        cpuMsPerRead,
        frames: {
          p99Ms: sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.99))],
          late: frames.filter((ms) => ms >= 2 * FRAME_MS - 1).length,
          count: frames.length,
        },
      };
    } finally {
      clearInterval(timer);
    }
  } finally {
    await browser.close();
  }
}

/** Processor time that the page's process has used, its drawing not included. */
async function pageCpuMs(session: CDPSession): Promise<number> {
  const { processInfo } = await session.send("SystemInfo.getProcessInfo");
  return processInfo.filter(({ type }) => type === "renderer").reduce((sum, { cpuTime }) => sum + cpuTime * 1000, 0);
}
