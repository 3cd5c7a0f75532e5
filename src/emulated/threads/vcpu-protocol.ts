import type { PageSpan } from "../../devices/buffers.js";
import type { Epoch, StampTrail } from "../../devices/stamp.js";
import type { MemoryRegion } from "../../memory/guest-memory.js";

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
  /** Of all vCPUs: vCPU n is owner n. */
  readonly inFlight: Int32Array<SharedArrayBuffer>;
  /** KVM's dirty log: bit n is guest page n. */
  readonly log: { readonly memory: WebAssembly.Memory; readonly bits: number };
  /** One word: not 0 while the log is on. */
  readonly logging: Int32Array<SharedArrayBuffer>;
}

export type VcpuOperations = {
  resume(args: null): void;
  pause(args: null): void;
  save(args: null): { number: number; progress: VcpuProgress }[];
  load(args: { number: number; progress: VcpuProgress }[]): void;
  trails(args: null): StampTrail[];
};
