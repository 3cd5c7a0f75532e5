import { explain } from "../../errors.js";
import type { AttachedDevice } from "../../host/host.js";
import type { DeviceCapabilities } from "../../tracking/capabilities.js";
import { probeMachine } from "../../tracking/probe.js";
import { isErrno } from "../../uapi/errno.js";
import { watchMachine } from "../machine.js";
import { type Comparison, summarize } from "../statistics.js";
import { type Candidate, candidatesOf } from "./candidates.js";
import { compareDma } from "./dma-cost.js";
import { measurePrecision, measureWrites } from "./precision.js";
import { type CostFigures, measureReadCost } from "./read-cost.js";
import {
  BENCHMARK_VERSION,
  type GrowthPoint,
  type PrecisionFigures,
  type SharingFigures,
  type TrackerBenchmark,
  type TrackerFigures,
} from "./result.js";
import { BenchDevice } from "./running.js";
import { measureSharing } from "./sharing.js";
import type { BenchMachine, BenchSite } from "./site.js";

/** How thoroughly is measured. */
interface Effort {
  readonly repetitions: number;
  /** Of windows with and without tracking. A sign test decides from 6 on. */
  readonly pairs: number;
  readonly windowMs: number;
  /** Shares of all pages that are to be dirty when a tracker is read, besides none. */
  readonly shares: readonly number[];
  /** Address spaces that reads are measured on: the largest so many. */
  readonly sizes: number;
  /** How long devices write before a tracker's answer is compared, each `repetitions` times over. */
  readonly times: readonly number[];
  readonly curveMs: readonly number[];
}

const THOROUGH: Effort = {
  repetitions: 7,
  pairs: 16,
  windowMs: 80,
  shares: [0.01, 0.1],
  sizes: 3,
  times: [20, 100, 400],
  curveMs: [10, 30, 100, 300, 1000, 2000],
};

const QUICK: Effort = {
  repetitions: 3,
  pairs: 8,
  windowMs: 40,
  shares: [0.02],
  sizes: 1,
  times: [20, 120],
  curveMs: [10, 50, 200, 600],
};

/** What the bench is doing; `of` steps are there in this phase. */
export interface BenchProgress {
  readonly phase: "reads" | "dma" | "precision" | "sharing";
  readonly step: number;
  readonly of: number;
  /** What is measured: bytes of guest memory for `reads`, a device for `dma`. */
  readonly subject: number | string | null;
}

/** The options of {@link benchTrackers}. */
export interface TrackerBenchOptions {
  readonly site: BenchSite;
  /** True: fewer measurements in less time. Default: false. */
  readonly quick?: boolean;
  readonly progress?: (progress: BenchProgress) => void;
  readonly signal?: AbortSignal;
}

/**
 * Measures every tracker of every device of a site: its cost to the reader, its cost to the device, and its exactness. It makes
 * several machines one after the other, and leaves none behind.
 * @throws UsageError or UapiError of a machine that can't be made; DirtmapError. A tracker that can't be used is reported in the
 * result
 */
export async function benchTrackers({
  site,
  quick = false,
  progress = () => {},
  signal,
}: TrackerBenchOptions): Promise<TrackerBenchmark> {
  const takenAt = new Date().toISOString();
  const describe = watchMachine();
  const effort = quick ? QUICK : THOROUGH;
  const run = new Run(site, effort, progress, signal);
  const costs = await run.readCosts();
  const dma = await run.dma();
  const work = await run.work();
  const { capabilities, stateBytes, groups } = run.facts;
  return {
    schemaVersion: BENCHMARK_VERSION,
    kind: "trackers",
    takenAt,
    quick,
    machine: describe(),
    host: site.host,
    scenario: site.scenario,
    measures: site.measures,
    memoryBytes: site.memoryBytes,
    devices: capabilities.map((device) => ({
      id: device.id,
      model: device.model,
      iommuGroup: groups.get(device.id) ?? null,
      capabilities: device,
      stateBytes: stateBytes.get(device.id) ?? null,
      writes: work.writes.get(device.id) ?? null,
      trackers: run.candidates
        .filter((candidate) => candidate.device === device.id)
        .map((candidate) => figuresOf(candidate, device, { costs, dma, precision: work.precision })),
    })),
    sharing: work.sharing,
    leftOut: site.leftOut,
  };
}

/** What was found of all candidates, phase by phase. */
interface Found {
  readonly costs: ReadonlyMap<string, readonly (CostFigures | Error)[]>;
  readonly dma: ReadonlyMap<string, Comparison>;
  readonly precision: ReadonlyMap<string, readonly PrecisionFigures[]>;
}

