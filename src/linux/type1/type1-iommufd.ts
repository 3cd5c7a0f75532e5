import type { BitmapQuery, HwInfo, Iommufd, IovaRange, MapFlags, MemorySpan, ObjectId } from "../../host/host.js";
import { type Iova, U64_MAX } from "../../memory/address.js";
import { type ErrnoName, UapiError } from "../../uapi/errno.js";
import type { LinuxType1Container } from "./container.js";

/** The container's address space, in an iommufd's words. */
export const CONTAINER_IOAS: ObjectId = 1;

/** A container without an IOMMU sets no limits. */
const EVERYWHERE: readonly IovaRange[] = [{ start: 0n, last: U64_MAX }];

/**
 * A type1 container in the place of an iommufd: one IOAS, and no page tables that could be
 * made, attached or tracked one by one. So whoever works on a machine's memory through iommufd works on a container's, too;
 * what needs more is refused with EOPNOTSUPP.
 */
export class Type1Iommufd implements Iommufd {
  readonly #container: LinuxType1Container;
  #allocated = false;

  constructor(container: LinuxType1Container) {
    this.#container = container;
  }

  /** The container's address space, the only one that it has. @throws UapiError EOPNOTSUPP the second time */
  async allocIoas(): Promise<ObjectId> {
    if (this.#allocated) return refuse("EOPNOTSUPP", "IOMMU_IOAS_ALLOC", "make another IOAS");
    this.#allocated = true;
    return CONTAINER_IOAS;
  }

  async iovaRanges(ioas: ObjectId): Promise<{ ranges: IovaRange[]; alignment: number }> {
    checkIoas(ioas, "IOMMU_IOAS_IOVA_RANGES");
    const { iovaRanges, pageSize } = this.#container.info();
    return { ranges: [...(iovaRanges ?? EVERYWHERE)], alignment: pageSize };
  }

  async allowIovas(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_IOAS_ALLOW_IOVAS", "allow IOVAs");
  }

  /** @throws UapiError EOPNOTSUPP without an address: a container has no IOVA allocator */
  async map(ioas: ObjectId, span: MemorySpan, { iova, readable, writeable }: MapFlags): Promise<Iova> {
    checkIoas(ioas, "IOMMU_IOAS_MAP");
    if (iova === undefined) return refuse("EOPNOTSUPP", "IOMMU_IOAS_MAP", "map memory without an address");
    await this.#container.mapDma({ iova, span, readable, writeable });
    return iova;
  }

  async mapFile(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_IOAS_MAP_FILE", "map a file");
  }

  async copy(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_IOAS_COPY", "copy mappings");
  }

  async unmap(ioas: ObjectId, iova: Iova, length: bigint): Promise<bigint> {
    checkIoas(ioas, "IOMMU_IOAS_UNMAP");
    if (iova === 0n && length === U64_MAX) return this.#container.unmapDma({ iova: 0n, length: 0n, all: true });
    const unmapped = await this.#container.unmapDma({ iova, length });
    // Where nothing is mapped, iommufd answers an error, and a container 0.
    return unmapped > 0n ? unmapped : refuse("ENOENT", "IOMMU_IOAS_UNMAP", "unmap where nothing is mapped");
  }

  async setOption(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_OPTION", "set an option");
  }

  async getOption(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_OPTION", "get an option");
  }

  /** Nothing is known of the IOMMU, and its dirty bits can't be read. */
  async hwInfo(): Promise<HwInfo> {
    return { dirtyTracking: false, type: "none", pageSizes: [], data: new Uint8Array(0) };
  }

  async allocHwpt(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_HWPT_ALLOC", "make an HWPT");
  }

  async allocEmulatedIommu(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_EMULATED_IOMMU_ALLOC", "make an emulated IOMMU");
  }

  async setDirtyTracking(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_HWPT_SET_DIRTY_TRACKING", "track a page table");
  }

  async getDirtyBitmap(_hwpt: ObjectId, _query: BitmapQuery): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_HWPT_GET_DIRTY_BITMAP", "read a page table's dirty bits");
  }

  async createAccess(): Promise<never> {
    return refuse("EOPNOTSUPP", "iommufd_access_create", "make an access");
  }

  async destroy(): Promise<never> {
    return refuse("EOPNOTSUPP", "IOMMU_DESTROY", "destroy an object of the container");
  }

  /** Unmaps all; the container is its host's to close. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#allocated = false;
    // Without a device nothing is mapped.
    if (this.#container.hasIommu) await this.#container.unmapDma({ iova: 0n, length: 0n, all: true });
  }
}

function checkIoas(ioas: ObjectId, syscall: string): void {
  if (ioas !== CONTAINER_IOAS) refuse("ENOENT", syscall, `use object ${ioas}`, `the container is ${CONTAINER_IOAS}`);
}

function refuse(code: ErrnoName, syscall: string, attempted: string, remedy = REMEDY): never {
  throw new UapiError(code, { syscall, attempted: `${attempted} in a type1 container`, remedy });
}

const REMEDY = "open the devices by their character devices and an iommufd instead";
