import { MessageChannel, Worker } from "node:worker_threads";
import { z } from "zod";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { SharedLog } from "../../bitmap/shared-log.js";
import type { PageSpan } from "../../devices/buffers.js";
import type { StampTrail } from "../../devices/stamp.js";
import { progressSchema } from "../../devices/stamped-dma.js";
import { DirtmapError } from "../../errors.js";
import type { Vcpus } from "../../host/host.js";
import { iovaOf, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import type { GuestMemory } from "../../memory/guest-memory.js";
import { InFlight } from "../../memory/in-flight.js";
import { endThread } from "../../threads/end-thread.js";
import { RpcClient, serve } from "../../threads/rpc.js";
import { within } from "../../threads/within.js";
import { UapiError } from "../../uapi/errno.js";
import { driverStateSchema, type RequestReport } from "../guest/driver.js";
import type { PostedDriver } from "../guest/drivers.js";
import type { MmioOperations, PostedVcpus, VcpuOperations } from "./vcpu-protocol.js";

/** Threads that vCPUs are spread over, at most: more only take turns on the same cores. */
const MAX_THREADS = 4;
const LIMIT_MS = 10_000;
/** Requests that are open while none was completed for so long are lost; and how long those of a slow device may take. */
const STALL_MS = 5000;
const DRAIN_MS = 30_000;
/** A state has about 100 bytes per vCPU and epoch, and a few KiB per driver; more than this is none. */
const MAX_STATE_BYTES = 4 << 20;
/** Drivers at most: as many as devices. */
const MAX_DRIVERS = 256;

const stateSchema = z.strictObject({
  version: z.literal(2),
  vcpus: z.array(z.strictObject({ number: z.int().min(0), progress: progressSchema })).max(64),
  drivers: z.array(driverStateSchema).max(MAX_DRIVERS),
});

export interface EmulatedVcpusOptions {
  readonly memory: GuestMemory;
  /** The buffers of each vCPU. */
  readonly buffers: readonly (readonly PageSpan[])[];
  /** Megabytes (10^6) per second that each writes. */
  readonly rate: number;
  /** Of the machine instance. */
  readonly incarnation: number;
  /** Drivers that run on them; where there are some, so are vCPUs. */
  readonly drivers: readonly PostedDriver[];
  /** The registers of the devices that are driven. */
  readonly mmio: MmioOperations;
  /** Called when a thread ends that should not have: the machine has failed. */
  readonly onDeath: (error: Error) => void;
}

/**
 * The vCPUs of an emulated machine: threads that write guest memory and drive devices, and the dirty log that KVM would keep of
 * them.
 */
export class EmulatedVcpus implements Vcpus, AsyncDisposable {
  readonly count: number;
  readonly #inFlight: InFlight;
  readonly #log: SharedLog;
  /** One word: not 0 while the log is on. */
  readonly #logging = new Int32Array(new SharedArrayBuffer(4));
  readonly #threads: readonly { readonly worker: Worker; readonly rpc: RpcClient<VcpuOperations> }[];
  readonly #numbers: readonly number[][];
  readonly #drivers: readonly PostedDriver[];
  #paused = true;
  #disposed = false;

  /** The vCPUs are paused at first. */
  constructor({ memory, buffers, rate, incarnation, drivers, mmio, onDeath }: EmulatedVcpusOptions) {
    this.count = buffers.length;
    this.#drivers = drivers;
    this.#inFlight = InFlight.allocate(Math.max(1, this.count));
    this.#log = SharedLog.create(Math.max(...memory.regions.map(({ firstPage, pages }) => firstPage + pages)));
    const threads = Math.min(this.count, MAX_THREADS);
    this.#numbers = Array.from({ length: threads }, (_, thread) =>
      buffers.map((_, number) => number).filter((number) => number % threads === thread),
    );
    this.#threads = this.#numbers.map((numbers) => {
      const { port1, port2 } = new MessageChannel();
      serve(port1, mmio);
      // The worker's own life keeps the process alive; this port must not outlive it.
      port1.unref();
      const posted: PostedVcpus = {
        drivers: drivers.filter(({ vcpu }) => numbers.includes(vcpu)),
        mmio: port2,
        vcpus: numbers.map((number) => ({ number, buffers: buffers[number] })),
        rate,
        incarnation,
        arenas: memory.arenas.map((arena) => arena.memory),
        regions: memory.regions,
        inFlight: this.#inFlight.words,
        log: { memory: this.#log.arena.memory, bits: this.#log.bits },
        logging: this.#logging,
      };
      const worker = new Worker(new URL("./vcpu-thread.js", import.meta.url), {
        workerData: posted,
        transferList: [port2],
      });
      let over = false;
      const ended = (cause?: Error) => {
        if (this.#disposed || over) return;
        over = true;
        const who = numbers.map((number) => `vcpu${number}`).join(", ");
        onDeath(new DirtmapError(`the thread of ${who} has ended`, { code: "VCPU_THREAD_ENDED", cause }));
      };
      worker.once("error", ended);
      worker.once("exit", () => ended());
      return { worker, rpc: new RpcClient<VcpuOperations>(worker) };
    });
  }

  async pause(): Promise<void> {
    await this.#all("pause", null);
    this.#paused = true;
  }

  async resume(): Promise<void> {
    this.#paused = false;
    await this.#all("resume", null);
  }

  async saveState(): Promise<Uint8Array> {
    this.#checkPaused("KVM_GET_REGS");
    const saved = await this.#all("save", null);
    const vcpus = saved.flatMap((each) => each.vcpus).sort((a, b) => a.number - b.number);
    const drivers = saved.flatMap((each) => each.drivers);
    return new TextEncoder().encode(JSON.stringify({ version: 2, vcpus, drivers }));
  }

  /** @throws DirtmapError `BAD_VCPU_STATE`; then nothing is loaded */
  async loadState(state: Uint8Array): Promise<void> {
    this.#checkPaused("KVM_SET_REGS");
    const bad = (what: string, cause?: unknown): DirtmapError =>
      new DirtmapError(`the vCPU state is not usable: ${what}`, { code: "BAD_VCPU_STATE", cause });
    if (state.byteLength > MAX_STATE_BYTES) throw bad(`it has ${state.byteLength} bytes`);
    let json: unknown;
    try {
      json = JSON.parse(new TextDecoder().decode(state));
    } catch (cause) {
      throw bad("it is no JSON", cause);
    }
    const parsed = stateSchema.safeParse(json);
    if (!parsed.success) throw bad("it is malformed", parsed.error);
    const { vcpus, drivers } = parsed.data;
    if (vcpus.length !== this.count || vcpus.some(({ number }, index) => number !== index)) {
      throw bad(`it is of ${vcpus.length} vCPUs, and there are ${this.count}`);
    }
    const driven = new Set(drivers.map(({ device }) => device));
    if (driven.size !== drivers.length || driven.size !== this.#drivers.length) {
      throw bad(`it is of ${drivers.length} drivers, and there are ${this.#drivers.length}`);
    }
    const missing = this.#drivers.find(({ device }) => !driven.has(device));
    if (missing !== undefined) throw bad(`it has nothing of the driver of '${missing.device}'`);
    await Promise.all(
      this.#threads.map(({ rpc }, thread) => {
        const numbers = this.#numbers[thread];
        const here = (device: string) =>
          this.#drivers.some((driver) => driver.device === device && numbers.includes(driver.vcpu));
        const own = {
          vcpus: numbers.map((number) => vcpus[number]),
          drivers: drivers.filter(({ device }) => here(device)),
        };
        return within(rpc.call("load", own), LIMIT_MS, "loading vCPUs").catch((cause: unknown) => {
          throw bad("a driver's part can't be", cause);
        });
      }),
    );
  }

  /** What drivers do at a guest's boot. @throws Error where a device does not answer as its kind does */
  async startDrivers(devices: readonly string[]): Promise<void> {
    await Promise.all(
      this.#threads.map(({ rpc }) => within(rpc.call("startDrivers", devices), LIMIT_MS, "starting drivers")),
    );
  }

  /**
   * Has the drivers queue nothing until what they have queued is done, for a limited time, and tells what became of it. The
   * vCPUs and the devices must be running.
   */
  async drainDrivers(): Promise<RequestReport[]> {
    if (this.#paused || this.#drivers.length === 0) return [];
    const limits = { stallMs: STALL_MS, limitMs: DRAIN_MS };
    const asked = this.#threads.map(({ rpc }) =>
      within(rpc.call("drainDrivers", limits), DRAIN_MS + LIMIT_MS, "draining drivers"),
    );
    return (await Promise.all(asked)).flat();
  }

  async startDirtyLog(): Promise<void> {
    if (this.#isLogging) throw this.#refuse("start", "it is on already");
    Atomics.store(this.#logging, 0, 1);
    // A store that found the log off has landed after this, and every later one is marked.
    await this.#drain();
  }

  async readAndClearDirtyLog(query: { firstPage: PageNumber; pages: number; into: DirtyBitmap }): Promise<void> {
    if (!this.#isLogging) throw this.#refuse("read", "start it first");
    const { into } = query;
    const first = Math.max(0, query.firstPage);
    const end = Math.min(query.firstPage + query.pages, this.#log.bits);
    if (first < end) {
      const own = new DirtyBitmap({
        iova: iovaOf(first),
        length: BigInt(end - first) * BigInt(PAGE_SIZE),
        granule: PAGE_SIZE,
      });
      this.#log.readAndClear(first, end - first, own.words, 0);
      into.or(own);
    }
    await this.#drain();
  }

  async stopDirtyLog(): Promise<void> {
    if (!this.#isLogging) return;
    Atomics.store(this.#logging, 0, 0);
    await this.#drain();
    const { bits } = this.#log;
    this.#log.readAndClear(0, bits, new Uint32Array(Math.ceil(bits / 32)), 0);
  }

  /** What the vCPUs' stamps in memory must be; meaningful while they are paused. */
  async trails(): Promise<StampTrail[]> {
    return (await this.#all("trails", null)).flat();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    await Promise.all(this.#threads.map(({ worker, rpc }) => endThread(worker, rpc)));
  }

  get #isLogging(): boolean {
    return Atomics.load(this.#logging, 0) !== 0;
  }

  async #drain(): Promise<void> {
    await this.#inFlight.drain(Array.from({ length: this.count }, (_, owner) => owner));
  }

  async #all<Name extends "pause" | "resume" | "save" | "trails">(operation: Name, argument: null) {
    return Promise.all(
      this.#threads.map(({ rpc }) => within(rpc.call(operation, argument), LIMIT_MS, `${operation} of the vCPUs`)),
    );
  }

  #checkPaused(syscall: string): void {
    if (this.#paused) return;
    throw new UapiError("EBUSY", { syscall, attempted: "move the state of running vCPUs", remedy: "pause them first" });
  }

  #refuse(what: string, remedy: string): UapiError {
    return new UapiError("EINVAL", { syscall: "KVM_GET_DIRTY_LOG", attempted: `${what} the vCPUs' dirty log`, remedy });
  }
}
