import type { AttachedDevice, Machine } from "../../host/host.js";
import type { TrackerChoice } from "../../tracking/choice.js";
import { type Comparison, comparePairs } from "../statistics.js";
import { type BenchDevice, pause } from "./running.js";
import { TrackedDevices } from "./tracked.js";

/*
 * What tracking costs the devices: DMA writes per second while they are tracked and read, and while they are not, in turns on
 * the running machine.
 */

/** Once running, before it is counted: caches and tables have warmed up. */
const SETTLE_MS = 5;
/** How often a tracker is read meanwhile: rounds of a migration towards its end are about as short. */
const READ_EVERY_MS = 20;

/** How devices are tracked while their writes are counted; null: they are not. */
export type TrackingWay = readonly TrackerChoice[] | null;

/**
 * Counts writes in pairs of windows, the first of which changes places with the second every other time.
 * @param devices all with a witness, running
 * @returns the second way's writes per second as a share of the first's; null where nothing was written
 */
export async function compareDma(
  machine: Machine,
  devices: readonly BenchDevice[],
  ways: readonly [TrackingWay, TrackingWay],
  { pairs, windowMs, signal }: { pairs: number; windowMs: number; signal: AbortSignal | undefined },
): Promise<Comparison | null> {
  const measured: { a: number; b: number }[] = [];
  // One pair more, which only warms up.
  for (let pair = -1; pair < pairs; pair++) {
    const first = pair % 2 === 0 ? 0 : 1;
    const rates = [0, 0];
    for (const way of [first, 1 - first])
      rates[way] = await writesPerSecond(machine, devices, ways[way], windowMs, signal);
    // A window in which nothing was written says nothing about tracking.
    if (pair >= 0 && rates[0] > 0) measured.push({ a: rates[0], b: rates[1] });
  }
  return measured.length === 0 ? null : comparePairs(measured);
}

async function writesPerSecond(
  machine: Machine,
  devices: readonly BenchDevice[],
  choices: TrackingWay,
  windowMs: number,
  signal: AbortSignal | undefined,
): Promise<number> {
  if (choices === null) return count(devices, windowMs, signal);
  const attached: AttachedDevice[] = devices.map((device) => device.attached);
  await using tracked = await TrackedDevices.open(machine, attached, choices);
  await tracked.start();
  return await count(devices, windowMs, signal, () => tracked.read({ quiesced: false }));
}

async function count(
  devices: readonly BenchDevice[],
  windowMs: number,
  signal: AbortSignal | undefined,
  read?: () => Promise<unknown>,
): Promise<number> {
  await pause(SETTLE_MS, signal);
  const before = await allWrites(devices);
  const from = performance.now();
  for (let left = windowMs; left > 0; left = windowMs - (performance.now() - from)) {
    await pause(Math.min(left, READ_EVERY_MS), signal);
    await read?.();
  }
  const writes = (await allWrites(devices)) - before;
  return (writes / (performance.now() - from)) * 1000;
}

async function allWrites(devices: readonly BenchDevice[]): Promise<number> {
  const counts = await Promise.all(devices.map(({ witness }) => witness?.writes() ?? 0));
  return counts.reduce((sum, writes) => sum + writes, 0);
}
