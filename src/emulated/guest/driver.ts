import { z } from "zod";
import { TokenBucket } from "../../devices/token-bucket.js";
import { PAGE_SIZE, type PageNumber } from "../../memory/address.js";

/*
 * The guest's drivers of devices that do nothing unless they are asked to: they queue requests, take completions, and count
 * both, so that a request that was lost, done twice or done wrongly shows. They run on vCPUs: their stores go into the
 * vCPUs' dirty log, they pause with them, and what they know moves with the vCPUs' state.
 *
 * They look at memory for completions instead of waiting for interrupts.
 */

/** What a driver reaches of its machine. */
export interface DriverHost {
  /** A vCPU's store, at the beginning of a page or inside it; it crosses no page. */
  store(page: PageNumber, offset: number, data: Uint8Array): void;
  /** The bytes of a page of RAM. */
  page(page: PageNumber): Uint8Array;
  /** A 32-bit word of RAM, by an atomic load: what the device wrote before it is seen after it. */
  word(page: PageNumber, offset: number): number;
  /** CLOCK_MONOTONIC in nanoseconds. */
  now(): bigint;
  /** Reads a register of 4 bytes. */
  read(region: number, offset: number): Promise<number>;
  /** Writes registers of 4 bytes each, in order. */
  write(region: number, writes: readonly RegisterWrite[]): Promise<void>;
  /** What the device has counted; nothing of a device that doesn't tell. */
  counters(): Promise<Record<string, number>>;
}

export interface RegisterWrite {
  readonly offset: number;
  readonly value: number;
}

/** What a driver has to say of its requests, once none is open any more. */
export interface RequestReport {
  readonly device: string;
  /** By this machine and those that it came from. */
  readonly queued: number;
  readonly completed: number;
  /** Since this machine runs. */
  readonly completedHere: number;
  /** Nothing is wrong where there is none. */
  readonly problems: readonly { readonly kind: string; readonly count: number }[];
}

const count = z.int().min(0);

/** What of a driver moves, besides what is its device's own. */
export const driverStateSchema = z.strictObject({
  device: z.string().max(64),
  started: z.boolean(),
  queued: count,
  completed: count,
  doubled: count,
  failed: count,
  wrong: count,
  /** Requests that the device had done before the driver's first. */
  executedBefore: count,
  own: z.unknown(),
});
export type DriverState = z.output<typeof driverStateSchema>;

/** With nothing to queue or take. */
const IDLE_MS = 2;
const START_MS = 5000;

/** A driver that keeps a number of requests open. */
export abstract class Driver {
  readonly device: string;
  protected readonly host: DriverHost;
  readonly #bucket: TokenBucket;
  readonly #unitBytes: number;
  #started = false;
  #draining = false;
  #queued = 0;
  #completed = 0;
  #completedHere = 0;
  /** Completions of requests that were not open: done twice, or never queued. */
  #doubled = 0;
  #failed = 0;
  #wrong = 0;
  #executedBefore = 0;
  #failure: Error | undefined;
  /** Doorbells that are on their way; others wait for them. */
  #ringing: Promise<void> | undefined;
  #ringDue = false;

  /** @param unitBytes that a request moves */
  constructor({ device, rate, unitBytes }: { device: string; rate: number; unitBytes: number }, host: DriverHost) {
    this.device = device;
    this.host = host;
    this.#unitBytes = unitBytes;
    this.#bucket = new TokenBucket(rate * 1e6, unitBytes);
  }

  /** As at the guest's boot: finds the device as after power-on, and programs it. @throws where it doesn't answer */
  async start(): Promise<void> {
    this.#executedBefore = this.executed(await this.host.counters()) ?? 0;
    await this.initialise();
    this.#started = true;
  }

