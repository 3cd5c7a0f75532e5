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

/** A host whose trackers can be measured. */
export interface BenchSite {
  readonly host: string;
  /** The scenario that describes its machine; null: the machine consists of the devices that are present. */
  readonly scenario: string | null;
  /** The subject of its figures, in a sentence: a model, a kernel, another process. */
  readonly measures: string;
  /** Bytes of guest memory of the real machine, for which migrations are estimated. */
  readonly memoryBytes: number;
  /** Sizes in bytes of the address spaces on which reads are measured, ascending. */
  readonly sizes: readonly number[];
  /** The ids of the devices to measure; null: all. */
  readonly devices: readonly string[] | null;
  /** Devices that can't be measured, each with the reason. */
  readonly leftOut: readonly { readonly id: string; readonly why: string }[];
  /** Opens a machine whose devices run. */
  open(variant: BenchVariant): Promise<BenchMachine>;
}

/** A machine on the bench. */
export interface BenchMachine extends AsyncDisposable {
  readonly machine: Machine;
  /** By device id, a witness of the device's writes; absent: there is none. */
  readonly witnesses: ReadonlyMap<string, DmaWitness>;
  /** By device id, the number of its IOMMU group; absent: it has none. */
  readonly groups: ReadonlyMap<string, number>;
}

/** A witness of a device's writes that is not a tracker. */
export interface DmaWitness {
  /** Returns the number of DMA writes since the device was opened. */
  writes(): Promise<number>;
  /** Marks this moment. Exact if the device is stopped. */
  mark(): Promise<DmaMark>;
}

/** A marked moment, from which a device's writes are counted. */
export interface DmaMark {
  /** Returns the number of distinct pages of RAM that the device has written since. Exact if the device is stopped. */
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