function figuresOf(candidate: Candidate, { trackers }: DeviceCapabilities, found: Found): TrackerFigures {
  const key = keyOf(candidate);
  const bySize = found.costs.get(key) ?? [];
  const capability = trackers[candidate.tracker];
  const problem = bySize.find((cost) => cost instanceof Error);
  const costs = bySize.filter((cost): cost is CostFigures => !(cost instanceof Error));
  const largest = costs.at(-1);
  const measured = problem === undefined && largest !== undefined;
  return {
    tracker: candidate.tracker,
    granule: candidate.granule,
    foundGranule: measured ? largest.foundGranule : null,
    readableWhen: capability.available === true ? capability.readableWhen : "always",
    problem: problem === undefined ? null : explain(problem),
    attach: measured ? largest.attach : null,
    start: measured ? largest.start : null,
    stop: measured ? largest.stop : null,
    reads: measured ? costs.flatMap(({ reads }) => reads) : [],
    dma: found.dma.get(key) ?? null,
    precision: found.precision.get(key) ?? [],
  };
}

/** The same on every machine that the site makes. */
function keyOf({ device, tracker, granule }: Candidate): string {
  return `${device} ${tracker} ${granule}`;
}

/** What is known of the devices before any is measured. */
interface Facts {
  readonly capabilities: readonly DeviceCapabilities[];
  readonly stateBytes: ReadonlyMap<string, number | null>;
  readonly groups: ReadonlyMap<string, number>;
}

/** One run of the bench: its phases, each on machines of its own. */
class Run {
  readonly #site: BenchSite;
  readonly #effort: Effort;
  readonly #progress: (progress: BenchProgress) => void;
  readonly #signal: AbortSignal | undefined;
  #facts: Facts | undefined;
  #candidates: readonly Candidate[] = [];
  /** Somebody knows of a device what it writes. */
  #isWitnessed = false;
  /** Keys of candidates that the host refused. */
  readonly #refused = new Set<string>();

  constructor(
    site: BenchSite,
    effort: Effort,
    progress: (progress: BenchProgress) => void,
    signal: AbortSignal | undefined,
  ) {
    this.#site = site;
    this.#effort = effort;
    this.#progress = progress;
    this.#signal = signal;
  }

