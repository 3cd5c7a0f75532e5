import { Worker } from "node:worker_threads";
import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import { DmaLog, type PostedDmaLog } from "../../src/devices/dma-log.js";
import type { DmaWiring } from "../../src/emulated/iommu/dma-port.js";
import type { ReadingPlace } from "../../src/emulated/iommu/reader.js";
import type { IommuFormatName } from "../../src/host/description.js";
import { PAGE_SIZE } from "../../src/memory/address.js";
import { InFlight } from "../../src/memory/in-flight.js";
import { bitmapOf, TestBench } from "../support/iommu.js";

/*
 * The stress: threads write while the reader reads, clears and copies, and not one write may be missing in the copy.
 *
 * A steady random load hides most losses, because the next write to the page repairs them. Here each writer writes each
 * page in a round, and does not touch it again before the reader has compared the copy of it: a write whose bit was lost
 * stays visible as a stale stamp. So that neither waits for the other at a barrier, the pages are divided into groups, and
 * writers go on with the next group while the reader compares the last. Now and then a writer stalls between translation
 * and store, for longer than the reader needs to clear and copy: the moment that only the drain protects.
 */

/** Whose bits are read. */
export type StressedTracker = "iommu" | "device-log" | "cpu-log";

/** Ways to be wrong, each of which must be noticed. */
export type Mutant = "no-flush" | "no-drain" | "copy-before-clear" | "mark-before-store";

export interface StressOptions {
  readonly tracker: StressedTracker;
  readonly format: IommuFormatName;
  /** Writes of all writers together, at least. */
  readonly writes: number;
  readonly writers: number;
  readonly hugePages: boolean;
  readonly reading?: ReadingPlace;
  readonly mutant?: Mutant;
  readonly seed: number;
  /** Gives up after this many milliseconds. */
  readonly deadlineMs: number;
}

export interface StressResult {
  readonly writes: number;
  readonly reads: number;
  /** Stamps that were missing in the copy. The run ends at the first round that has any. */
  readonly lost: number;
  readonly faults: number;
}

export const GROUPS = 4;
export const PAGES_PER_GROUP = 12;
export const PAGES = GROUPS * PAGES_PER_GROUP;
/** First IOVA page; aligned so that large leaves form. */
export const FIRST_PAGE = 0x400;
/** Stamps of different writers lie this many bytes apart in a page; a writer has two. */
export const STAMP_SPACING = 64;

/** Words of the shared control block. */
export const STOP = 0;
export const FAULTS = 1;
export const COUNTS = 2;
/** Per group: the round that the reader has compared. */
export const COMPARED = 16;
/** Per writer and group: the round that the writer has finished. */
export const FINISHED = COMPARED + GROUPS;

/** The writer's number of the round, in {@link runUnmapStress}: it goes on until it is stopped. */
export const ENDLESS = 0x7fffffff;

/** What a writer's thread is started with. */
export interface WriterData {
  readonly writer: number;
  readonly tracker: StressedTracker;
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly rounds: number;
  readonly seed: number;
  readonly markBeforeStore: boolean;
  /** Whether it waits for the reader to compare a group before it writes there again. */
  readonly waits: boolean;
  readonly wiring: DmaWiring;
  readonly log: PostedDmaLog | null;
}

class WithoutFlush extends InFlight {
  override flush(): void {}
}

class WithoutDrain extends InFlight {
  override drain(): Promise<void> {
    return Promise.resolve();
  }
}

function inFlightOf(mutant: Mutant | undefined, owners: number): InFlight {
  const { words } = InFlight.allocate(owners);
  if (mutant === "no-flush") return new WithoutFlush(words);
  return mutant === "no-drain" ? new WithoutDrain(words) : new InFlight(words);
}

