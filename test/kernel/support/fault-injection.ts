import { closeSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from "node:fs";
import { libc } from "../../../src/sys/libc.js";

/*
 * The kernel's fault injection (Documentation/fault-injection/fault-injection.rst): the n-th place at which a system call of
 * a thread may fail for want of memory does fail. The places are allocations (failslab), and those that iommufd names
 * itself (fail_iommufd).
 */

const DEBUGFS = "/sys/kernel/debug";

/** Switched for the time of the tests: allocations that may wait fail too, which is most of them, and nothing is logged. */
const SETTINGS = [
  ["failslab/ignore-gfp-wait", "N"],
  ["failslab/verbose", "0"],
  ["fail_iommufd/verbose", "0"],
] as const;

/** Calls that are made to get to know the threads of the pool: each of them gets some. */
const POOL_CALLS = 64;
const POOL_ROUNDS = 100;

/** How an operation went with a fault injected, or the attempt to. */
export interface Faulted<T> {
  readonly settled: PromiseSettledResult<T>;
  /** False where the operation has fewer places than that. */
  readonly injected: boolean;
}

/** Lets operations of the library fail in the kernel. One at a time in the whole process. */
export class FaultInjection implements Disposable {
  readonly #saved: readonly (readonly [string, string])[];
  /** /proc/thread-self/fail-nth of the thread that makes short calls. */
  readonly #main: number;
  /** Those of the threads that make long ones. */
  readonly #pool: readonly number[];

  private constructor(threads: readonly number[]) {
    this.#saved = SETTINGS.map(([name]) => [name, readFileSync(`${DEBUGFS}/${name}`, "utf8").trim()]);
    for (const [name, value] of SETTINGS) writeFileSync(`${DEBUGFS}/${name}`, value);
    this.#main = openSync(`/proc/self/task/${process.pid}/fail-nth`, "r+");
    this.#pool = threads.map((thread) => openSync(`/proc/self/task/${thread}/fail-nth`, "r+"));
  }

  static async start(): Promise<FaultInjection> {
    return new FaultInjection(await poolThreads());
  }

  /**
   * Does an operation whose `nth` place fails, counted from 1 for each thread that works on it.
   *
   * Between the call and its system call JavaScript runs, which may itself ask the kernel for memory; so this thread is
   * armed only until the call returns its promise, and nothing is allocated on the way that can be made before.
   */
  async run<T>(nth: number, operation: () => Promise<T>): Promise<Faulted<T>> {
    const armed = new TextEncoder().encode(String(nth));
    for (const thread of this.#pool) writeSync(thread, armed, 0, armed.length, 0);
    writeSync(this.#main, armed, 0, armed.length, 0);
    const promise = operation();
    const here = disarm(this.#main);
    const [settled] = await Promise.allSettled([promise]);
    const there = this.#pool.map(disarm);
    return { settled, injected: here || there.includes(true) };
  }

  [Symbol.dispose](): void {
    for (const thread of [this.#main, ...this.#pool]) {
      disarm(thread);
      closeSync(thread);
    }
    for (const [name, value] of this.#saved) writeFileSync(`${DEBUGFS}/${name}`, value);
  }
}

const DISARMED = new TextEncoder().encode("0");
const count = new Uint8Array(16);

/** Switches off; true if the fault had been injected, after which the count stands at 0. */
function disarm(thread: number): boolean {
  const bytes = readSync(thread, count, 0, count.length, 0);
  writeSync(thread, DISARMED, 0, DISARMED.length, 0);
  return new TextDecoder().decode(count.subarray(0, bytes)).trim() === "0";
}

/** The ids of the threads on which calls run that may take long: libuv's pool. */
async function poolThreads(): Promise<readonly number[]> {
  const gettid = libc.func("int gettid()");
  const size = Number(process.env.UV_THREADPOOL_SIZE ?? 4);
  const threads = new Set<number>();
  for (let round = 0; round < POOL_ROUNDS && threads.size < size; round++) {
    const calls = Array.from(
      { length: POOL_CALLS },
      () =>
        new Promise<number>((resolve, reject) => {
          gettid.async((error: unknown, id: number) => (error ? reject(error) : resolve(id)));
        }),
    );
    for (const id of await Promise.all(calls)) threads.add(id);
  }
  if (threads.size !== size) throw new Error(`${threads.size} of ${size} threads of the pool were seen`);
  return [...threads];
}
