import { controlPath } from "../../src/vfio-user/control-path.js";
import type { DmaMode } from "../../src/vfio-user/server/client-memory.js";
import { Random } from "../../tools/random.js";
import { leaveOut } from "../support/shrink.js";
import { ClientFiles } from "./client-files.js";
import { type DeviceFacts, readFacts } from "./facts.js";
import { Generator } from "./generate.js";
import { MAIN, type Operation, operationsToText } from "./operation.js";
import { Oracle } from "./oracle.js";
import { Finding, Player, type Tally } from "./player.js";
import { ServedProcess, type Usage } from "./served-process.js";

/** Operations of a run; then all connections end, and the next begins with a reset. */
const RUN_OPERATIONS = 2000;

/** Operations between two looks at the client's memory. */
const LOOK_EVERY = 250;

/** Messages between two looks at what the server takes of the machine. */
const SAMPLE_EVERY = 20_000;

/** What a server may grow by from the first samples on: its heap and its compiled code are no leaks. */
const MAX_GROWTH = { rssBytes: 96 * 2 ** 20, descriptors: 2, mappings: 400 } as const;

/** After this long what was under way is done. */
const SETTLE_MS = 2000;

/** Shrinking ends after as many attempts, or as long. */
const MAX_SHRINK_RUNS = 150;
const MAX_SHRINK_MS = 60_000;

export interface FuzzOptions {
  readonly model: string;
  readonly dma: DmaMode;
  readonly messages: number;
  readonly seed: number;
  /** For tests of the fuzzer: what the device is taken for. */
  readonly expected?: (facts: DeviceFacts) => DeviceFacts;
  readonly onProgress?: (messages: number, usage: Usage) => void;
  /** Something was found; what it takes to show it is looked for next. */
  readonly onFinding?: (what: string, operations: readonly Operation[]) => void;
}

export interface FuzzResult {
  readonly messages: number;
  readonly seconds: number;
  /** After the first tenth, and at the end. */
  readonly before: Usage;
  readonly after: Usage;
  readonly tally: Tally;
}

/** What was found, with the fewest operations that show it. */
export class FuzzFailure extends Error {
  readonly operations: readonly Operation[];

  constructor(
    { model, dma, seed }: { model: string; dma: DmaMode; seed: number },
    what: string,
    operations: readonly Operation[],
  ) {
    super(`${model}, --dma ${dma}, run with seed ${seed}: ${what}\n${operationsToText(operations)}`);
    this.operations = operations;
  }
}

/**
 * Serves a model in a process of its own and sends it messages, in runs of a few thousand with a seed each, until there were
 * as many as wanted. @throws FuzzFailure
 */
export async function fuzz(options: FuzzOptions): Promise<FuzzResult> {
  const { model, dma, seed, onProgress } = options;
  await using bench = await Bench.start(model, dma, options.expected);
  const tally: Tally = new Map();
  const began = performance.now();
  let messages = 0;
  let before: Usage | undefined;
  let after = bench.usage();
  let sampledAt = 0;
  for (let run = 0; messages < options.messages; run++) {
    const runSeed = (seed + run) >>> 0;
    const done: Operation[] = [];
    const found = bench.generate(runSeed, done, tally);
    messages += found.messages;
    if (found.what !== undefined) {
      options.onFinding?.(found.what, done);
      const [what, operations] = await bench.shrink(found.what, done);
      throw new FuzzFailure({ model, dma, seed: runSeed }, what, operations);
    }
    // So that what the server's process says, and its end, are heard.
    await new Promise((resolve) => setImmediate(resolve));
    if (messages - sampledAt < SAMPLE_EVERY && messages < options.messages) continue;
    sampledAt = messages;
    after = bench.usage();
    onProgress?.(messages, after);
    if (before === undefined && messages >= options.messages / 10) before = after;
    if (before !== undefined && growth(before, after) !== undefined) {
      // The last connections may not be closed yet, and garbage not collected.
      await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
      after = bench.usage();
    }
    const grown = before === undefined ? undefined : growth(before, after);
    if (grown !== undefined) {
      const what = `${grown}; open are ${bench.descriptors().join(", ")}`;
      throw new FuzzFailure({ model, dma, seed: runSeed }, what, []);
    }
  }
  return { messages, seconds: (performance.now() - began) / 1000, before: before ?? after, after, tally };
}

