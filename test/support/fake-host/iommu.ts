import type { DirtyBitmap } from "../../../src/bitmap/dirty-bitmap.js";
import type { HwInfo } from "../../../src/host/host.js";
import { SoftwareIommufd } from "../../../src/iommufd/iommufd.js";
import type { DomainMapping, IommuDomain, Port, SystemIommu } from "../../../src/iommufd/system-iommu.js";
import { iovaOf, PAGE_SIZE, type PageNumber } from "../../../src/memory/address.js";
import type { Arena } from "../../../src/memory/arena.js";
import { InFlight } from "../../../src/memory/in-flight.js";
import { UapiError } from "../../../src/uapi/errno.js";

/** An iommufd of a host with mdevs, whose devices reach these arenas. */
export function openIommufd(arenas: readonly Arena[], inFlight = InFlight.allocate(8)): SoftwareIommufd {
  return new SoftwareIommufd({
    reaches: ({ memory }) => arenas.some((arena) => arena.memory === memory),
    mdevs: inFlight,
  });
}

/** A system IOMMU in a few lines: one Map of pages per domain. Its leaves are of 4 KiB, unless it has larger ones, too. */
export class FakeIommu implements SystemIommu {
  readonly dirtyTracking: boolean;
  readonly aperture: { first: PageNumber; last: PageNumber };
  readonly reserved: { first: PageNumber; last: PageNumber }[];
  /** Leaf sizes in bytes, ascending. */
  readonly pageSizes: readonly number[];
  /** Where each port points; null after a detach. */
  readonly attached = new Map<Port, FakeDomain | null>();
  readonly domains: FakeDomain[] = [];
  /** What the next attach of a port does instead. */
  refusal: Error | null = null;

  constructor(options: Partial<Pick<FakeIommu, "dirtyTracking" | "aperture" | "reserved" | "pageSizes">> = {}) {
    this.dirtyTracking = options.dirtyTracking ?? true;
    this.aperture = options.aperture ?? { first: 0, last: 2 ** 36 - 1 };
    this.pageSizes = options.pageSizes ?? [PAGE_SIZE];
    this.reserved = options.reserved ?? [{ first: 0xfee00, last: 0xfeeff }];
  }

  hwInfo(): HwInfo {
    return { dirtyTracking: this.dirtyTracking, type: "amd", pageSizes: [...this.pageSizes], data: new Uint8Array(16) };
  }

  allocDomain({ dirtyTracking }: { dirtyTracking: boolean }): FakeDomain {
    if (dirtyTracking && !this.dirtyTracking) {
      throw new UapiError("EOPNOTSUPP", { syscall: "alloc", attempted: "make a domain that tracks" });
    }
    const domain = new FakeDomain(this, dirtyTracking);
    this.domains.push(domain);
    return domain;
  }

  async attach(port: Port, domain: IommuDomain | null): Promise<void> {
    if (this.refusal !== null) throw this.refusal;
    const fits = domain === null || (domain instanceof FakeDomain && domain.iommu === this);
    if (!fits || (domain?.dirtyTracking === true && !this.dirtyTracking)) {
      throw new UapiError("EINVAL", { syscall: "attach", attempted: "attach a domain that doesn't fit" });
    }
    this.attached.get(port)?.ports.delete(port);
    this.attached.set(port, domain);
    domain?.ports.add(port);
  }

  /** What a device's DMA does. False: blocked. */
  write(port: Port, page: PageNumber): boolean {
    return this.attached.get(port)?.write(page) ?? false;
  }
}

/** What is clean or dirty as a whole. */
interface FakeLeaf {
  readonly first: PageNumber;
  readonly pages: number;
  dirty: boolean;
}

export interface FakeEntry {
  /** In bytes from its arena's start. */
  readonly offset: number;
  readonly readable: boolean;
  readonly writeable: boolean;
  readonly hugePages: boolean;
  readonly leaf: FakeLeaf;
}

export class FakeDomain implements IommuDomain {
  readonly iommu: FakeIommu;
  readonly dirtyTracking: boolean;
  readonly pageSizes: readonly number[];
  readonly ports = new Set<Port>();
  readonly entries = new Map<PageNumber, FakeEntry>();
  tracking = false;
  disposed = false;
  /** Pages that it can hold: beyond, ENOMEM. */
  capacity = Number.POSITIVE_INFINITY;

  constructor(iommu: FakeIommu, dirtyTracking: boolean) {
    this.iommu = iommu;
    this.dirtyTracking = dirtyTracking;
    this.pageSizes = iommu.pageSizes;
  }

  async map({ page, memory, ...rest }: DomainMapping): Promise<void> {
    const pages = memory.length / PAGE_SIZE;
    if (this.entries.size + pages > this.capacity) {
      throw new UapiError("ENOMEM", { syscall: "map", attempted: "map beyond the fake's capacity" });
    }
    for (let done = 0; done < pages; ) {
      const offset = memory.offset + done * PAGE_SIZE;
      const leaf = this.#leafFor(page + done, offset, rest.hugePages ? pages - done : 1);
      for (const end = done + leaf.pages; done < end; done++) {
        if (this.entries.has(page + done)) throw new Error(`page ${page + done} is mapped already`);
        this.entries.set(page + done, { ...rest, offset: memory.offset + done * PAGE_SIZE, leaf });
      }
    }
  }

  /** The largest leaf that page and memory are aligned to, of at most so many pages. */
  #leafFor(page: PageNumber, offset: number, most: number): FakeLeaf {
    const bytes = this.pageSizes.findLast(
      (size) => size <= most * PAGE_SIZE && (page * PAGE_SIZE) % size === 0 && offset % size === 0,
    );
    return { first: page, pages: (bytes ?? PAGE_SIZE) / PAGE_SIZE, dirty: false };
  }

  async unmap({ page, pages }: { page: PageNumber; pages: number }): Promise<void> {
    for (let i = 0; i < pages; i++) {
      if (!this.entries.delete(page + i)) throw new Error(`page ${page + i} is not mapped`);
    }
    await new Promise((resolve) => setImmediate(resolve));
  }

  async setDirtyTracking(on: boolean): Promise<void> {
    if (on) for (const { leaf } of this.entries.values()) leaf.dirty = false;
    this.tracking = on;
  }

  async readDirty(args: {
    page: PageNumber;
    pages: number;
    into: DirtyBitmap;
    clear: boolean;
  }): Promise<{ leafSizes: readonly number[] }> {
    const { page, pages, into, clear } = args;
    const leafSizes = new Set<number>();
    for (let next = page; next < page + pages; ) {
      const leaf = this.entries.get(next)?.leaf;
      if (leaf === undefined) break;
      leafSizes.add(leaf.pages * PAGE_SIZE);
      const end = leaf.first + leaf.pages;
      // A bit for each page that was asked for; cleaned is all of the leaf.
      for (; next < Math.min(end, page + pages); next++) {
        if (leaf.dirty) into.set(Number((iovaOf(next) - into.iova) / BigInt(into.granule)));
      }
      if (clear) leaf.dirty = false;
    }
    return { leafSizes: [...leafSizes] };
  }

  write(page: PageNumber): boolean {
    const entry = this.entries.get(page);
    if (!entry?.writeable) return false;
    if (this.tracking) entry.leaf.dirty = true;
    return true;
  }

  dispose(): void {
    if (this.ports.size > 0) throw new Error("a port is attached");
    this.disposed = true;
  }
}
