import type { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type { HwInfo } from "../host/host.js";
import { iovaOf, PAGE_SIZE, type PageNumber } from "../memory/address.js";
import type { Arena } from "../memory/arena.js";
import { InFlight } from "../memory/in-flight.js";
import { type ErrnoName, UapiError } from "../uapi/errno.js";
import { SoftwareIommufd } from "./iommufd.js";
import type { DomainMapping, IommuDomain, Port, SystemIommu } from "./system-iommu.js";

/** The errno that a call is refused with. */
export async function errno(call: Promise<unknown>): Promise<ErrnoName | "none"> {
  return call.then(
    () => "none" as const,
    (error: { code: ErrnoName }) => error.code,
  );
}

/** An iommufd of a host with mdevs, whose devices reach these arenas. */
export function openIommufd(arenas: readonly Arena[], inFlight = InFlight.allocate(8)): SoftwareIommufd {
  return new SoftwareIommufd({
    reaches: ({ memory }) => arenas.some((arena) => arena.memory === memory),
    mdevs: inFlight,
  });
}

/** A system IOMMU in a few lines: one Map of pages per domain, and leaves of 4 KiB. */
export class FakeIommu implements SystemIommu {
  readonly dirtyTracking: boolean;
  readonly aperture: { first: PageNumber; last: PageNumber };
  readonly reserved: { first: PageNumber; last: PageNumber }[];
  /** Where each port points; null after a detach. */
  readonly attached = new Map<Port, FakeDomain | null>();
  readonly domains: FakeDomain[] = [];
  /** What the next attach of a port does instead. */
  refusal: Error | null = null;

  constructor(options: Partial<Pick<FakeIommu, "dirtyTracking" | "aperture" | "reserved">> = {}) {
    this.dirtyTracking = options.dirtyTracking ?? true;
    this.aperture = options.aperture ?? { first: 0, last: 2 ** 36 - 1 };
    this.reserved = options.reserved ?? [{ first: 0xfee00, last: 0xfeeff }];
  }

  hwInfo(): HwInfo {
    return { dirtyTracking: this.dirtyTracking, type: "amd", pageSizes: [PAGE_SIZE], data: new Uint8Array(16) };
  }

  allocDomain({ dirtyTracking }: { dirtyTracking: boolean }): FakeDomain {
    if (dirtyTracking && !this.dirtyTracking) {
      throw new UapiError("EOPNOTSUPP", { syscall: "alloc", attempted: "make a domain that tracks" });
    }
    const domain = new FakeDomain(dirtyTracking);
    this.domains.push(domain);
    return domain;
  }

  async attach(port: Port, domain: IommuDomain | null): Promise<void> {
    if (this.refusal !== null) throw this.refusal;
    if (domain !== null && (!(domain instanceof FakeDomain) || (domain.dirtyTracking && !this.dirtyTracking))) {
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

export interface FakeEntry {
  /** In bytes from its arena's start. */
  readonly offset: number;
  readonly readable: boolean;
  readonly writeable: boolean;
  readonly hugePages: boolean;
  dirty: boolean;
}

export class FakeDomain implements IommuDomain {
  readonly dirtyTracking: boolean;
  readonly pageSizes = [PAGE_SIZE];
  readonly ports = new Set<Port>();
  readonly entries = new Map<PageNumber, FakeEntry>();
  tracking = false;
  disposed = false;
  /** Pages that it can hold: beyond, ENOMEM. */
  capacity = Number.POSITIVE_INFINITY;

  constructor(dirtyTracking: boolean) {
    this.dirtyTracking = dirtyTracking;
  }

  async map({ page, memory, ...rest }: DomainMapping): Promise<void> {
    const pages = memory.length / PAGE_SIZE;
    if (this.entries.size + pages > this.capacity) {
      throw new UapiError("ENOMEM", { syscall: "map", attempted: "map beyond the fake's capacity" });
    }
    for (let i = 0; i < pages; i++) {
      if (this.entries.has(page + i)) throw new Error(`page ${page + i} is mapped already`);
      this.entries.set(page + i, { ...rest, offset: memory.offset + i * PAGE_SIZE, dirty: false });
    }
  }

  async unmap({ page, pages }: { page: PageNumber; pages: number }): Promise<void> {
    for (let i = 0; i < pages; i++) {
      if (!this.entries.delete(page + i)) throw new Error(`page ${page + i} is not mapped`);
    }
    await new Promise((resolve) => setImmediate(resolve));
  }

  async setDirtyTracking(on: boolean): Promise<void> {
    if (on) for (const entry of this.entries.values()) entry.dirty = false;
    this.tracking = on;
  }

  async readDirty(args: {
    page: PageNumber;
    pages: number;
    into: DirtyBitmap;
    clear: boolean;
  }): Promise<{ leafSizes: readonly number[] }> {
    const { page, pages, into, clear } = args;
    for (let p = page; p < page + pages; p++) {
      const entry = this.entries.get(p);
      if (entry === undefined) break;
      if (!entry.dirty) continue;
      into.set(Number((iovaOf(p) - into.iova) / BigInt(into.granule)));
      if (clear) entry.dirty = false;
    }
    return { leafSizes: [PAGE_SIZE] };
  }

  write(page: PageNumber): boolean {
    const entry = this.entries.get(page);
    if (!entry?.writeable) return false;
    if (this.tracking) entry.dirty = true;
    return true;
  }

  dispose(): void {
    if (this.ports.size > 0) throw new Error("a port is attached");
    this.disposed = true;
  }
}