  /** A slice of work; returns the milliseconds until the next is due. */
  slice(): number {
    if (!this.#started || this.#failure !== undefined) return IDLE_MS;
    this.#bucket.refill(this.host.now());
    try {
      if (this.take()) this.#ringDue = true;
      while (!this.#draining && this.hasRoom && this.#bucket.take(this.#unitBytes)) {
        if (!this.queue()) break;
        this.#queued++;
        this.#ringDue = true;
      }
    } catch (error) {
      this.#fail(error);
    }
    this.#ring();
    return IDLE_MS;
  }

  /** Its vCPU pauses: time that passes from here on is not caught up. */
  pause(): Promise<void> {
    this.#bucket.pause();
    return this.settle();
  }

  /** Resolves when what it wrote to registers has reached the device. */
  async settle(): Promise<void> {
    await this.#ringing;
  }

  /** No more requests are queued; false: they are again. */
  set draining(draining: boolean) {
    this.#draining = draining;
  }

  /** Requests that the device has not completed and still may. */
  get busy(): number {
    return this.#failure === undefined ? this.openRequests : 0;
  }

  /** What became of the requests, after draining: those that are still open are lost. */
  async report(): Promise<RequestReport> {
    const executed = this.executed(await this.host.counters());
    const done = executed === undefined ? this.#completed : executed - this.#executedBefore;
    const problems = [
      { kind: "lost", count: this.openRequests },
      { kind: "completed twice", count: this.#doubled },
      { kind: "failed", count: this.#failed },
      { kind: "done wrongly", count: this.#wrong },
      { kind: "done and not completed", count: Math.max(0, done - this.#completed) },
      { kind: "completed and not done", count: Math.max(0, this.#completed - done) },
      { kind: "driver stopped", count: this.#failure === undefined ? 0 : 1 },
    ];
    return {
      device: this.device,
      queued: this.#queued,
      completed: this.#completed,
      completedHere: this.#completedHere,
      problems: problems.filter((problem) => problem.count > 0),
    };
  }

  /** While it is paused. */
  save(): DriverState {
    return {
      device: this.device,
      started: this.#started,
      queued: this.#queued,
      completed: this.#completed,
      doubled: this.#doubled,
      failed: this.#failed,
      wrong: this.#wrong,
      executedBefore: this.#executedBefore,
      own: this.saveOwn(),
    };
  }

  /** @throws ZodError for what can't be */
  load(state: DriverState): void {
    this.loadOwn(state.own);
    this.#started = state.started;
    this.#queued = state.queued;
    this.#completed = state.completed;
    this.#doubled = state.doubled;
    this.#failed = state.failed;
    this.#wrong = state.wrong;
    this.#executedBefore = state.executedBefore;
    this.#completedHere = 0;
    // The source's last words to its device may have been taken for said.
    this.#ringDue = true;
  }

  protected abstract initialise(): Promise<void>;
  protected abstract readonly openRequests: number;
  /** Another request may be queued. */
  protected abstract readonly hasRoom: boolean;
  /** Queues a request; false where it can't be done now. */
  protected abstract queue(): boolean;
  /** Takes completions, and tells {@link completed} of each; true where there were some. */
  protected abstract take(): boolean;
  /** What tells the device of all that was queued and taken. */
  protected abstract doorbells(): { readonly region: number; readonly writes: readonly RegisterWrite[] };
  /** Requests that the device has done, of its counters; undefined where it doesn't tell. */
  protected abstract executed(counters: Record<string, number>): number | undefined;
  protected abstract saveOwn(): unknown;
  protected abstract loadOwn(own: unknown): void;

  /** A completion was taken. @param outcome `doubled`: there is no such request */
  protected completed(outcome: "done" | "doubled" | "failed" | "wrong"): void {
    if (outcome === "doubled") {
      this.#doubled++;
      return;
    }
    this.#completed++;
    this.#completedHere++;
    if (outcome === "failed") this.#failed++;
    if (outcome === "wrong") this.#wrong++;
  }

  /** Waits until it is so, while the device starts. @throws Error */
  protected async until(what: string, isSo: () => boolean | Promise<boolean>): Promise<void> {
    for (const end = performance.now() + START_MS; !(await isSo()); ) {
      if (performance.now() > end) throw new Error(`${this.device}: ${what} does not happen`);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  #ring(): void {
    if (!this.#ringDue || this.#ringing !== undefined) return;
    this.#ringDue = false;
    const { region, writes } = this.doorbells();
    this.#ringing = this.host.write(region, writes).then(
      () => {
        this.#ringing = undefined;
      },
      (error: unknown) => {
        this.#ringing = undefined;
        this.#fail(error);
      },
    );
  }

  #fail(error: unknown): void {
    this.#failure ??= error instanceof Error ? error : new Error(String(error));
  }
}

/** Words of a page. */
const WORDS = PAGE_SIZE / 4;

/** The contents of a page that no other page has: of its owner, its place and how often that was written. */
export function renderPage(words: Uint32Array, owner: number, place: number, version: number): void {
  let x = (owner ^ Math.imul(place + 1, 0x9e3779b1) ^ Math.imul(version, 0x85ebca6b)) >>> 0;
  for (let i = 0; i < WORDS; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    words[i] = x;
  }
}
