import type { BitmapQuery, HwInfo, Iommufd, IommuOption, MapFlags, ObjectId } from "../host/host.js";
import { type Iova, iovaOf, MiB, PAGE_SIZE, type PageNumber, pageOf } from "../memory/address.js";
import { type ErrnoName, UapiError } from "../uapi/errno.js";

/*
 * A scripted iommufd for tests of trackers and their reader: one thread, no page tables, but the uAPI's traps. It stops
 * at holes, cleans whole leaves, wipes the bits when tracking is switched on, and counts references.
 */

interface Area {
  readonly iova: Iova;
  readonly length: bigint;
  readonly writeable: boolean;
}

interface Ioas {
  readonly areas: Area[];
  hugePages: boolean;
}

interface Domain {
  readonly ioas: ObjectId;
  readonly dirtyTracking: boolean;
  /** Which IOMMU it was made for; null for an emulated one. */
  readonly iommu: string | null;
  readonly automatic: boolean;
  readonly emulated: boolean;
  readonly attached: Set<ObjectId>;
  /** First pages of leaves. */
  readonly dirty: Set<PageNumber>;
  on: boolean;
}

/** Large leaves of the fake page table. */
export const LARGE_LEAF = 2 * MiB;

export class FakeIommufd implements Iommufd {
  /** The calls that change something, for tests of their order. */
  readonly log: string[] = [];
  readonly ioases = new Map<ObjectId, Ioas>();
  readonly domains = new Map<ObjectId, Domain>();
  readonly #devices = new Map<
    ObjectId,
    { iommu: string | null; dirtyTracking: boolean; attachedTo: ObjectId | null }
  >();
  /** Errors that the next reads answer with. */
  readonly failReads: ErrnoName[] = [];
  emulatedIommu = true;
  #next = 1;

  bindFake(iommu: string | null, dirtyTracking: boolean): ObjectId {
    const id = this.#next++;
    this.#devices.set(id, { iommu, dirtyTracking, attachedTo: null });
    return id;
  }

  attachFake(deviceId: ObjectId, pt: ObjectId): ObjectId {
    const device = this.#device(deviceId);
    let id = pt;
    if (this.ioases.has(pt)) {
      const automatic = [...this.domains].find(([, d]) => d.automatic && d.ioas === pt && d.iommu === device.iommu);
      id =
        automatic?.[0] ??
        this.#addDomain({ ioas: pt, dirtyTracking: false, iommu: device.iommu, automatic: true, emulated: false });
    }
    const domain = this.#domain(id);
    if (domain.iommu !== device.iommu) throw refuse("EINVAL", "attach across IOMMUs");
    if (device.attachedTo !== null) this.#detach(deviceId, device.attachedTo);
    domain.attached.add(deviceId);
    device.attachedTo = id;
    this.log.push(`attach ${deviceId} to ${this.ioases.has(pt) ? `IOAS ${pt}` : `domain ${id}`}`);
    return id;
  }

