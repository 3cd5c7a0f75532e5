import { createSocket } from "node:dgram";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ResumingStream, SavingStream } from "../../../src/host/host.js";
import { isErrno } from "../../../src/uapi/errno.js";
import { Random } from "../../../tools/random.js";
import { leaveOut } from "../../support/shrink.js";
import { operationsToText } from "../operation.js";
import { Finding } from "../player.js";
import { DmaEngineScript } from "./dma-engine-script.js";
import { REGIONS } from "./layout.js";
import { NvmeScript } from "./nvme-script.js";
import type { GuestOperation } from "./operation.js";
import { revive } from "./revive.js";
import { anywhere, noise, type Script, Source } from "./script.js";
import { Side } from "./side.js";
import { WorkloadScript } from "./workload-script.js";

/** Operations of a run; each begins with a device after power-on. */
export const RUN_OPERATIONS = 1000;

/** Operations between two looks at the guest's memory. */
const LOOK_EVERY = 64;
/** Operations between two turns of the event loop, of devices that need it. */
const TURN_EVERY = 4;
/** After a migration, slices in which source and destination must do the same. */
const TWIN_SLICES = 2000;
/** Bytes of migration data at once. */
const DATA_BYTES = 1 << 20;

/** Shrinking ends after as many attempts. */
const MAX_SHRINK_RUNS = 200;

/** Bytes that the process may grow by from the first tenth on: its heap and its compiled code are no leaks. */
const MAX_GROWTH = 128 * 2 ** 20;

/** What a device does depends on its guest alone, and not on the time. */
const DETERMINISTIC: ReadonlySet<string> = new Set(["nvme", "dma-engine"]);

export interface GuestFuzzOptions {
  readonly model: string;
  readonly operations: number;
  readonly seed: number;
  /** For tests of the fuzzer: something that goes wrong. */
  readonly sabotage?: ((side: Side) => void) | undefined;
  readonly onProgress?: (operations: number) => void;
}

/** What was found, with the fewest operations that show it. */
export class GuestFuzzFailure extends Error {
  readonly operations: readonly GuestOperation[];

  constructor({ model, seed }: { model: string; seed: number }, what: string, operations: readonly GuestOperation[]) {
    super(`guest of ${model}, run with seed ${seed}: ${what}\n${operationsToText(operations)}`);
    this.operations = operations;
  }
}

/** What was done, and what the devices have counted, in the end of each run. */
export type GuestTally = Map<string, number>;

/** Runs with seeds from `seed` on, until there were as many operations as wanted. @throws GuestFuzzFailure */
export async function fuzzGuest(options: GuestFuzzOptions): Promise<{ tally: GuestTally; grown: number }> {
  const { model, seed, operations, sabotage, onProgress } = options;
  const tally: GuestTally = new Map();
  let before: number | undefined;
  for (let run = 0, done = 0; done < operations; run++) {
    const wanted = Math.min(RUN_OPERATIONS, operations - done);
    await runGuest({ model, seed: (seed + run) >>> 0, operations: wanted, tally, sabotage });
    done += wanted;
    onProgress?.(done);
    if (before === undefined && done >= operations / 10) before = process.memoryUsage().rss;
    const grown = process.memoryUsage().rss - (before ?? Number.POSITIVE_INFINITY);
    if (grown > MAX_GROWTH) throw new GuestFuzzFailure({ model, seed }, `the process grew by ${grown} bytes`, []);
  }
  return { tally, grown: process.memoryUsage().rss - (before ?? 0) };
}

/** One run. @throws GuestFuzzFailure */
export async function runGuest({
  model,
  seed,
  operations: wanted = RUN_OPERATIONS,
  tally = new Map(),
  sabotage,
}: Omit<GuestFuzzOptions, "operations" | "onProgress"> & {
  readonly operations?: number;
  readonly tally?: GuestTally;
}): Promise<void> {
  const operations: GuestOperation[] = [];
  const count = (what: string, times: number) => tally.set(what, (tally.get(what) ?? 0) + times);
  const what = await attempt(model, sabotage, async (bench) => {
    const generator = new Generator(model, new Random(seed), bench);
    while (operations.length < wanted) {
      const operation = generator.next();
      operations.push(operation);
      await bench.perform(operation);
      count(operation.kind, 1);
    }
    for (const [name, times] of Object.entries(bench.side.device.model.counters())) count(`device's ${name}`, times);
  });
  if (what === undefined) return;
  const { last, shortest } = await shrink(model, sabotage, what, operations);
  throw new GuestFuzzFailure({ model, seed }, last, shortest);
}

/** Does a list of operations once more; returns what goes wrong, undefined where nothing does. */
export function replayGuest(
  model: string,
  operations: readonly GuestOperation[],
  sabotage?: (side: Side) => void,
): Promise<string | undefined> {
  return attempt(model, sabotage, async (bench) => {
    for (const operation of operations) await bench.perform(operation);
  });
}

