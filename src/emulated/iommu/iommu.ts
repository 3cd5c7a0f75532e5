import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { HwInfo } from "../../host/host.js";
import type { PageNumber } from "../../memory/address.js";

/*
 * The system IOMMU as iommufd sees it: the emulated counterpart of struct iommu_ops and struct iommu_domain_ops with
 * their dirty_ops. iommufd/ calls it and knows no page-table format; the formats know nothing of iommufd.
 */

/** Index of a device's port: its requester id, and its words in InFlight. */
export type Port = number;

/** A page table, and the devices that translate through it: what an HWPT holds. */
export interface IommuDomain {
  /** Made with IOMMU_HWPT_ALLOC_DIRTY_TRACKING: enforced at attach. */
  readonly dirtyTracking: boolean;
  /** Leaf sizes in bytes, ascending. */
  readonly pageSizes: readonly number[];
  readonly ports: ReadonlySet<Port>;
  /**
   * Maps pages to consecutive frames, with the largest leaves that fit unless `hugePages` is false.
   * @throws UapiError ENOMEM when the page-table arena is full, EEXIST where something is mapped
   */
  map(args: {
    page: PageNumber;
    frame: PageNumber;
    pages: number;
    readable: boolean;
    writeable: boolean;
    hugePages: boolean;
  }): void;
  /**
   * Takes pages out of the table and resolves when no device can reach them any more. Dirty bits come along by
   * atomic exchange, taken after the drain, and are added to `into`. A leaf that is partly outside must not happen.
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
  /** Frees the tables. No port may be attached. */
  dispose(): void;
}

/** One IOMMU, with the devices behind it. */
export interface SystemIommu {
  readonly dirtyTracking: boolean;
  /** IOVAs that it can translate: the aperture, in pages, last one inclusive. */
  readonly aperture: { readonly first: PageNumber; readonly last: PageNumber };
  /** Stretches that no mapping may touch (the MSI window), in pages. */
  readonly reserved: readonly { readonly first: PageNumber; readonly last: PageNumber }[];
  hwInfo(): HwInfo;
  /** @throws UapiError EOPNOTSUPP for dirty tracking that the hardware lacks */
  allocDomain(options: { dirtyTracking: boolean }): IommuDomain;
  /**
   * Points the port's device-table entry at a domain, in one step also where one was attached, or at none (DMA is
   * blocked). Resolves when nothing in flight uses the old one. A domain whose tracking is on is inherited.
   * @throws UapiError EINVAL where the domain wants dirty tracking and this IOMMU can't
   */
  attach(port: Port, domain: IommuDomain | null): Promise<void>;
}