  /** A device writes a page through whatever it is attached to. False: nothing is mapped there. */
  dma(deviceId: ObjectId, page: PageNumber): boolean {
    const { attachedTo } = this.#device(deviceId);
    if (attachedTo === null) return false;
    const domain = this.#domain(attachedTo);
    const area = this.#areaAt(domain, page);
    if (area?.writeable !== true) return false;
    if (domain.on) domain.dirty.add(this.#leaf(domain, area, page).first);
    return true;
  }

  async allocIoas(): Promise<ObjectId> {
    const id = this.#next++;
    this.ioases.set(id, { areas: [], hugePages: true });
    return id;
  }

  mapFake(ioas: ObjectId, area: Area): void {
    this.#ioas(ioas).areas.push(area);
  }

  async copy(from: { ioas: ObjectId; iova: Iova; length: bigint }, to: { ioas: ObjectId } & MapFlags): Promise<Iova> {
    const source = this.#ioas(from.ioas).areas.find(({ iova, length }) => iova === from.iova && length === from.length);
    if (source === undefined) throw refuse("ENOENT", "copy what is no whole area");
    const iova = to.iova ?? from.iova;
    this.mapFake(to.ioas, { iova, length: from.length, writeable: to.writeable });
    return iova;
  }

  async unmap(ioas: ObjectId, iova: Iova, length: bigint): Promise<bigint> {
    const { areas } = this.#ioas(ioas);
    const at = areas.findIndex((area) => area.iova === iova && area.length === length);
    if (at < 0) throw refuse("ENOENT", "unmap what is no whole area");
    areas.splice(at, 1);
    for (const domain of this.domains.values()) {
      if (domain.ioas !== ioas) continue;
      for (const page of domain.dirty) {
        if (iovaOf(page) >= iova && iovaOf(page) < iova + length) domain.dirty.delete(page);
      }
    }
    return length;
  }

  async setOption(option: IommuOption, value: number): Promise<void> {
    if (option.option !== "HUGE_PAGES") throw refuse("EOPNOTSUPP", option.option);
    const ioas = this.#ioas(option.ioas);
    if (ioas.areas.length > 0) throw refuse("EINVAL", "set HUGE_PAGES where something is mapped");
    ioas.hugePages = value !== 0;
  }

  async getOption(option: IommuOption): Promise<number> {
    return option.option === "HUGE_PAGES" && !this.#ioas(option.ioas).hugePages ? 0 : 1;
  }

  async hwInfo(deviceId: ObjectId): Promise<HwInfo> {
    const { dirtyTracking } = this.#device(deviceId);
    return { dirtyTracking, type: "amd", pageSizes: [PAGE_SIZE, LARGE_LEAF], data: new Uint8Array(0) };
  }

  async allocHwpt(args: { device: ObjectId; ioas: ObjectId; dirtyTracking: boolean }): Promise<ObjectId> {
    const { iommu, dirtyTracking } = this.#device(args.device);
    if (args.dirtyTracking && !dirtyTracking) throw refuse("EOPNOTSUPP", "allocate an HWPT with dirty tracking");
    return this.#addDomain({
      ioas: args.ioas,
      dirtyTracking: args.dirtyTracking,
      iommu,
      automatic: false,
      emulated: false,
    });
  }

  async allocEmulatedIommu(ioas: ObjectId): Promise<ObjectId> {
    if (!this.emulatedIommu) throw refuse("EOPNOTSUPP", "allocate an emulated IOMMU");
    return this.#addDomain({ ioas, dirtyTracking: true, iommu: null, automatic: false, emulated: true });
  }

  async setDirtyTracking(hwpt: ObjectId, on: boolean): Promise<void> {
    const domain = this.#domain(hwpt);
    if (!domain.dirtyTracking) throw refuse("EOPNOTSUPP", "track with an HWPT made without");
    if (on) domain.dirty.clear();
    domain.on = on;
    this.log.push(`tracking of ${hwpt} ${on ? "on" : "off"}`);
  }

  async getDirtyBitmap(hwpt: ObjectId, query: BitmapQuery & { clear: boolean }): Promise<{ leafSizes: number[] }> {
    const failure = this.failReads.shift();
    if (failure !== undefined) throw refuse(failure, "read dirty bits");
    const domain = this.#domain(hwpt);
    if (!domain.on) throw refuse("EINVAL", "read where tracking is off");
    if (!query.clear && domain.emulated) throw refuse("EOPNOTSUPP", "look without clearing");
    const end = pageOf(query.iova + query.length);
    const first = pageOf(query.iova);
    const leafSizes = new Set<number>();
    for (let page = first; page < end; ) {
      const area = this.#areaAt(domain, page);
      if (area === undefined) break;
      const leaf = this.#leaf(domain, area, page);
      leafSizes.add(leaf.pages * PAGE_SIZE);
      const next = leaf.first + leaf.pages;
      if (domain.dirty.has(leaf.first)) {
        query.into.setRange(page - first, Math.min(next, end) - page);
        if (query.clear) domain.dirty.delete(leaf.first);
      }
      page = next;
    }
    return { leafSizes: [...leafSizes] };
  }

  async destroy(id: ObjectId): Promise<void> {
    const domain = this.domains.get(id);
    if (domain !== undefined) {
      if (domain.attached.size > 0) throw refuse("EBUSY", "destroy an attached HWPT");
      this.domains.delete(id);
    } else {
      if (!this.ioases.has(id)) throw refuse("ENOENT", "destroy an unknown object");
      if ([...this.domains.values()].some(({ ioas }) => ioas === id)) throw refuse("EBUSY", "destroy an IOAS in use");
      this.ioases.delete(id);
    }
    this.log.push(`destroy ${id}`);
  }

  async iovaRanges(): Promise<never> {
    throw refuse("ENOTTY", "list IOVA ranges");
  }

  async allowIovas(): Promise<never> {
    throw refuse("ENOTTY", "allow IOVAs");
  }

  async map(): Promise<never> {
    throw refuse("ENOTTY", "map");
  }

  async mapFile(): Promise<never> {
    throw refuse("ENOTTY", "map a file");
  }

  async createAccess(): Promise<never> {
    throw refuse("ENOTTY", "create an access");
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  #addDomain(domain: Pick<Domain, "ioas" | "dirtyTracking" | "iommu" | "automatic" | "emulated">): ObjectId {
    const id = this.#next++;
    this.domains.set(id, { ...domain, attached: new Set(), dirty: new Set(), on: false });
    return id;
  }

  /** A domain that the kernel made goes with its last device. */
  #detach(deviceId: ObjectId, id: ObjectId): void {
    const domain = this.#domain(id);
    domain.attached.delete(deviceId);
    if (domain.automatic && domain.attached.size === 0) this.domains.delete(id);
  }

  #areaAt(domain: Domain, page: PageNumber): Area | undefined {
    const iova = iovaOf(page);
    return this.#ioas(domain.ioas).areas.find((area) => area.iova <= iova && iova < area.iova + area.length);
  }

  #leaf(domain: Domain, area: Area, page: PageNumber): { first: PageNumber; pages: number } {
    const pages = LARGE_LEAF / PAGE_SIZE;
    const first = page - (page % pages);
    const start = pageOf(area.iova);
    const fits = first >= start && first + pages <= start + Number(area.length) / PAGE_SIZE;
    return this.#ioas(domain.ioas).hugePages && fits ? { first, pages } : { first: page, pages: 1 };
  }

  #device(id: ObjectId) {
    return found(this.#devices.get(id));
  }

  #domain(id: ObjectId): Domain {
    return found(this.domains.get(id));
  }

  #ioas(id: ObjectId): Ioas {
    return found(this.ioases.get(id));
  }
}

function found<T>(object: T | undefined): T {
  if (object === undefined) throw refuse("ENOENT", "use an unknown object");
  return object;
}

export function refuse(code: ErrnoName, attempted: string): UapiError {
  return new UapiError(code, { syscall: "fake", attempted });
}
