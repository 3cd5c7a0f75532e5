import type { AttachedDevice, Machine } from "../../host/host.js";
import { NO_VCPUS } from "../../host/no-vcpus.js";

/*
 * Where trackers are measured. The bench names no host: whoever calls it says how a machine is made there, and, where
 * somebody knows, what its devices have really written.
 */

/** What a machine to be measured is like. */
export interface BenchVariant {
  /** Bytes of guest memory: what is mapped for DMA, and what a tracker has to speak of. */
  readonly memoryBytes: number;
  /**
   * `workload`: devices do what they are there for. `flat-out`: each writes as fast as it can, all over a stretch of
   * memory large enough that the shares of dirty pages that are wanted can be reached, where the site can make it.
   */
  readonly load: "workload" | "flat-out";
}

/** A host, as the bench sees it. */
export interface BenchSite {
  readonly host: string;
  /** The scenario that its machine was described by; null: it is made of whatever devices there are. */
  readonly scenario: string | null;
  /** What its figures are of, in a sentence: a model, a kernel, another process. */
  readonly measures: string;
  /** Bytes of guest memory of the machine as it is; of its trackers a migration is estimated. */
  readonly memoryBytes: number;
  /** Address spaces that reads are measured on, ascending. */
  readonly sizes: readonly number[];
  /** The devices that are to be measured, by their ids; null: all. */
  readonly devices: readonly string[] | null;
  /** Devices that can't be measured, each with why. */
  readonly leftOut: readonly { readonly id: string; readonly why: string }[];
  /** Opens a machine whose devices run. */
  open(variant: BenchVariant): Promise<BenchMachine>;
}

/** A machine on the bench. */
export interface BenchMachine extends AsyncDisposable {
  readonly machine: Machine;
  /** By device id: who knows what the device writes; absent: nobody does. */
  readonly witnesses: ReadonlyMap<string, DmaWitness>;
  /** By device id, its IOMMU group, where there is one. */
  readonly groups: ReadonlyMap<string, number>;
}

/** Knows what a device has written, by other means than a tracker. */
export interface DmaWitness {
  /** DMA writes since the device was opened. */
  writes(): Promise<number>;
  /** Remembers this moment. Exact where the device is stopped. */
  mark(): Promise<DmaMark>;
}

/** A moment in a device's life. */
export interface DmaMark {
  /** Different pages of RAM that it has written since. Exact where the device is stopped. */
  pagesSince(): Promise<number>;
}

/** These devices of a machine, and no vCPUs: what is measured is the devices' trackers. It stays the machine's owner's. */
export function partOf(machine: Machine, devices: readonly AttachedDevice[]): Machine {
  const { memory, peerMappings } = machine;
  return {
    memory,
    devices,
    vcpus: NO_VCPUS,
    ...(peerMappings === undefined ? {} : { peerMappings }),
    mayP2p: (initiator, target) => machine.mayP2p(initiator, target),
    setP2pReachable: (device, reachable) => machine.setP2pReachable(device, reachable),
    [Symbol.asyncDispose]: async () => {},
  };
}