async function attempt(
  model: string,
  sabotage: ((side: Side) => void) | undefined,
  script: (bench: GuestBench) => Promise<void>,
): Promise<string | undefined> {
  await using bench = await GuestBench.start(model, sabotage);
  try {
    await script(bench);
    await bench.finish();
    return undefined;
  } catch (error) {
    if (error instanceof Finding) return error.message;
    return error instanceof Error ? (error.stack ?? error.message) : String(error);
  }
}

async function shrink(
  model: string,
  sabotage: ((side: Side) => void) | undefined,
  what: string,
  operations: readonly GuestOperation[],
): Promise<{ last: string; shortest: readonly GuestOperation[] }> {
  let last = what;
  const shortest = await leaveOut(
    operations,
    async (some) => {
      const found = await replayGuest(model, some, sabotage);
      if (found !== undefined) last = found;
      return found === undefined ? null : some;
    },
    MAX_SHRINK_RUNS,
  );
  return { last, shortest };
}

/** A device and its guest, and what happens to them. */
class GuestBench implements AsyncDisposable {
  side: Side;
  readonly #model: string;
  readonly #directory: string;
  readonly #sabotage: ((side: Side) => void) | undefined;
  readonly #wire = createSocket("udp4");
  /** The device was replaced, or reset: how often. */
  generation = 0;
  #performed = 0;

  private constructor(model: string, directory: string, side: Side, sabotage: ((side: Side) => void) | undefined) {
    this.#model = model;
    this.#directory = directory;
    this.side = side;
    this.#sabotage = sabotage;
    sabotage?.(side);
  }

  static async start(model: string, sabotage: ((side: Side) => void) | undefined): Promise<GuestBench> {
    const directory = mkdtempSync(join(tmpdir(), "dirtmap-guest-"));
    return new GuestBench(model, directory, await Side.start(model, directory, 0), sabotage);
  }

