import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { HwInfo, MemorySpan } from "../host/host.js";
import type { PageNumber } from "../memory/address.js";

/*
 * The system IOMMU as a software iommufd sees it: the counterpart of struct iommu_ops and struct iommu_domain_ops with
 * their dirty_ops. A host supplies it: with page tables that device threads walk (emulated/iommu/), or with messages to a
 * device that another process serves (vfio-user/client/). iommufd knows neither, and neither knows iommufd.
 */

/** What an IOMMU knows a device by: its requester id. */
export type Port = number;

/** Memory that appears at consecutive pages. */
export interface DomainMapping {
  readonly page: PageNumber;
  /** Whole pages. */
  readonly memory: MemorySpan;
  readonly readable: boolean;
  readonly writeable: boolean;
  /** false: only leaves of the smallest size. */
  readonly hugePages: boolean;
}

/** A translation from IOVAs to memory, and the devices that go through it: what an HWPT holds. */
export interface IommuDomain {
  /** Made with IOMMU_HWPT_ALLOC_DIRTY_TRACKING: enforced at attach. */
  readonly dirtyTracking: boolean;
  /** Leaf sizes in bytes, ascending. */
  readonly pageSizes: readonly number[];
  /** The ports attached to it. */
  readonly ports: ReadonlySet<Port>;
  /**
   * Maps memory for every port that is attached, or for none. One promise per area: what there is to do per page is done
   * in one go.
   * @throws UapiError ENOMEM when there is no room for page tables, EEXIST where something is mapped, and what else the
   * IOMMU refuses
   */
  map(mapping: DomainMapping): Promise<void>;
  /**
   * Takes out exactly the pages of one {@link map} and resolves when no device can reach them any more. Their dirty bits
   * are added to `into`, taken after DMA in flight has ended. Pages that are not mapped are passed over.
   * @throws UapiError what the IOMMU refuses: then they can be unmapped again
   */
  unmap(args: { page: PageNumber; pages: number; into?: DirtyBitmap }): Promise<void>;
  /** Switching on clears old bits, flushes, and lets attached and later devices update bits (HAD, SSADE, HA and HD). */
  setDirtyTracking(on: boolean): Promise<void>;
  /** Reads, and with `clear` also clears, flushes and drains. Stops at the first hole, as Linux does. */
  readDirty(args: {
    page: PageNumber;
    pages: number;
    into: DirtyBitmap;
    clear: boolean;
  }): Promise<{ leafSizes: readonly number[] }>;
  /** Frees what it maps with. No port may be attached. */
  dispose(): void;
}

/** One IOMMU, with the devices behind it. */
export interface SystemIommu {
  readonly dirtyTracking: boolean;
  /** IOVAs that it can translate: the aperture, in pages, last one inclusive. */
  readonly aperture: { readonly first: PageNumber; readonly last: PageNumber };
  /** Ranges that no mapping may touch (the MSI window), in pages. */
  readonly reserved: readonly { readonly first: PageNumber; readonly last: PageNumber }[];
  hwInfo(): HwInfo;
  /** @throws UapiError EOPNOTSUPP for dirty tracking that the hardware lacks */
  allocDomain(options: { dirtyTracking: boolean }): IommuDomain;
  /**
   * Moves a port to a domain, without a moment in which what both domains map is blocked, or to none (DMA is blocked).
   * Resolves when nothing in flight uses the old one. A domain whose tracking is on is inherited.
   * @throws UapiError EINVAL where the domain is of another IOMMU, or wants dirty tracking and this IOMMU can't: then the
   * port is where it was. Whatever else goes wrong, the old domain's `ports` tell whether the port is still attached to it.
   */
  attach(port: Port, domain: IommuDomain | null): Promise<void>;
}
