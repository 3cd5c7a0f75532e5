import type { MachineDescription } from "../../host/description.js";
import type { Machine } from "../../host/host.js";
import { TRACKING_DESIGNS, type TrackingDesign } from "../../tracking/choice.js";
import { openDesign } from "../../tracking/designs.js";
import type { DirtySource } from "../../tracking/dirty-source.js";
import { chooseTrackers } from "../../tracking/policy.js";
import { probeMachine } from "../../tracking/probe.js";
import { suspendDevices } from "../../tracking/suspension.js";
import { interleave, summarize } from "../statistics.js";
import { BitmapMeter, collectGarbage } from "./bitmap-meter.js";
import { Bursts, type ScriptedMachine } from "./bursts.js";
import { CallMeter } from "./call-meter.js";
import type { ReadRow } from "./result.js";
import type { WorkloadName } from "./workload-names.js";
import { type Population, population } from "./workloads.js";

/*
 * What a read of the trackers costs in each design. The devices write a known set of pages, stop, and are read: so the
 * processor time that the process takes meanwhile is the read's.
 */

export interface ReadsOptions {
  readonly workloads: readonly WorkloadName[];
  readonly devices: readonly number[];
  /** Bytes of guest memory. */
  readonly memory: number;
  /** Pages that each device writes before each read. */
  readonly footprint: number;
  readonly repetitions: number;
  /** Reads per repetition. */
  readonly reads: number;
  /** Reads during which calls are counted, besides the one whose memory is. */
  readonly countedReads: number;
  /** Builds a machine that runs, whose NICs nobody sends to. */
  openMachine(description: MachineDescription): Promise<ScriptedMachine>;
  onProgress?(text: string): void;
  readonly signal: AbortSignal;
}

/** A rate at which a NIC delivers a datagram to at least this many buffers: see devices/feed.ts. */
const MB_PER_SECOND_PER_BUFFER = 10.6;

/** Measures all designs with all workloads and numbers of devices. */
export async function measureReads(options: ReadsOptions): Promise<ReadRow[]> {
  const rows: ReadRow[] = [];
  for (const workload of options.workloads) {
    for (const devices of options.devices) {
      options.signal.throwIfAborted();
      options.onProgress?.(`reads: ${workload}, ${devices} ${devices === 1 ? "device" : "devices"}`);
      rows.push(...(await measureOne(workload, devices, options)));
    }
  }
  return rows;
}

async function measureOne(workload: WorkloadName, devices: number, options: ReadsOptions): Promise<ReadRow[]> {
  const { memory, footprint, repetitions, reads, countedReads, signal } = options;
  const rate = footprint * MB_PER_SECOND_PER_BUFFER;
  const populated = population(workload, { devices, memory, footprint, rate });
  await using machine = await options.openMachine(populated.description);
  await using bursts = new Bursts(
    machine.devices.filter(({ id }) => populated.active.includes(id)),
    footprint,
  );
  const samples = await interleave(
    TRACKING_DESIGNS.map((design) => () => {
      signal.throwIfAborted();
      return timeReads(design, machine, populated, bursts, reads);
    }),
    repetitions,
  );
  const rows: ReadRow[] = [];
  for (const [index, design] of TRACKING_DESIGNS.entries()) {
    const counted = await countReads(design, machine, populated, bursts, countedReads);
    const timed = samples[index];
    rows.push({
      workload,
      devices,
      design,
      pagesWritten: populated.active.length * footprint,
      ...counted,
      cpuMs: summarize(timed.map(({ cpuMs }) => cpuMs)),
      wallMs: summarize(timed.map(({ wallMs }) => wallMs)),
      lastReadMs: summarize(timed.map(({ lastReadMs }) => lastReadMs)),
      startCpuMs: summarize(timed.map(({ startCpuMs }) => startCpuMs)),
    });
  }
  return rows;
}

interface Timed {
  /** The mean of its reads. */
  readonly cpuMs: number;
  readonly wallMs: number;
  readonly lastReadMs: number;
  readonly startCpuMs: number;
}

/** One repetition of a design: tracking on, some reads, the last one, tracking off. Nothing is counted: that costs time. */
async function timeReads(
  design: TrackingDesign,
  machine: Machine,
  populated: Population,
  bursts: Bursts,
  reads: number,
): Promise<Timed> {
  return await tracked(design, machine, populated, bursts, async (source, startCpuMs) => {
    let cpuMs = 0;
    let wallMs = 0;
    collectGarbage();
    for (let read = 0; read < reads; read++) {
      await bursts.write();
      const since = performance.now();
      const cpu = process.cpuUsage();
      await source.read({ quiesced: false });
      cpuMs += millisecondsSince(cpu) / reads;
      wallMs += (performance.now() - since) / reads;
    }
    await bursts.write();
    const since = performance.now();
    await source.read({ quiesced: true, final: true });
    return { cpuMs, wallMs, lastReadMs: performance.now() - since, startCpuMs };
  });
}

/** The same with everything counted that is called and allocated. */
async function countReads(
  design: TrackingDesign,
  machine: Machine,
  populated: Population,
  bursts: Bursts,
  reads: number,
): Promise<
  Pick<ReadRow, "pagesReported" | "perRead" | "perStart" | "held" | "duringRead" | "countedReadMs" | "inCallsMs">
> {
  const meter = new CallMeter(machine);
  using bitmaps = new BitmapMeter(() => meter.inside);
  return await tracked(
    design,
    meter.machine,
    populated,
    bursts,
    async (source) => {
      const perStart = meter.take();
      // What the first reads allocate may stay, and takes its time.
      const readMs: number[] = [];
      const insideMs: number[] = [];
      for (let read = 0; read < reads; read++) {
        await bursts.write();
        meter.takeInsideMs();
        const since = performance.now();
        await source.read({ quiesced: false });
        readMs.push(performance.now() - since);
        insideMs.push(meter.takeInsideMs());
      }
      await bursts.write();
      const before = await bitmaps.held();
      const { mark } = bitmaps;
      meter.take();
      const { dirty } = await source.read({ quiesced: false });
      const perRead = meter.take();
      const taken = bitmaps.takenSince(mark);
      const held = await bitmaps.held();
      return {
        pagesReported: dirty.count(),
        perRead,
        perStart,
        countedReadMs: summarize(readMs),
        inCallsMs: summarize(insideMs),
        held,
        duringRead: {
          logs: taken.logs - (held.logs - before.logs),
          kernel: taken.kernel - (held.kernel - before.kernel),
          reader: taken.reader - (held.reader - before.reader),
        },
      };
    },
    () => meter.take(),
  );
}

/** Opens a design on a machine whose devices run, with its untracked devices suspended and the others still, for a while. */
async function tracked<T>(
  design: TrackingDesign,
  machine: Machine,
  { policy }: Population,
  bursts: Bursts,
  run: (source: DirtySource, startCpuMs: number) => Promise<T>,
  onProbed: () => void = () => undefined,
): Promise<T> {
  const choices = chooseTrackers(await probeMachine(machine), policy);
  onProbed();
  const cpu = process.cpuUsage();
  await using source = await openDesign(design, machine, choices);
  const suspension = await suspendDevices(machine, source.choices);
  try {
    await bursts.still();
    await source.start();
    return await run(source, millisecondsSince(cpu));
  } finally {
    await suspension.resume();
  }
}

function millisecondsSince(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}