  /** @throws Finding */
  async perform(operation: GuestOperation): Promise<void> {
    const { side } = this;
    switch (operation.kind) {
      case "write":
        side.write(operation);
        break;
      case "read":
        side.read(operation.region, operation.offset, operation.bytes);
        break;
      case "fill":
        side.fill(operation.address, operation.data);
        break;
      case "work":
        side.work(operation.slices);
        break;
      case "during":
        side.during(operation.after, operation.writes);
        break;
      case "reset":
        await side.reset();
        break;
      case "map":
        side.map(operation.region);
        break;
      case "unmap":
        side.unmap(operation.region);
        break;
      case "log":
        await side.toggleLog(operation.everything, operation.pageSize);
        break;
      case "migrate":
        await this.#migrate(operation.preCopy);
        break;
      case "revive": {
        const wrong = await revive(side, operation.how, () => this.#turn());
        if (wrong !== undefined) side.note(`after a reset (${operation.how}): ${wrong}`);
        break;
      }
    }
    if (++this.#performed % LOOK_EVERY === 0) await this.#look();
    if (!DETERMINISTIC.has(this.#model) && this.#performed % TURN_EVERY === 0) await this.#turn();
    side.check();
    this.side.check();
  }

  /** The end of a run: whatever has happened, the device can be revived. */
  async finish(): Promise<void> {
    await this.#look();
    await this.perform({ kind: "revive", how: this.#performed });
    await this.#look();
    this.side.check();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#wire.close();
    await this.side[Symbol.asyncDispose]();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #look(): Promise<void> {
    this.side.checkMemory();
    await this.side.checkLog();
  }

  /** Something arrives at a NIC; what was read from a disk's file is there. */
  async #turn(): Promise<void> {
    const { udpPort } = this.side.device.model.counters();
    if (udpPort !== undefined) this.#wire.send(Buffer.alloc(6000, 3), udpPort, "127.0.0.1");
    await new Promise((resolve) => setImmediate(resolve));
  }

  /** The state moves to another device with a copy of the guest's memory; both must go on alike, and the first one goes. */
  async #migrate(preCopy: boolean): Promise<void> {
    const source = this.side;
    source.calm();
    await this.#look();
    source.check();
    const target = await Side.start(this.#model, this.#directory, ++this.generation, source);
    this.#sabotage?.(target);
    try {
      await target.device.driver.setState("RESUMING");
      const into = target.device.driver.stream as ResumingStream;
      if (preCopy && source.device.model.info.migration?.preCopy === true) {
        await source.device.driver.setState("PRE_COPY");
        await drain(source.device.driver.stream as SavingStream, into);
      }
      await source.device.driver.setState("STOP_COPY");
      await drain(source.device.driver.stream as SavingStream, into);
      await target.device.driver.setState("STOP");
      this.#compare(source, target);
      for (const side of [source, target]) await side.device.driver.setState("RUNNING");
      if (DETERMINISTIC.has(this.#model)) {
        if (Buffer.compare(source.device.model.save(), target.device.model.save()) !== 0) {
          source.note("a state that was loaded is not saved as it was");
        }
        for (const side of [source, target]) side.work(TWIN_SLICES);
        this.#compare(source, target);
        if (Buffer.compare(source.memory, target.memory) !== 0)
          source.note("after a migration it writes something else");
      }
      source.check();
    } catch (error) {
      await target[Symbol.asyncDispose]();
      throw error;
    }
    this.side = target;
    await source[Symbol.asyncDispose]();
  }

  /** All registers, and the device's memory. */
  #compare(source: Side, target: Side): void {
    for (const { index, bytes, name } of source.device.model.info.regions) {
      const [a, b] = [source, target].map((side) => side.read(index, 0, bytes));
      if (Buffer.compare(a, b) === 0) continue;
      const at = a.findIndex((byte, i) => byte !== b[i]);
      source.note(`after a migration byte 0x${at.toString(16)} of ${name} is ${b[at]} instead of ${a[at]}`);
    }
  }
}

/** What there is to read now. */
async function drain(from: SavingStream, into: ResumingStream): Promise<void> {
  try {
    for (;;) {
      const data = await from.read(DATA_BYTES);
      if (data.byteLength === 0) return;
      await into.write(data.slice());
    }
  } catch (error) {
    // The end of what pre-copy has for now.
    if (!isErrno(error, "ENOMSG")) throw error;
  }
}

/** Makes up what happens next: mostly what a driver does, as it should or with something wrong. */
class Generator {
  readonly #source: Source;
  readonly #script: Script;
  readonly #bench: GuestBench;
  readonly #regions: readonly { index: number; bytes: number }[];
  /** Operations that belong together with the last one. */
  #ready: GuestOperation[] = [];
  #generation = 0;

  constructor(model: string, random: Random, bench: GuestBench) {
    this.#bench = bench;
    this.#source = new Source(random, (address, bytes) => bench.side.peek(address, bytes));
    this.#script =
      model === "nvme"
        ? new NvmeScript(this.#source)
        : model === "dma-engine"
          ? new DmaEngineScript(this.#source)
          : new WorkloadScript(this.#source);
    this.#regions = bench.side.device.model.info.regions;
  }

  next(): GuestOperation {
    for (;;) {
      const ready = this.#ready.shift();
      if (ready !== undefined) return ready;
      this.#ready = this.#make();
    }
  }

  #make(): GuestOperation[] {
    const { random } = this.#source;
    this.#source.wrongness = random.weighted([
      [60, 0],
      [30, 30],
      [10, 200],
    ]);
    // A device that moved has the driver's queues at other places, as far as the driver knows: it begins anew.
    if (this.#generation !== this.#bench.generation && random.chance(50)) {
      this.#generation = this.#bench.generation;
      this.#script.forget();
    }
    return random.weighted<() => GuestOperation[]>([
      [300, () => this.#script.next()],
      [200, () => [{ kind: "work", slices: random.pick([1, 1, 2, 5, 20, 100]) }]],
      [20, () => [{ kind: "write", ...noise(this.#source, this.#regions) }]],
      [20, () => [this.#read()]],
      [20, () => [this.#during()]],
      [8, () => [{ kind: "log", everything: random.chance(50), pageSize: random.pick([4096, 4096, 8192, 65536]) }]],
      [4, () => [{ kind: random.chance(40) ? "unmap" : "map", region: random.below(REGIONS.length) }]],
      [1, () => [{ kind: "migrate", preCopy: random.chance(50) }]],
      [1, () => this.#forgetting({ kind: "reset" })],
      [1, () => this.#forgetting({ kind: "revive", how: random.below(12) })],
    ])();
  }

  #forgetting(operation: GuestOperation): GuestOperation[] {
    this.#script.forget();
    return [operation];
  }

  #read(): GuestOperation {
    const { random } = this.#source;
    const { index, bytes } = random.pick(this.#regions);
    if (random.chance(5)) return { kind: "read", region: index, offset: 0, bytes };
    return { kind: "read", region: index, ...anywhere(random, bytes) };
  }

  /** Registers that are written in the middle of a DMA: what the driver does next, as far as that is registers. */
  #during(): GuestOperation {
    const { random } = this.#source;
    const next = random.chance(70) ? this.#script.next() : [];
    const writes = next.flatMap((operation) => (operation.kind === "write" ? [operation] : []));
    if (writes.length === 0) writes.push({ kind: "write", ...noise(this.#source, this.#regions) });
    return { kind: "during", after: random.pick([0, 0, 1, 3, 10]), writes };
  }
}