/** Runs writers and reader against each other. */
export async function runStress(options: StressOptions): Promise<StressResult> {
  const { tracker, format, writers, hugePages, mutant } = options;
  const inFlight = inFlightOf(mutant, writers + 1);
  await using bench = new TestBench({
    format,
    ports: writers + 1,
    inFlight,
    ramBytes: 2 ** 20,
    iotlb: 256,
    ...(options.reading === undefined ? {} : { reading: options.reading }),
  });
  const dirtyTracking = tracker === "iommu";
  const domain = bench.iommu.allocDomain({ dirtyTracking });
  bench.map(domain, FIRST_PAGE, 0, PAGES, hugePages);
  const ports = Array.from({ length: writers }, (_, port) => port);
  for (const port of ports) await bench.iommu.attach(port, domain);
  if (dirtyTracking) await domain.setDirtyTracking(true);
  const log = dirtyTracking ? null : DmaLog.create([{ page: FIRST_PAGE, pages: PAGES }], PAGE_SIZE);

  const into = bitmapOf(FIRST_PAGE, PAGES);
  const read = async (clear: boolean): Promise<void> => {
    into.clear();
    if (log === null) await domain.readDirty({ page: FIRST_PAGE, pages: PAGES, into, clear });
    else {
      log.readAndClear(FIRST_PAGE, PAGES, into);
      await inFlight.invalidate(ports);
    }
  };

  const rounds = Math.ceil(options.writes / (writers * PAGES));
  const control = new Int32Array(new SharedArrayBuffer((FINISHED + writers * GROUPS) * 4));
  const threads = ports.map((writer) => {
    const workerData: WriterData = {
      writer,
      tracker,
      control,
      rounds,
      seed: options.seed + writer,
      markBeforeStore: mutant === "mark-before-store",
      waits: true,
      wiring: bench.wiring(writer),
      log: log?.posted() ?? null,
    };
    return new Worker(new URL("./writer-thread.js", import.meta.url), { workerData });
  });
  const broken = new Promise<never>((_, reject) => {
    for (const thread of threads) thread.on("error", reject);
  });
  try {
    return await Promise.race([compare(bench, control, writers, rounds, into, read, options), broken]);
  } finally {
    Atomics.store(control, STOP, 1);
    await Promise.all(threads.map((thread) => thread.terminate()));
  }
}

/** The reader: reads, clears, copies, and compares the groups that writers had finished before the read began. */
async function compare(
  bench: TestBench,
  control: Int32Array,
  writers: number,
  rounds: number,
  into: DirtyBitmap,
  read: (clear: boolean) => Promise<void>,
  { mutant, deadlineMs }: StressOptions,
): Promise<StressResult> {
  const ram = bench.ram.i32;
  const stamps = writers * 2;
  const copy = new Int32Array(PAGES * stamps);
  const copyDirty = (): void =>
    into.forEachRun((first, count) => {
      for (let page = first; page < first + count; page++) {
        for (let stamp = 0; stamp < stamps; stamp++) {
          copy[page * stamps + stamp] = ram[(page * PAGE_SIZE + stamp * STAMP_SPACING) >>> 2];
        }
      }
    });
  const finished = new Int32Array(GROUPS);
  const until = Date.now() + deadlineMs;
  let reads = 0;
  let lost = 0;
  for (let done = false; !done && lost === 0; reads++) {
    if ((reads & 63) === 0) {
      if (Date.now() > until) throw new Error(`the stress has not ended after ${deadlineMs} ms`);
      // Messages and errors of the threads.
      await new Promise((resolve) => setImmediate(resolve));
    }
    done = true;
    for (let group = 0; group < GROUPS; group++) {
      let round = rounds;
      for (let writer = 0; writer < writers; writer++) {
        round = Math.min(round, Atomics.load(control, FINISHED + writer * GROUPS + group));
      }
      finished[group] = round;
      if (round < rounds) done = false;
    }
    if (mutant === "copy-before-clear") {
      await read(false);
      copyDirty();
      await read(true);
    } else {
      await read(true);
      copyDirty();
    }
    for (let group = 0; group < GROUPS; group++) {
      const round = finished[group];
      if (round === Atomics.load(control, COMPARED + group)) continue;
      for (let page = group * PAGES_PER_GROUP; page < (group + 1) * PAGES_PER_GROUP; page++) {
        for (let stamp = 0; stamp < stamps; stamp++) {
          if (copy[page * stamps + stamp] !== ram[(page * PAGE_SIZE + stamp * STAMP_SPACING) >>> 2]) lost++;
        }
      }
      Atomics.store(control, COMPARED + group, round);
      Atomics.notify(control, COMPARED + group);
    }
  }
  return { writes: Atomics.load(control, COUNTS), reads, lost, faults: Atomics.load(control, FAULTS) };
}

