import type { MessagePort } from "node:worker_threads";
import type { PageSpan } from "../../devices/buffers.js";
import type { Epoch, StampTrail } from "../../devices/stamp.js";
import type { MemoryRegion } from "../../memory/guest-memory.js";
import type { DriverState, RegisterWrite, RequestReport } from "../guest/driver.js";
import type { PostedDriver } from "../guest/drivers.js";

/*
 * What the main thread asks of a vCPU thread. It answers between two slices: at the answer to a pause, no store is in
 * flight.
 */

/** How far a vCPU came: its registers, as far as this workload has any. */
export interface VcpuProgress {
  readonly lastSequence: number;
  readonly epochs: readonly Epoch[];
}

/** What a vCPU thread starts with. */
export interface PostedVcpus {
  readonly vcpus: readonly { readonly number: number; readonly buffers: readonly PageSpan[] }[];
  /** Megabytes (10^6) per second of each. */
  readonly rate: number;
  readonly incarnation: number;
  readonly arenas: readonly WebAssembly.Memory[];
  readonly regions: readonly MemoryRegion[];
  /** Of devices that are driven; they run on these vCPUs. */
  readonly drivers: readonly PostedDriver[];
  /** Whom the drivers' accesses to registers go to: {@link MmioOperations}. */
  readonly mmio: MessagePort;
  /** Of all vCPUs: vCPU n is owner n. */
  readonly inFlight: Int32Array<SharedArrayBuffer>;
  /** KVM's dirty log: bit n is guest page n. */
  readonly log: { readonly memory: WebAssembly.Memory; readonly bits: number };
  /** One word: not 0 while the log is on. */
  readonly logging: Int32Array<SharedArrayBuffer>;
}

/** What moves of a thread's vCPUs. */
export interface SavedVcpus {
  readonly vcpus: readonly { readonly number: number; readonly progress: VcpuProgress }[];
  readonly drivers: readonly DriverState[];
}

export type VcpuOperations = {
  resume(args: null): void;
  /** Answered when no store and no access to a register is in flight. */
  pause(args: null): Promise<void>;
  save(args: null): SavedVcpus;
  load(args: SavedVcpus): void;
  trails(args: null): StampTrail[];
  /** Starts the drivers of these devices, as at boot. */
  startDrivers(args: readonly string[]): Promise<void>;
  /**
   * Has the drivers queue nothing until their requests are done, none was completed for `stallMs`, or `limitMs` are over, and
   * tells what became of them.
   */
  drainDrivers(args: { stallMs: number; limitMs: number }): Promise<RequestReport[]>;
};

/** Answered by the main thread, which knows the devices. */
export type MmioOperations = {
  read(args: { device: string; region: number; offset: number }): Promise<number>;
  write(args: { device: string; region: number; writes: readonly RegisterWrite[] }): Promise<void>;
  counters(args: { device: string }): Promise<Record<string, number>>;
};
