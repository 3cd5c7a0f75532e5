import type { Machine } from "../../host/host.js";
import type { Candidate } from "./candidates.js";
import type { GrowthPoint, PrecisionFigures } from "./result.js";
import { type BenchDevice, pause } from "./running.js";
import type { DmaMark } from "./site.js";
import { TrackedDevices } from "./tracked.js";

/*
 * How exact trackers are: what they name of a time, against what the device really wrote in it. Devices are stopped at both
 * of its ends, so that the two speak of the same writes.
 */

/** Different pages that each device writes, doing its work untracked, in so many milliseconds. @returns by device id */
export async function measureWrites(
  devices: readonly BenchDevice[],
  atMs: readonly number[],
  signal: AbortSignal | undefined,
): Promise<Map<string, GrowthPoint[]>> {
  const marks = await markAll(devices);
  const curves = new Map<string, GrowthPoint[]>([...marks.keys()].map((id) => [id, []]));
  for (const device of devices) await device.run();
  const from = performance.now();
  for (const ms of atMs) {
    await pause(Math.max(0, ms - (performance.now() - from)), signal);
    for (const [id, mark] of marks) {
      const pages = await mark.pagesSince();
      curves.get(id)?.push({ ms: performance.now() - from, pages });
    }
  }
  for (const device of devices) await device.stop();
  return curves;
}

/**
 * Lets all devices do their work at once, each tracked in one of its ways, for each of some times.
 * @param candidates at most one per device; those of devices without a witness are left out
 * @returns per candidate, in order of the times
 */
export async function measurePrecision(
  machine: Machine,
  devices: readonly BenchDevice[],
  candidates: readonly Candidate[],
  { times, signal }: { times: readonly number[]; signal: AbortSignal | undefined },
): Promise<Map<Candidate, PrecisionFigures[]>> {
  const known = devices.filter(
    (device) => device.witness !== null && candidates.some((one) => one.device === device.id),
  );
  const measured = candidates.filter((candidate) => known.some(({ id }) => id === candidate.device));
  const figures = new Map<Candidate, PrecisionFigures[]>(measured.map((candidate) => [candidate, []]));
  if (measured.length === 0) return figures;
  for (const device of devices) await device.stop();
  await using tracked = await TrackedDevices.open(
    machine,
    known.map(({ attached }) => attached),
    measured.map(({ choice }) => choice),
  );
  await tracked.start();
  for (const time of times) {
    await tracked.read({ quiesced: true });
    const marks = await markAll(known);
    const from = performance.now();
    for (const device of known) await device.run();
    await pause(time, signal);
    for (const device of known) await device.stop();
    const ms = performance.now() - from;
    const { byOwner } = await tracked.read({ quiesced: true });
    for (const candidate of measured) {
      const writtenPages = (await marks.get(candidate.device)?.pagesSince()) ?? 0;
      figures.get(candidate)?.push({ ms, writtenPages, reportedPages: byOwner[candidate.device]?.reported ?? 0 });
    }
  }
  return figures;
}

async function markAll(devices: readonly BenchDevice[]): Promise<Map<string, DmaMark>> {
  const marks = new Map<string, DmaMark>();
  for (const { id, witness } of devices) if (witness !== null) marks.set(id, await witness.mark());
  return marks;
}
