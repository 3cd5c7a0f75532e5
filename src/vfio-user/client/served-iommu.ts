import type { HwInfo } from "../../host/host.js";
import { refuse } from "../../host/iommufd-checks.js";
import type { IommuDomain, Port, SystemIommu } from "../../iommufd/system-iommu.js";
import { PAGE_SIZE } from "../../memory/address.js";
import type { Lock } from "../../threads/lock.js";
import type { DmaMapping, MappedDevice } from "./dma-mappings.js";
import { ServedDomain } from "./served-domain.js";

/** Bits of IOVA that devices reach: as much as the largest IOMMUs of today translate. */
const APERTURE_BITS = 57;

/**
 * The system IOMMU in front of one served device. There is no hardware: the device is told what its domain maps. Dirty
 * tracking requires that every write of the device is a message to this process.
 */
export class ServedIommu implements SystemIommu {
  readonly aperture = { first: 0, last: 2 ** APERTURE_BITS / PAGE_SIZE - 1 };
  readonly reserved = [];
  readonly #device: MappedDevice;
  readonly #lock: Lock;
  #domain: ServedDomain | null = null;

  /** @param lock of all devices and domains of the iommufd */
  constructor(device: MappedDevice, lock: Lock) {
    this.#device = device;
    this.#lock = lock;
  }

  get dirtyTracking(): boolean {
    return this.#device.byMessages;
  }

  hwInfo(): HwInfo {
    return { dirtyTracking: this.dirtyTracking, type: "none", pageSizes: [PAGE_SIZE], data: new Uint8Array(0) };
  }

  allocDomain({ dirtyTracking }: { dirtyTracking: boolean }): ServedDomain {
    if (dirtyTracking && !this.dirtyTracking) {
      const call = {
        syscall: "IOMMU_HWPT_ALLOC",
        attempted: `make an HWPT with dirty tracking for '${this.#device.id}'`,
      };
      refuse("EOPNOTSUPP", call, "its writes are not seen here: use its own log, or have its DMA go by messages");
    }
    return new ServedDomain(dirtyTracking, this.#lock);
  }

  /** What the old and the new domain map alike stays mapped all the time. A device that refuses a change is left detached. */
  async attach(port: Port, next: IommuDomain | null): Promise<void> {
    const call = { syscall: "VFIO_DEVICE_ATTACH_IOMMUFD_PT", attempted: `attach '${this.#device.id}'` };
    if (next !== null && !(next instanceof ServedDomain)) refuse("EINVAL", call, "make an HWPT for this device");
    if (next?.dirtyTracking && !this.dirtyTracking) {
      refuse("EINVAL", call, "its writes are not seen here: attach it to an HWPT without dirty tracking");
    }
    await this.#lock.run(() => (next === null ? this.#detach(port) : this.#replace(port, next)));
  }

  async #replace(port: Port, next: ServedDomain): Promise<void> {
    const device = this.#device;
    const wanted = new Map([...next.mappings].map(({ start, value }) => [start, value]));
    try {
      for (const [start, mapping] of [...device.mapped]) {
        if (!isSame(mapping, wanted.get(start))) await device.unmap(start);
      }
      // A write by messages is the new domain's from here on: the old one's last bits are in it already.
      device.target = next;
      for (const [start, mapping] of wanted) if (!device.mapped.has(start)) await device.map(start, mapping);
    } catch (error) {
      // Half of the new mappings are of no use, and some of the old ones are gone: the device reaches nothing.
      this.#leave(port);
      for (const start of [...device.mapped.keys()]) await device.unmap(start).catch(() => undefined);
      throw error;
    }
    this.#domain?.leave(port);
    this.#domain = next;
    next.join(port, device);
  }

  async #detach(port: Port): Promise<void> {
    for (const start of [...this.#device.mapped.keys()]) await this.#device.unmap(start);
    this.#leave(port);
  }

  #leave(port: Port): void {
    this.#device.target = null;
    this.#domain?.leave(port);
    this.#domain = null;
  }
}

function isSame(a: DmaMapping, b: DmaMapping | undefined): boolean {
  return (
    a.span.arena.memory === b?.span.arena.memory &&
    a.span.offset === b.span.offset &&
    a.span.length === b.span.length &&
    a.readable === b.readable &&
    a.writeable === b.writeable
  );
}