  /** After the first phase. */
  get facts(): Facts {
    if (this.#facts === undefined) throw new Error("the bench knows no device before its first phase");
    return this.#facts;
  }

  get candidates(): readonly Candidate[] {
    return this.#candidates;
  }

  /** Per candidate, what it costs on each size of memory. */
  async readCosts(): Promise<Map<string, (CostFigures | Error)[]>> {
    const { shares, repetitions, sizes: most } = this.#effort;
    const sizes = this.#site.sizes.slice(-most);
    const costs = new Map<string, (CostFigures | Error)[]>();
    for (const [step, memoryBytes] of sizes.entries()) {
      this.#tell("reads", step, sizes.length, memoryBytes);
      await using bench = await this.#open({ memoryBytes, load: "flat-out" });
      const devices = await this.#devices(bench);
      const candidates = this.#usable();
      const signal = this.#signal;
      const figures = await measureReadCost({ bench, devices, candidates, shares, repetitions, signal });
      for (const [index, candidate] of candidates.entries()) {
        const key = keyOf(candidate);
        const cost = figures[index];
        if (cost instanceof Error) this.#refused.add(key);
        costs.set(key, [...(costs.get(key) ?? []), cost]);
      }
    }
    return costs;
  }

  /** Per candidate, its device's writes while tracked, of those while not. */
  async dma(): Promise<Map<string, Comparison>> {
    const { pairs, windowMs } = this.#effort;
    const slowdowns = new Map<string, Comparison>();
    if (!this.#isWitnessed) return slowdowns;
    await using bench = await this.#open({ memoryBytes: this.#site.memoryBytes, load: "flat-out" });
    const devices = await this.#devices(bench);
    const counted = devices.filter(({ witness }) => witness !== null);
    for (const device of devices) await device.stop();
    for (const [step, device] of counted.entries()) {
      this.#tell("dma", step, counted.length, device.id);
      await device.run();
      for (const candidate of this.#usable()) {
        if (candidate.device !== device.id || candidate.tracker === "everything") continue;
        const ways = [null, [candidate.choice]] as const;
        const options = { pairs, windowMs, signal: this.#signal };
        const comparison = await compareDma(bench.machine, [device], ways, options);
        if (comparison !== null) slowdowns.set(keyOf(candidate), comparison);
      }
      await device.stop();
    }
    return slowdowns;
  }

  /** On the devices' own work: what they write, what trackers name of it, and what they gain by sharing. */
  async work(): Promise<{
    writes: Map<string, GrowthPoint[]>;
    precision: Map<string, PrecisionFigures[]>;
    sharing: SharingFigures[];
  }> {
    const { repetitions, pairs, windowMs, times, curveMs } = this.#effort;
    const signal = this.#signal;
    await using bench = await this.#open({ memoryBytes: this.#site.memoryBytes, load: "workload" });
    const { machine } = bench;
    const devices = await this.#devices(bench);
    for (const device of devices) await device.stop();
    const writes = await measureWrites(devices, curveMs, signal);

    // Each device in its first way, then each in its second …: trackers share nothing.
    const turns = devices.map(({ id }) =>
      this.#usable().filter(({ device, tracker }) => device === id && tracker !== "everything"),
    );
    const most = Math.max(0, ...turns.map((ways) => ways.length));
    const precision = new Map<string, PrecisionFigures[]>();
    for (let turn = 0; turn < most; turn++) {
      this.#tell("precision", turn, most, null);
      const candidates = turns.flatMap((ways) => ways.slice(turn, turn + 1));
      const samples: ReadonlyMap<Candidate, PrecisionFigures[]>[] = [];
      for (let repetition = 0; repetition < Math.ceil(repetitions / 2); repetition++) {
        samples.push(await measurePrecision(machine, devices, candidates, { times, signal }));
      }
      for (const candidate of candidates) {
        const figures = samples.map((sample) => sample.get(candidate) ?? []).filter(({ length }) => length > 0);
        if (figures.length > 0) precision.set(keyOf(candidate), middle(figures));
      }
    }
    this.#tell("sharing", 0, 1, null);
    const tracked = this.#usable().filter(({ tracker }) => tracker === "iommu");
    const able = this.facts.capabilities.filter(({ id }) => tracked.some(({ device }) => device === id));
    const options = { repetitions: repetitions * 2, pairs, windowMs, signal };
    const sharing = await measureSharing(machine, devices, able, options);
    return { writes, precision, sharing };
  }

  async #open(variant: { memoryBytes: number; load: "workload" | "flat-out" }): Promise<BenchMachine> {
    this.#signal?.throwIfAborted();
    const bench = await this.#site.open(variant);
    // What vCPUs write is no device's, and their threads take processor time from what is measured.
    await bench.machine.vcpus.pause();
    return bench;
  }

  /** The devices to be measured; on the first machine also all that is known of them. */
  async #devices(bench: BenchMachine): Promise<BenchDevice[]> {
    const wanted = this.#site.devices;
    const all = await BenchDevice.all(bench);
    for (const device of all) if (wanted?.includes(device.id) === false) await device.stop();
    const devices = all.filter(({ id }) => wanted?.includes(id) ?? true);
    if (this.#facts === undefined) {
      const probed = await probeMachine(bench.machine);
      const capabilities = probed.filter(({ id }) => devices.some((device) => device.id === id));
      const stateBytes = new Map<string, number | null>();
      for (const { id, attached } of devices) stateBytes.set(id, await stateSize(attached));
      this.#facts = { capabilities, stateBytes, groups: bench.groups };
      this.#candidates = capabilities.flatMap(candidatesOf);
      this.#isWitnessed = devices.some(({ witness }) => witness !== null);
    }
    return devices;
  }

  #usable(): Candidate[] {
    return this.#candidates.filter((candidate) => !this.#refused.has(keyOf(candidate)));
  }

  #tell(phase: BenchProgress["phase"], step: number, of: number, subject: number | string | null): void {
    this.#progress({ phase, step, of, subject });
  }
}

async function stateSize({ vfio }: AttachedDevice): Promise<number | null> {
  try {
    return await vfio.dataSize();
  } catch (error) {
    if (isErrno(error, "ENOTTY")) return null;
    throw error;
  }
}

/** The median of each time's figures. */
function middle(samples: readonly (readonly PrecisionFigures[])[]): PrecisionFigures[] {
  return samples[0].map((_, time) => {
    const of = (value: (figures: PrecisionFigures) => number) =>
      summarize(samples.map((sample) => value(sample[time]))).median;
    return {
      ms: of(({ ms }) => ms),
      writtenPages: Math.round(of(({ writtenPages }) => writtenPages)),
      reportedPages: Math.round(of(({ reportedPages }) => reportedPages)),
    };
  });
}
