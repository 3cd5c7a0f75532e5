import { PAGE_SIZE } from "../../memory/address.js";
import { interleave, type Summary, summarize } from "../statistics.js";
import type { Candidate } from "./candidates.js";
import type { ReadFigures } from "./result.js";
import type { BenchDevice } from "./running.js";
import type { BenchMachine } from "./site.js";
import { TrackedDevices } from "./tracked.js";

/*
 * What tracking costs who reads it: to attach, to start, to read & clear, to stop; for each candidate on one machine, whose
 * devices stand still but for the one that fills the pages which are to be found dirty.
 */

/** What a candidate costs on a machine of one size. */
export interface CostFigures {
  readonly attach: Summary;
  readonly start: Summary;
  readonly stop: Summary;
  readonly foundGranule: number | null;
  readonly reads: readonly ReadFigures[];
}

interface Sample {
  readonly attachMs: number;
  readonly startMs: number;
  readonly stopMs: number;
  readonly foundGranule: number | null;
  readonly reads: readonly { readonly ms: number; readonly writtenPages: number | null; readonly reported: number }[];
}

export interface ReadCostOptions {
  readonly bench: BenchMachine;
  readonly devices: readonly BenchDevice[];
  readonly candidates: readonly Candidate[];
  /** Shares of all pages that are to be dirty when it is read, 0 to 1, besides 0. */
  readonly shares: readonly number[];
  readonly repetitions: number;
  readonly signal: AbortSignal | undefined;
}

/**
 * Measures the candidates in turns.
 * @returns in the candidates' order, figures, or the error with which a candidate was refused
 */
export async function measureReadCost(options: ReadCostOptions): Promise<(CostFigures | Error)[]> {
  const { bench, devices, candidates, shares, repetitions, signal } = options;
  for (const device of devices) await device.stop();
  const { bytes } = bench.machine.memory;
  const refused = new Map<Candidate, Error>();
  const ways = candidates.map((candidate) => async (): Promise<Sample | null> => {
    signal?.throwIfAborted();
    const device = devices.find(({ id }) => id === candidate.device);
    if (device === undefined || refused.has(candidate)) return null;
    try {
      return await takeSample(bench, device, candidate, shares, signal);
    } catch (error) {
      signal?.throwIfAborted();
      refused.set(candidate, error instanceof Error ? error : new Error(String(error)));
      return null;
    }
  });
  const samples = await interleave(ways, repetitions);
  return candidates.map((candidate, index) => {
    const taken = samples[index].filter((sample) => sample !== null);
    return refused.get(candidate) ?? figuresOf(taken, shares, bytes);
  });
}

async function takeSample(
  { machine }: BenchMachine,
  device: BenchDevice,
  { choice, tracker }: Candidate,
  shares: readonly number[],
  signal: AbortSignal | undefined,
): Promise<Sample> {
  await using tracked = await TrackedDevices.open(machine, [device.attached], [choice]);
  const startMs = await tracked.start();
  const reads: Sample["reads"][number][] = [];
  const wanted = tracker === "everything" || device.witness === null ? [0] : [0, ...shares];
  for (const share of wanted) {
    const mark = (await device.witness?.mark()) ?? null;
    const pages = Math.round((share * machine.memory.bytes) / PAGE_SIZE);
    if (mark !== null && pages > 0) await device.runUntil(mark, pages, signal);
    const writtenPages = mark === null ? null : await mark.pagesSince();
    // Also of a log that only a quiesced device's reader may read: where nothing stands still, nobody drives it.
    const { ms, byOwner } = await tracked.read({ quiesced: true });
    reads.push({ ms, writtenPages, reported: byOwner[device.id]?.reported ?? 0 });
  }
  const foundGranule = tracked.granuleOf(device.id);
  const stopMs = await tracked.stop();
  return { attachMs: tracked.attachMs, startMs, stopMs, foundGranule, reads };
}

function figuresOf(samples: readonly Sample[], shares: readonly number[], memoryBytes: number): CostFigures {
  const of = (value: (sample: Sample) => number) => summarize(samples.map(value));
  const [{ foundGranule, reads }] = samples;
  return {
    attach: of(({ attachMs }) => attachMs),
    start: of(({ startMs }) => startMs),
    stop: of(({ stopMs }) => stopMs),
    foundGranule,
    reads: reads.map(({ writtenPages }, index) => ({
      memoryBytes,
      dirtyShare: writtenPages === null ? null : [0, ...shares][index],
      writtenPages:
        writtenPages === null ? null : Math.round(of((sample) => sample.reads[index].writtenPages ?? 0).median),
      reportedPages: Math.round(of((sample) => sample.reads[index].reported).median),
      ms: of((sample) => sample.reads[index].ms),
    })),
  };
}
