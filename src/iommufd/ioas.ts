import type { IovaRange, MapFlags } from "../host/host.js";
import { type Call, lastOf, refuse } from "../host/iommufd-checks.js";
import { hex, type Iova, PAGE_SIZE, type PageNumber, pageOf, U64_MAX } from "../memory/address.js";
import type { Arena } from "../memory/arena.js";
import { holdsOf } from "../memory/holds.js";
import { contiguousParts, type Interval, IntervalMap } from "../memory/interval-map.js";
import { RwLock } from "../threads/rw-lock.js";
import { UapiError } from "../uapi/errno.js";
import type { Hwpt } from "./hwpt.js";
import { allocateIova, type CpuPages, holes, type Span } from "./iova-allocator.js";
import { IommufdObject } from "./objects.js";
import type { IommuDomain } from "./system-iommu.js";

/** Rounds of unmap callbacks before an unmap gives up: a driver that doesn't let go of its pins is broken. */
const UNMAP_TRIES = 100;

/** A callback that takes longer than this hangs. */
const UNMAP_CALLBACK_MS = 10_000;

const PAGE = BigInt(PAGE_SIZE);

/**
 * Memory as it was first mapped (struct iopt_pages), shared by the areas copied from it.
 * `writeable` is the first mapping's: a copy may be narrower, never wider.
 */
export interface Pages {
  readonly arena: Arena;
  readonly writeable: boolean;
}

/** A stretch of {@link Pages}, as IOMMU_IOAS_COPY takes it out of one IOAS and puts it into another. */
export interface PagesSlice {
  readonly pages: Pages;
  /** In bytes from the arena's start. */
  readonly offset: number;
  readonly length: bigint;
}

/** What lies at an interval of IOVAs (struct iopt_area). */
export interface Area extends PagesSlice {
  readonly readable: boolean;
  readonly writeable: boolean;
  /** Pins that accesses hold in it; while there are any it can't be unmapped. */
  pins: number;
  /** It is about to be unmapped: no new pin is given (prevent_access). */
  unmapping: boolean;
}

/** A part of an area inside a range that was asked for. */
export interface AreaPart {
  readonly area: Area;
  readonly start: bigint;
  readonly last: bigint;
  /** Of `start`, in bytes from the arena's start. */
  readonly offset: number;
}

/** What an IOAS needs of an access object: iommufd's side of struct iommufd_access. */
export interface AccessUser {
  /** Resolves when the owner has let go of its pins in the range. */
  notifyUnmap(iova: Iova, length: bigint): Promise<void>;
}

/**
 * An I/O address space (ioas.c, io_pagetable.c): what is mapped where, and the domains that must show it.
 *
 * What holds between any two calls:
 * - Areas are disjoint, lie outside every reserved stretch, and start, end and lie in memory at multiples of
 *   `alignment`, which is what the domains and accesses demand.
 * - Allowed stretches are disjoint and touch no reserved one.
 * - Every domain maps exactly the areas, readable and writeable as they are.
 * - The arena of each area is held once for it: nobody lets go of memory that a device may reach.
 * `lock` protects all of it: readers read dirty bits, writers change. Pins are counted without it, in one go, so that
 * an unmap callback, which runs outside the lock, can let go of them.
 */
export class Ioas extends IommufdObject {
  readonly #reaches: (arena: Arena) => boolean;
  readonly #cpuPages: CpuPages;
  readonly lock = new RwLock();
  /** The HWPTs made from it, oldest first: where an attach to the IOAS looks for one that fits. */
  readonly hwpts = new Set<Hwpt>();
  readonly #areas = new IntervalMap<bigint, Area>();
  #allowed = new IntervalMap<bigint, true>();
  readonly #reserved: (Span & { readonly owner: object })[] = [];
  readonly #domains: IommuDomain[] = [];
  readonly #accesses = new Set<AccessUser>();
  #alignment = 1n;
  #hugePages = true;

  /** @param reaches whether the host's devices can reach an arena at all */
  constructor(reaches: (arena: Arena) => boolean, cpuPages: CpuPages) {
    super();
    this.#reaches = reaches;
    this.#cpuPages = cpuPages;
  }