/**
 * Unmaps and maps again, to other frames each time, while a device writes without pause. Once an unmap has resolved, the
 * frames are out of reach: what they hold must be what the copy holds, after the pages that the unmap reported as dirty
 * were copied. A write that lands later, or whose bit was lost, shows.
 */
export async function runUnmapStress(
  options: Pick<StressOptions, "format" | "writes" | "mutant" | "seed" | "deadlineMs" | "hugePages">,
): Promise<StressResult> {
  const inFlight = inFlightOf(options.mutant, 2);
  await using bench = new TestBench({ format: options.format, inFlight, ramBytes: 2 ** 20, iotlb: 256 });
  const domain = bench.iommu.allocDomain({ dirtyTracking: true });
  await bench.iommu.attach(0, domain);
  await domain.setDirtyTracking(true);
  const control = new Int32Array(new SharedArrayBuffer((FINISHED + GROUPS) * 4));
  const workerData: WriterData = {
    writer: 0,
    tracker: "iommu",
    control,
    rounds: ENDLESS,
    seed: options.seed,
    markBeforeStore: false,
    waits: false,
    wiring: bench.wiring(0),
    log: null,
  };
  const thread = new Worker(new URL("./writer-thread.js", import.meta.url), { workerData });
  const broken = new Promise<never>((_, reject) => thread.on("error", reject));
  const ram = bench.ram.i32;
  const copy = new Int32Array(ram.length);
  const until = Date.now() + options.deadlineMs;
  const into = bitmapOf(FIRST_PAGE, PAGES);
  const turn = async (): Promise<StressResult> => {
    let lost = 0;
    let reads = 0;
    for (; lost === 0 && Atomics.load(control, COUNTS) < options.writes; reads++) {
      if (Date.now() > until) throw new Error(`the stress has not ended after ${options.deadlineMs} ms`);
      const frames = (reads & 1) * PAGES;
      bench.map(domain, FIRST_PAGE, frames, PAGES, options.hugePages);
      // Messages and errors of the thread, and some time for it to write.
      for (let pause = reads & 3; pause >= 0; pause--) await new Promise((resolve) => setImmediate(resolve));
      into.clear();
      await domain.unmap({ page: FIRST_PAGE, pages: PAGES, into });
      into.forEachRun((first, count) => {
        const from = ((frames + first) * PAGE_SIZE) >>> 2;
        copy.set(ram.subarray(from, from + (count * PAGE_SIZE) / 4), from);
      });
      // All frames: those of the last turn must have been left alone meanwhile.
      for (let page = 0; page < 2 * PAGES; page++) {
        for (let stamp = 0; stamp < 2; stamp++) {
          const at = (page * PAGE_SIZE + stamp * STAMP_SPACING) >>> 2;
          if (copy[at] !== ram[at]) lost++;
        }
      }
    }
    return { writes: Atomics.load(control, COUNTS), reads, lost, faults: Atomics.load(control, FAULTS) };
  };
  try {
    return await Promise.race([turn(), broken]);
  } finally {
    Atomics.store(control, STOP, 1);
    await thread.terminate();
  }
}
