import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { ObjectId } from "../../src/host/host.js";
import type { SoftwareIommufd } from "../../src/iommufd/iommufd.js";
import type { IommuDomain, Port, SystemIommu } from "../../src/iommufd/system-iommu.js";
import { PAGE_SIZE } from "../../src/memory/address.js";
import type { Rig } from "./side.js";
import type { Units } from "./units.js";

/** A host whose iommufd is in this process: devices come and go by its driver's calls, and its domains can be reached. */
export abstract class SoftwareRig<Domain extends IommuDomain> implements Rig {
  abstract readonly iommufd: SoftwareIommufd;
  abstract readonly units: Units;
  abstract readonly memory: Rig["memory"];
  readonly ioPage = PAGE_SIZE;
  /** The domains of HWPTs, by id. */
  protected readonly domains = new Map<ObjectId, Domain>();
  readonly #devices: number;
  readonly #ports = new Map<ObjectId, Port>();
  #made: Domain | null = null;

  /** @param devices that a sequence can have at once */
  constructor(devices: number) {
    this.#devices = devices;
  }

  async addDevice(pt: ObjectId, dirtyTracking: boolean): Promise<{ device: ObjectId; hwpt: ObjectId }> {
    const used = new Set(this.#ports.values());
    let port = 0;
    while (used.has(port)) port++;
    if (port >= this.#devices) throw new Error(`a sequence has up to ${this.#devices} devices`);
    const device = this.iommufd.bindDevice({ port, iommu: this.iommuOf(dirtyTracking), mdev: null });
    try {
      const hwpt = await this.#making(() => this.iommufd.attachDevice(device, pt));
      this.#ports.set(device, port);
      return { device, hwpt };
    } catch (error) {
      await this.iommufd.unbindDevice(device);
      throw error;
    }
  }

  replace(device: ObjectId, pt: ObjectId): Promise<ObjectId> {
    return this.#making(() => this.iommufd.attachDevice(device, pt));
  }

  async removeDevice(device: ObjectId): Promise<void> {
    await this.iommufd.unbindDevice(device);
    this.#ports.delete(device);
  }

  allocHwpt({ device, ioas, dirtyTracking }: Parameters<Rig["allocHwpt"]>[0]): Promise<ObjectId> {
    return this.#making(() => this.iommufd.allocHwpt({ device, ioas, dirtyTracking }));
  }

  abstract mark(hwpt: ObjectId, granules: DirtyBitmap): Promise<void>;

  abstract getDirtyBitmap(hwpt: ObjectId, query: Parameters<Rig["getDirtyBitmap"]>[1]): Promise<void>;

  async [Symbol.asyncDispose](): Promise<void> {
    for (const device of [...this.#ports.keys()]) await this.removeDevice(device);
    await this.iommufd[Symbol.asyncDispose]();
  }

  /** The IOMMU that a new device stands behind. */
  protected abstract iommuOf(dirtyTracking: boolean): SystemIommu;

  /** To be told of each domain that is made. */
  protected made(domain: Domain): void {
    this.#made = domain;
  }

  /** Notes which HWPT a domain that is made meanwhile belongs to. */
  async #making(work: () => Promise<ObjectId>): Promise<ObjectId> {
    this.#made = null;
    const id = await work();
    if (this.#made !== null) this.domains.set(id, this.#made);
    return id;
  }
}