  get alignment(): number {
    return Number(this.#alignment);
  }

  get hugePages(): boolean {
    return this.#hugePages;
  }

  /** All areas, by ascending IOVA. */
  areas(): Iterable<Interval<bigint, Area>> {
    return this.#areas;
  }

  /** IOMMU_IOAS_IOVA_RANGES */
  iovaRanges(): IovaRange[] {
    return holes(this.#reserved, 0n, U64_MAX);
  }

  /** IOMMU_IOAS_ALLOW_IOVAS @throws UapiError EINVAL, EADDRINUSE */
  async allowIovas(ranges: readonly IovaRange[], call: Call): Promise<void> {
    await this.lock.write(() => {
      const allowed = new IntervalMap<bigint, true>();
      for (const { start, last } of ranges) {
        if (start < 0n || last > U64_MAX) refuse("EOVERFLOW", call);
        if (start >= last) refuse("EINVAL", call, "end each range behind its start");
        if (allowed.firstIn(start, last) !== undefined) refuse("EINVAL", call, "give ranges that don't overlap");
        allowed.insert(start, last, true);
      }
      if (ranges.some(({ start, last }) => this.#isReserved(start, last))) {
        refuse("EADDRINUSE", call, "allow only what iovaRanges() lists");
      }
      this.#allowed = allowed;
    });
  }

  /**
   * Maps slices one behind the other and returns the IOVA of the first.
   * @param total length of all slices in bytes
   * @throws UapiError EINVAL, EOVERFLOW, EEXIST, ENOSPC, EPERM, EFAULT, ENOMEM; then nothing is mapped
   */
  map(slices: readonly PagesSlice[], total: bigint, flags: MapFlags, call: Call): Promise<Iova> {
    return this.lock.write(async () => {
      if (total === 0n || total % this.#alignment !== 0n) {
        refuse("EINVAL", call, `give a length that is a multiple of ${this.#alignment}, above 0`);
      }
      const first = flags.iova ?? this.#allocate(BigInt(slices[0].offset), total, call);
      if (flags.iova !== undefined) this.#checkIova(first, total, call);
      for (const slice of slices) this.#checkSlice(slice, flags, call);
      const done: Interval<bigint, Area>[] = [];
      let start = first;
      try {
        for (const { pages, offset, length } of slices) {
          const area: Area = {
            pages,
            offset,
            length,
            readable: flags.readable,
            writeable: flags.writeable,
            pins: 0,
            unmapping: false,
          };
          await this.#fillDomains(start, area);
          const entry = { start, last: start + length - 1n, value: area };
          this.#insert(entry);
          done.push(entry);
          start += length;
        }
      } catch (error) {
        // What a domain keeps in spite of that stays mapped, and can be unmapped again.
        for (const entry of done) await this.#remove(entry).catch(() => undefined);
        throw error;
      }
      return first;
    });
  }

  /** What IOMMU_IOAS_COPY copies. @throws UapiError EINVAL, EOVERFLOW, ENOENT where a part isn't mapped */
  slices(iova: bigint, length: bigint, call: Call): PagesSlice[] {
    const last = lastOf(iova, length, call);
    const { parts, whole } = this.contiguous(iova, last);
    if (!whole) refuse("ENOENT", call, "copy what is mapped without a hole");
    return parts.map(({ area, offset, start, last }) => ({ pages: area.pages, offset, length: last - start + 1n }));
  }

  /** The mapped parts of [iova, last] from `iova` on up to the first hole; `whole` if there is none. */
  contiguous(iova: bigint, last: bigint): { parts: AreaPart[]; whole: boolean } {
    const { parts, whole } = contiguousParts(this.#areas, iova, last);
    return {
      parts: parts.map(({ value: area, start, last, skipped }) => ({
        area,
        start,
        last,
        offset: area.offset + Number(skipped),
      })),
      whole,
    };
  }

  /**
   * Unmaps the areas inside [start, last] and returns their bytes. Owners of accesses are asked to let go first; then
   * every domain forgets the area, and no device reaches it any more.
   * @throws UapiError ENOENT at an area that is partly outside, with the ones below it unmapped; EDEADLK where an
   * access keeps its pins
   */
  async unmap(start: bigint, last: bigint, call: Call): Promise<bigint> {
    let from = start;
    let bytes = 0n;
    let tries = 0;
    for (;;) {
      const pinned = await this.lock.write(async () => {
        for (;;) {
          const entry = from <= last ? this.#areas.firstIn(from, last) : undefined;
          if (entry === undefined) return undefined;
          if (entry.start < from || entry.last > last) {
            refuse("ENOENT", call, "unmap whole mappings");
          }
          if (entry.start !== from) tries = 0;
          from = entry.start;
          if (entry.value.pins > 0) {
            entry.value.unmapping = true;
            return entry;
          }
          await this.#remove(entry);
          bytes += entry.value.length;
          from = entry.last + 1n;
        }
      });
      if (pinned === undefined) return bytes;
      await this.notifyUnmap(pinned.start, pinned.value.length, call);
      if (++tries > UNMAP_TRIES) refuse("EDEADLK", call, "make the access's unmap callback release every pin");
      // One turn for owners that release their pins just after their callback.
      if (pinned.value.pins > 0) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Asks the owner of every access to let go of a range. @throws UapiError EDEADLK for one that never answers */
  async notifyUnmap(iova: bigint, length: bigint, call: Call): Promise<void> {
    for (const access of [...this.#accesses]) {
      await answered(access.notifyUnmap(iova, length), call);
    }
  }

  /** Shows every area in a domain, from now on. The caller holds `lock`. @throws UapiError EINVAL, EADDRINUSE, ENOMEM */
  async addDomain(domain: IommuDomain, aperture: { first: PageNumber; last: PageNumber }, call: Call): Promise<void> {
    const alignment = max(BigInt(domain.pageSizes[0]), this.#alignment);
    if (alignment > this.#cpuPages.size)
      refuse("EINVAL", call, `give a domain that can map ${this.#cpuPages.size} bytes`);
    if (alignment !== this.#alignment) this.#checkAlignment(alignment, call);
    this.reserve(apertureGaps(aperture), domain, call);
    const mapped: Interval<bigint, Area>[] = [];
    try {
      for (const entry of this.#areas) {
        await this.#mapInto(domain, entry.start, entry.value);
        mapped.push(entry);
      }
    } catch (error) {
      for (const { start, value } of mapped) await this.#unmapFrom(domain, start, value);
      this.unreserve(domain);
      throw error;
    }
    this.#alignment = alignment;
    this.#domains.push(domain);
  }

  /** Forgets a domain, whose tables the caller frees. The caller holds `lock`. */
  removeDomain(domain: IommuDomain): void {
    this.#domains.splice(this.#domains.indexOf(domain), 1);
    this.unreserve(domain);
    this.#alignment = this.#neededAlignment();
  }

  /** Keeps stretches free of mappings until {@link unreserve}. @throws UapiError EADDRINUSE where one is mapped or allowed */
  reserve(spans: readonly Span[], owner: object, call: Call): void {
    for (const { start, last } of spans) {
      if (this.#areas.firstIn(start, last) !== undefined || this.#allowed.firstIn(start, last) !== undefined) {
        this.unreserve(owner);
        refuse("EADDRINUSE", call, `unmap and disallow ${hex(start)} to ${hex(last)}, which the hardware can't use`);
      }
      this.#reserved.push({ start, last, owner });
    }
  }

  unreserve(owner: object): void {
    for (let i = this.#reserved.length - 1; i >= 0; i--) {
      if (this.#reserved[i].owner === owner) this.#reserved.splice(i, 1);
    }
  }

  /** @throws UapiError EADDRINUSE where an area is not aligned to pages, which pins need */
  addAccess(access: AccessUser, call: Call): void {
    if (this.#alignment < this.#cpuPages.size) this.#checkAlignment(this.#cpuPages.size, call);
    this.#accesses.add(access);
    this.#alignment = this.#neededAlignment();
  }

  removeAccess(access: AccessUser): void {
    this.#accesses.delete(access);
    this.#alignment = this.#neededAlignment();
  }

  /** IOMMU_OPTION_HUGE_PAGES @throws UapiError EINVAL where something is mapped in a domain, EADDRINUSE for unaligned areas */
  async setHugePages(on: boolean, call: Call): Promise<void> {
    await this.lock.write(() => {
      if (!on && this.#hugePages) {
        if (this.#domains.length > 0 && this.#areas.size > 0) {
          refuse("EINVAL", call, "set it before anything is mapped, or before the first device is attached");
        }
        this.#checkAlignment(this.#cpuPages.size, call);
      }
      this.#hugePages = on;
      this.#alignment = this.#neededAlignment();
    });
  }

  async destroy(): Promise<void> {
    await this.unmap(0n, U64_MAX, { syscall: "IOMMU_DESTROY", attempted: "unmap what the IOAS held" });
  }

  #allocate(address: bigint, length: bigint, call: Call): bigint {
    const used = [...this.#reserved, ...this.#areas];
    const iova = allocateIova({
      address,
      length,
      alignment: this.#alignment,
      allowed: this.#allowed,
      used,
      cpuPages: this.#cpuPages,
    });
    if (typeof iova === "string") refuse(iova, call);
    return iova;
  }

  #checkIova(iova: bigint, length: bigint, call: Call): void {
    if (iova % this.#alignment !== 0n) refuse("EINVAL", call, `give an IOVA that is a multiple of ${this.#alignment}`);
    const last = lastOf(iova, length, call);
    if (this.#isReserved(iova, last)) refuse("EINVAL", call, "map only in what iovaRanges() lists");
    if (this.#areas.firstIn(iova, last) !== undefined) refuse("EEXIST", call, "unmap first: nothing is replaced");
  }

  #checkSlice({ pages, offset, length }: PagesSlice, flags: MapFlags, call: Call): void {
    if (flags.writeable && !pages.writeable) refuse("EPERM", call, "map it writeable first, then copy it so");
    if ((BigInt(offset) % this.#cpuPages.size) % this.#alignment !== 0n) {
      refuse("EINVAL", call, `give memory that starts at a multiple of ${this.#alignment}`);
    }
    const { arena } = pages;
    if (BigInt(offset) + length > BigInt(arena.bytes) || !this.#reaches(arena)) {
      refuse("EFAULT", call, "give memory inside an arena that the devices of this host can reach");
    }
  }

  /** Shows a new area in all domains, or in none. */
  async #fillDomains(start: bigint, area: Area): Promise<void> {
    const filled: IommuDomain[] = [];
    try {
      for (const domain of this.#domains) {
        await this.#mapInto(domain, start, area);
        filled.push(domain);
      }
    } catch (error) {
      await Promise.allSettled(filled.map((domain) => this.#unmapFrom(domain, start, area)));
      throw error;
    }
  }

  #insert({ start, last, value }: Interval<bigint, Area>): void {
    this.#areas.insert(start, last, value);
    holdsOf(value.pages.arena).take();
  }

  /** An area that a domain refuses to unmap stays, to be unmapped again. */
  async #remove({ start, value: area }: Interval<bigint, Area>): Promise<void> {
    area.unmapping = true;
    // All at once, since each waits for its own devices' DMA to land; and for all, since the lock ends with this.
    const ends = await Promise.allSettled(this.#domains.map((domain) => this.#unmapFrom(domain, start, area)));
    for (const end of ends) if (end.status === "rejected") throw end.reason;
    this.#areas.delete(start);
    holdsOf(area.pages.arena).release();
  }

  #mapInto(domain: IommuDomain, start: bigint, { pages, offset, length, readable, writeable }: Area): Promise<void> {
    return domain.map({
      page: pageOf(start),
      memory: { arena: pages.arena, offset, length: Number(length) },
      readable,
      writeable,
      hugePages: this.#hugePages,
    });
  }

  #unmapFrom(domain: IommuDomain, start: bigint, { length }: Area): Promise<void> {
    return domain.unmap({ page: pageOf(start), pages: Number(length / PAGE) });
  }

  #isReserved(start: bigint, last: bigint): boolean {
    return this.#reserved.some((span) => span.start <= last && span.last >= start);
  }

  /** What the domains, the accesses and the option demand together. */
  #neededAlignment(): bigint {
    let alignment = this.#hugePages && this.#accesses.size === 0 ? 1n : this.#cpuPages.size;
    for (const { pageSizes } of this.#domains) alignment = max(alignment, BigInt(pageSizes[0]));
    return alignment;
  }

  #checkAlignment(alignment: bigint, call: Call): void {
    for (const { start, value } of this.#areas) {
      if (start % alignment !== 0n || value.length % alignment !== 0n || BigInt(value.offset) % alignment !== 0n) {
        refuse("EADDRINUSE", call, `unmap the mapping at ${hex(start)}, which is not aligned to ${alignment} bytes`);
      }
    }
  }
}

/** What lies outside an aperture. */
function apertureGaps({ first, last }: { first: PageNumber; last: PageNumber }): Span[] {
  const start = BigInt(first) * PAGE;
  const end = BigInt(last) * PAGE + PAGE - 1n;
  const gaps: Span[] = [];
  if (start > 0n) gaps.push({ start: 0n, last: start - 1n });
  if (end < U64_MAX) gaps.push({ start: end + 1n, last: U64_MAX });
  return gaps;
}

/** Waits for an unmap callback, but not for ever. @throws UapiError EDEADLK */
export async function answered(work: Promise<void>, call: Call): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(
        new UapiError("EDEADLK", {
          ...call,
          remedy: `an access's unmap callback has not returned for ${UNMAP_CALLBACK_MS} ms: reset its device`,
        }),
      );
    }, UNMAP_CALLBACK_MS);
  });
  try {
    await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

function max(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}
