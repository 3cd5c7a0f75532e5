import type { Call } from "../host/iommufd-checks.js";
import type { Ioas } from "./ioas.js";
import { IommufdObject } from "./objects.js";
import type { IommuDomain, SystemIommu } from "./system-iommu.js";

/**
 * A hardware page table (struct iommufd_hwpt_paging, hw_pagetable.c): a domain of one IOMMU that shows an IOAS.
 *
 * What holds: from its making to its end the domain maps what the IOAS maps, and the IOAS is held. `users` counts the
 * attached devices. One that an attach to an IOAS made (`auto`) ends with its last device.
 */
export class Hwpt extends IommufdObject {
  readonly ioas: Ioas;
  readonly iommu: SystemIommu;
  readonly domain: IommuDomain;
  /** Made by an attach to the IOAS, not by IOMMU_HWPT_ALLOC. */
  readonly auto: boolean;

  /** For {@link create}, which also fills the domain. */
  constructor(ioas: Ioas, iommu: SystemIommu, domain: IommuDomain, auto: boolean) {
    super();
    this.ioas = ioas;
    this.iommu = iommu;
    this.domain = domain;
    this.auto = auto;
  }

  /**
   * Makes a domain and shows the IOAS's areas in it.
   * @throws UapiError EOPNOTSUPP for dirty tracking that the IOMMU lacks; EADDRINUSE where something is mapped or
   * allowed outside its aperture; ENOMEM
   */
  static async create(args: {
    ioas: Ioas;
    iommu: SystemIommu;
    dirtyTracking: boolean;
    auto: boolean;
    call: Call;
  }): Promise<Hwpt> {
    const { ioas, iommu, dirtyTracking, auto, call } = args;
    const domain = iommu.allocDomain({ dirtyTracking });
    try {
      await ioas.lock.write(() => ioas.addDomain(domain, iommu.aperture, call));
    } catch (error) {
      domain.dispose();
      throw error;
    }
    const hwpt = new Hwpt(ioas, iommu, domain, auto);
    ioas.users++;
    ioas.hwpts.add(hwpt);
    return hwpt;
  }

  async destroy(): Promise<void> {
    this.ioas.hwpts.delete(this);
    // No device is attached, so the tables can go with all that they map.
    await this.ioas.lock.write(() => this.ioas.removeDomain(this.domain));
    this.domain.dispose();
    this.ioas.users--;
  }
}