/** Does a list of operations once more; returns what goes wrong, undefined where nothing does. */
export async function replay(
  model: string,
  dma: DmaMode,
  operations: readonly Operation[],
): Promise<string | undefined> {
  await using bench = await Bench.start(model, dma);
  return bench.replay(operations)?.what;
}

class Bench implements AsyncDisposable {
  readonly #files = new ClientFiles();
  readonly #facts: DeviceFacts;
  #server: ServedProcess;

  private constructor(facts: DeviceFacts, server: ServedProcess) {
    this.#facts = facts;
    this.#server = server;
  }

  static async start(model: string, dma: DmaMode, expected = (facts: DeviceFacts) => facts): Promise<Bench> {
    const server = await ServedProcess.start(model, dma);
    return new Bench(expected(readFacts(controlPath(server.path), model, dma)), server);
  }

  usage(): Usage {
    return this.#server.usage();
  }

  descriptors(): string[] {
    return this.#server.descriptors();
  }

  /** A run of made-up operations, which are added to `done`. */
  generate(seed: number, done: Operation[], tally: Tally): { what: string | undefined; messages: number } {
    return this.#play(tally, (oracle, perform) => {
      const generator = new Generator(new Random(seed), oracle);
      for (let i = 0; i < RUN_OPERATIONS; i++) perform(generator.next(), done);
    });
  }

  replay(operations: readonly Operation[]): { what: string; done: readonly Operation[] } | undefined {
    const done: Operation[] = [];
    const { what } = this.#play(new Map(), (oracle, perform) => {
      for (const operation of operations) {
        // What was left out may have been what this one needs.
        if (operation.kind !== "connect" && "on" in operation && !oracle.connections.has(operation.on)) continue;
        if (operation.kind === "intrude" && !oracle.connections.has(MAIN)) continue;
        perform(operation, done);
      }
    });
    return what === undefined ? undefined : { what, done };
  }

  async shrink(what: string, operations: readonly Operation[]): Promise<[string, readonly Operation[]]> {
    let last = what;
    const until = performance.now() + MAX_SHRINK_MS;
    const attempt = async (some: readonly Operation[]): Promise<readonly Operation[] | null> => {
      await new Promise((resolve) => setTimeout(resolve, 5));
      if (performance.now() > until) return null;
      if (!this.#server.isAlive || this.#server.failure !== undefined) {
        await this.#server[Symbol.asyncDispose]();
        this.#server = await ServedProcess.start(this.#facts.model, this.#facts.dma);
      }
      const found = this.replay(some);
      if (found === undefined) return null;
      last = found.what;
      return found.done;
    };
    const shortest = await leaveOut(operations, attempt, MAX_SHRINK_RUNS);
    return [last, shortest];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
    this.#files[Symbol.dispose]();
  }

  #play(
    tally: Tally,
    script: (oracle: Oracle, perform: (operation: Operation, done: Operation[]) => void) => void,
  ): { what: string | undefined; messages: number } {
    const { path } = this.#server;
    let messages = 0;
    try {
      const oracle = new Oracle(this.#facts, this.#files);
      using player = new Player({ path, oracle, files: this.#files, tally });
      try {
        player.reset();
        let performed = 0;
        script(oracle, (operation, done) => {
          done.push(operation);
          player.perform(operation);
          messages = player.messages;
          if (++performed % LOOK_EVERY === 0) player.settle();
        });
        player.settle();
        player.leave();
        player.settle();
      } finally {
        oracle.abandon();
      }
      const { failure } = this.#server;
      return { what: failure, messages };
    } catch (error) {
      const { failure } = this.#server;
      const what =
        error instanceof Finding
          ? error.message
          : error instanceof Error
            ? (error.stack ?? error.message)
            : String(error);
      return { what: failure === undefined ? what : `${what}; ${failure}`, messages };
    }
  }
}

function growth(before: Usage, after: Usage): string | undefined {
  for (const what of ["rssBytes", "descriptors", "mappings"] as const) {
    if (after[what] - before[what] > MAX_GROWTH[what]) {
      return `the server has grown: ${what} from ${before[what]} to ${after[what]}`;
    }
  }
  return undefined;
}
