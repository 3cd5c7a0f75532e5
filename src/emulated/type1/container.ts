import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { AccessCallbacks, MemorySpan } from "../../host/host.js";
import { type Call, lastOf, refuse } from "../../host/iommufd-checks.js";
import type { Type1Iommu } from "../../host/type1.js";
import { answered } from "../../iommufd/ioas.js";
import { PinLog } from "../../iommufd/pin-log.js";
import type { IommuDomain, Port, SystemIommu } from "../../iommufd/system-iommu.js";
import { hex, type Iova, iovaOf, PAGE_SIZE, type PageNumber, pageOf, U64_MAX } from "../../memory/address.js";
import { type Interval, IntervalMap } from "../../memory/interval-map.js";
import { RwLock } from "../../threads/rw-lock.js";
import { isErrno } from "../../uapi/errno.js";
import type { PhysicalMemory } from "../physical-memory.js";

/** Mappings that one container holds, unless vfio_iommu_type1's parameter dma_entry_limit says otherwise. */
const MAX_MAPPINGS = 65_535;

/** DIRTY_BITMAP_PAGES_MAX (INT_MAX): a bitmap has at most 256 MiB. */
const MAX_BITMAP_PAGES = 2 ** 31 - 1;

/** How often an mdev is asked for its pins of one mapping before the unmap gives up (Linux crashes then). */
const UNMAP_TRIES = 10;

const PAGE = BigInt(PAGE_SIZE);

/** One mapping (struct vfio_dma). */
interface Dma {
  readonly span: MemorySpan;
  readonly readable: boolean;
  readonly writeable: boolean;
  /** Pins that the container's mdevs hold in it. */
  pins: number;
  /** All of it counts as dirty at the next read: a device that reported nothing has left. */
  allDirty: boolean;
}

/** A device of a container. */
interface Member {
  readonly port: Port;
  readonly iommu: SystemIommu | null;
  readonly pinnedScope: boolean;
  readonly callbacks: AccessCallbacks | null;
  readonly pins: PinLog;
  readonly domain: IommuDomain | null;
  /** Pins by range, each with the mappings that count it. */
  readonly held: Map<string, { count: number; readonly dmas: readonly Dma[] }>;
}

/** What {@link Type1Container.addDevice} is given. */
export interface Type1Device {
  readonly port: Port;
  /** The IOMMU that the container translates with; null for an mdev, and for a device that translates elsewhere. */
  readonly iommu: SystemIommu | null;
  /** It writes only to pages that it has pinned (pinned_page_dirty_scope). */
  readonly pinnedScope: boolean;
  /** Of an mdev: asked to unpin when memory is unmapped. Without it, the device can't pin through the container. */
  readonly callbacks?: AccessCallbacks;
  /** The pins of an mdev that pins elsewhere, through an iommufd access. The container becomes the log's reader. */
  readonly pins?: PinLog;
}

/**
 * The legacy VFIO container with a type1 v2 IOMMU (drivers/vfio/vfio_iommu_type1.c of Linux 7.2): one address space for
 * all of its devices, and dirty tracking that asks nobody. Dirty is what mdevs pin or pinned, if every device writes only
 * to what it pins; with one that doesn't, everything mapped is dirty at every read. No device's log is consulted.
 *
 * What holds: mappings are disjoint and in every domain; the bits of a mapping go with it.
 */
export class Type1Container implements Type1Iommu {
  readonly #physical: PhysicalMemory;
  readonly #maxMappings: number;
  readonly #lock = new RwLock();
  readonly #dmas = new IntervalMap<PageNumber, Dma>();
  readonly #members = new Map<Port, Member>();
  /** With the ports attached to each. */
  readonly #domains = new Map<IommuDomain, { readonly iommu: SystemIommu; readonly ports: Set<Port> }>();
  #tracking = false;

  /** @param maxMappings dma_entry_limit */
  constructor({ physical, maxMappings = MAX_MAPPINGS }: { physical: PhysicalMemory; maxMappings?: number }) {
    this.#physical = physical;
    this.#maxMappings = maxMappings;
  }

  get pinnedScope(): boolean {
    for (const { pinnedScope } of this.#members.values()) if (!pinnedScope) return false;
    return true;
  }

  /**
   * VFIO_GROUP_SET_CONTAINER: the device may do DMA to what is mapped from then on.
   * @throws UapiError EBUSY for a port that is in it already, EINVAL for an IOMMU that can't do what is mapped
   */
  addDevice({ port, iommu, pinnedScope, callbacks, pins }: Type1Device): Promise<void> {
    const call = { syscall: "VFIO_GROUP_SET_CONTAINER", attempted: `add the device at port ${port}` };
    return this.#lock.write(async () => {
      if (this.#members.has(port)) refuse("EBUSY", call, "it is in the container already");
      const domain = iommu === null ? null : await this.#attach(port, iommu, call);
      const log = pins ?? new PinLog();
      if (this.#tracking) log.start();
      this.#members.set(port, {
        port,
        iommu,
        pinnedScope,
        callbacks: callbacks ?? null,
        pins: log,
        domain,
        held: new Map(),
      });
    });
  }

  /**
   * VFIO_GROUP_UNSET_CONTAINER. What a device that did not report its writes may have written is dirty at the next read;
   * with the last device all mappings go, and tracking ends.
   * @throws UapiError ENODEV for a port that isn't in it
   */
  async removeDevice(port: Port): Promise<void> {
    const call = { syscall: "VFIO_GROUP_UNSET_CONTAINER", attempted: `remove the device at port ${port}` };
    const member = this.#member(port, call);
    if (member.callbacks !== null && member.held.size > 0) await answered(member.callbacks.unmap(0n, U64_MAX), call);
    await this.#lock.write(async () => {
      if (!this.#members.delete(port)) refuse("ENODEV", call);
      for (const { count, dmas } of member.held.values()) for (const dma of dmas) dma.pins -= count;
      if (member.domain !== null) await this.#detach(member, member.domain);
      if (!member.pinnedScope && this.#tracking) for (const { value } of this.#dmas) value.allDirty = true;
      if (this.#members.size > 0) return;
      // Without a device the container has no IOMMU.
      this.#dmas.clear();
      this.#tracking = false;
    });
  }

  mapDma(args: { iova: Iova; span: MemorySpan; readable: boolean; writeable: boolean }): Promise<void> {
    const { iova, span, readable, writeable } = args;
    const call = { syscall: "VFIO_IOMMU_MAP_DMA", attempted: `map ${hex(span.length)} bytes at ${hex(iova)}` };
    return this.#lock.write(async () => {
      this.#checkIommu(call);
      const last = lastOf(iova, BigInt(span.length), call);
      if (!readable && !writeable) refuse("EINVAL", call, "make it readable, writeable or both");
      if ((BigInt(span.length) | iova | BigInt(span.offset)) % PAGE !== 0n) {
        refuse("EINVAL", call, `give an IOVA, length and memory that are multiples of ${PAGE_SIZE}`);
      }
      const [first, end] = [pageOf(iova), pageOf(last)];
      if (this.#dmas.firstIn(first, end) !== undefined) refuse("EEXIST", call, "unmap first");
      if (this.#dmas.size >= this.#maxMappings) refuse("ENOSPC", call, "map in fewer, larger pieces");
      if (!this.#isValid(first, end)) refuse("EINVAL", call, "an IOMMU can't translate these IOVAs");
      if (this.#tracking && end - first >= MAX_BITMAP_PAGES) refuse("EINVAL", call, "map less than 2^31 pages at once");
      if (this.#physical.frameOf(span.arena, span.offset) < 0 || span.offset + span.length > span.arena.bytes)
        refuse("EFAULT", call);
      const dma = { span, readable, writeable, pins: 0, allDirty: false };
      const done: IommuDomain[] = [];
      try {
        for (const domain of this.#domains.keys()) {
          await this.#mapInto(domain, first, dma);
          done.push(domain);
        }
      } catch (error) {
        for (const domain of done) await domain.unmap({ page: first, pages: span.length / PAGE_SIZE });
        throw error;
      }
      this.#dmas.insert(first, end, dma);
    });
  }

  /** @throws UapiError besides: EDEADLK where an mdev keeps its pins */
  async unmapDma(args: { iova: Iova; length: bigint; all?: boolean; dirty?: DirtyBitmap }): Promise<bigint> {
    const { iova, length, all = false, dirty } = args;
    const call = { syscall: "VFIO_IOMMU_UNMAP_DMA", attempted: `unmap ${hex(length)} bytes at ${hex(iova)}` };
    this.#checkIommu(call);
    if (dirty !== undefined) {
      if (all) refuse("EINVAL", call, "unmap range by range to get dirty bits");
      if (length / BigInt(dirty.granule) === 0n) refuse("EINVAL", call, "give a length above 0");
    }
    if (iova % PAGE !== 0n) refuse("EINVAL", call, `give an IOVA that is a multiple of ${PAGE_SIZE}`);
    if (all && (iova !== 0n || length !== 0n)) refuse("EINVAL", call, "give 0 and 0 to unmap all");
    if (!all && length % PAGE !== 0n) refuse("EINVAL", call, `give a length that is a multiple of ${PAGE_SIZE}`);
    const end = pageOf(all ? U64_MAX : lastOf(iova, length, call));
    const first = pageOf(iova);
    let pages = 0;
    if (dirty !== undefined) this.#checkBitmap({ iova, length, into: dirty }, call);
    for (let tries = 0; ; ) {
      const pinned = await this.#lock.write(async () => {
        const entries = this.#dmas.in(first, end);
        if (entries.some((entry) => entry.start < first || entry.last > end)) {
          refuse("EINVAL", call, "unmap whole mappings");
        }
        for (const entry of entries) {
          if (entry.value.pins > 0) return entry;
          if (dirty !== undefined) this.#readAndClear(entry, dirty);
          await this.#remove(entry);
          pages += entry.last - entry.start + 1;
          tries = 0;
        }
        return undefined;
      });
      if (pinned === undefined) return BigInt(pages) * PAGE;
      if (++tries > UNMAP_TRIES) refuse("EDEADLK", call, "make the mdev's callback release every pin");
      await this.#notify(pinned, call);
    }
  }

  async dirtyPagesStart(): Promise<void> {
    const call = { syscall: "VFIO_IOMMU_DIRTY_PAGES", attempted: "start tracking" };
    this.#checkIommu(call);
    if (this.#tracking) return;
    for (const { start, last } of this.#dmas) {
      if (last - start >= MAX_BITMAP_PAGES) refuse("EINVAL", call, "map less than 2^31 pages at once");
    }
    for (const { pins } of this.#members.values()) pins.start();
    this.#tracking = true;
  }

  async dirtyPagesStop(): Promise<void> {
    this.#checkIommu({ syscall: "VFIO_IOMMU_DIRTY_PAGES", attempted: "stop tracking" });
    if (!this.#tracking) return;
    for (const { pins } of this.#members.values()) pins.stop();
    for (const { value } of this.#dmas) value.allDirty = false;
    this.#tracking = false;
  }

  dirtyPagesGetBitmap(query: { iova: Iova; length: bigint; into: DirtyBitmap }): Promise<void> {
    const { iova, length, into } = query;
    const call = {
      syscall: "VFIO_IOMMU_DIRTY_PAGES",
      attempted: `get the bitmap of ${hex(length)} bytes at ${hex(iova)}`,
    };
    return this.#lock.write(() => {
      this.#checkIommu(call);
      const last = pageOf(lastOf(iova, length, call));
      if ((iova | length) % PAGE !== 0n) refuse("EINVAL", call, `start and end at multiples of ${PAGE_SIZE}`);
      this.#checkBitmap(query, call);
      const first = pageOf(iova);
      const entries = this.#dmas.in(first, last);
      if (entries.some((entry) => entry.start < first || entry.last > last)) {
        refuse("EINVAL", call, "ask for whole mappings");
      }
      for (const entry of entries) this.#readAndClear(entry, into);
    });
  }

  /**
   * vfio_pin_pages for an mdev; returns the memory, one span per contiguous run. The pages are dirty from now on.
   * @throws UapiError EINVAL for a misaligned or empty range, one that isn't mapped as a whole, or a device without an
   * unmap callback; EOVERFLOW; EPERM
   */
  async pin(port: Port, range: { iova: Iova; length: bigint; write: boolean }): Promise<MemorySpan[]> {
    const { iova, length, write } = range;
    const call = { syscall: "vfio_pin_pages", attempted: `pin ${hex(length)} bytes at ${hex(iova)}` };
    const last = lastOf(iova, length, call);
    if ((iova | length) % PAGE !== 0n) refuse("EINVAL", call, "pin whole pages");
    const member = this.#member(port, call);
    if (member.callbacks === null) refuse("EINVAL", call, "give the device an unmap callback when it is added");
    const [first, end] = [pageOf(iova), pageOf(last)];
    const spans: MemorySpan[] = [];
    const dmas: Dma[] = [];
    let page = first;
    for (const entry of this.#dmas.in(first, end)) {
      if (entry.start > page) break;
      const { span, readable, writeable } = entry.value;
      if (write ? !writeable : !readable) refuse("EPERM", call);
      const next = Math.min(entry.last, end) + 1;
      const offset = span.offset + (page - entry.start) * PAGE_SIZE;
      spans.push({ arena: span.arena, offset, length: (next - page) * PAGE_SIZE });
      dmas.push(entry.value);
      page = next;
    }
    if (page <= end) refuse("EINVAL", call, "pin what is mapped without a hole");
    const key = `${first}:${end}`;
    const held = member.held.get(key);
    if (held === undefined) member.held.set(key, { count: 1, dmas });
    else held.count++;
    for (const dma of dmas) dma.pins++;
    // Whatever it was pinned for: type1 counts every pinned page as dirty.
    member.pins.pin(first, end - first + 1, true);
    return spans;
  }

  /** vfio_unpin_pages. @throws UapiError EINVAL for a range that was not pinned as such */
  async unpin(port: Port, { iova, length }: { iova: Iova; length: bigint }): Promise<void> {
    const call = { syscall: "vfio_unpin_pages", attempted: `unpin ${hex(length)} bytes at ${hex(iova)}` };
    const member = this.#member(port, call);
    const [first, end] = [pageOf(iova), pageOf(lastOf(iova, length, call))];
    const key = `${first}:${end}`;
    const held = member.held.get(key);
    if (held === undefined) refuse("EINVAL", call, "unpin exactly a range that was pinned");
    for (const dma of held.dmas) dma.pins--;
    if (--held.count === 0) member.held.delete(key);
    member.pins.unpin(first, end - first + 1);
  }

  /** Adds a mapping's bits to a bitmap and clears them; what is still pinned stays dirty. */
  #readAndClear({ start, last, value }: Interval<PageNumber, Dma>, into: DirtyBitmap): void {
    const pages = last - start + 1;
    if (value.allDirty || !this.pinnedScope) {
      into.setRange(pageOf(iovaOf(start) - into.iova), pages);
      value.allDirty = false;
    }
    for (const { pins } of this.#members.values()) pins.readAndClear({ firstPage: start, pages, into });
  }

  async #remove({ start, last }: Interval<PageNumber, Dma>): Promise<void> {
    const pages = last - start + 1;
    await Promise.all([...this.#domains.keys()].map((domain) => domain.unmap({ page: start, pages })));
    this.#dmas.delete(start);
    for (const { pins } of this.#members.values()) pins.readAndClear({ firstPage: start, pages });
  }

  async #notify({ start, last }: Interval<PageNumber, Dma>, call: Call): Promise<void> {
    const length = BigInt(last - start + 1) * PAGE;
    for (const { callbacks } of [...this.#members.values()]) {
      if (callbacks !== null) await answered(callbacks.unmap(iovaOf(start), length), call);
    }
  }

  /** A container gets its IOMMU with its first device (VFIO_SET_IOMMU). */
  #checkIommu(call: Call): void {
    if (this.#members.size === 0) refuse("EINVAL", call, "add a device to the container first");
  }

  #member(port: Port, call: Call): Member {
    return this.#members.get(port) ?? refuse("ENODEV", call, "add the device to the container first");
  }

  /** Finds a domain that takes the device, or makes one and shows the mappings in it. */
  async #attach(port: Port, iommu: SystemIommu, call: Call): Promise<IommuDomain> {
    for (const { start, last } of this.#dmas) {
      if (!fits(iommu, start, last)) refuse("EINVAL", call, "unmap what its IOMMU can't translate");
    }
    for (const [domain, { ports }] of this.#domains) {
      try {
        await iommu.attach(port, domain);
        ports.add(port);
        return domain;
      } catch (error) {
        // The domain doesn't fit this IOMMU; another may.
        if (!isErrno(error, "EINVAL")) throw error;
      }
    }
    const domain = iommu.allocDomain({ dirtyTracking: false });
    try {
      for (const { start, value } of this.#dmas) await this.#mapInto(domain, start, value);
      await iommu.attach(port, domain);
    } catch (error) {
      domain.dispose();
      throw error;
    }
    this.#domains.set(domain, { iommu, ports: new Set([port]) });
    return domain;
  }

  async #detach({ port, iommu }: Member, domain: IommuDomain): Promise<void> {
    await iommu?.attach(port, null);
    const ports = this.#domains.get(domain)?.ports;
    ports?.delete(port);
    if (ports?.size !== 0) return;
    this.#domains.delete(domain);
    domain.dispose();
  }

  #mapInto(domain: IommuDomain, page: PageNumber, { span, readable, writeable }: Dma): Promise<void> {
    return domain.map({ page, memory: span, readable, writeable, hugePages: true });
  }

  #isValid(first: PageNumber, last: PageNumber): boolean {
    for (const { iommu } of this.#members.values()) if (iommu !== null && !fits(iommu, first, last)) return false;
    return true;
  }

  /** What UNMAP_DMA and GET_BITMAP demand of a bitmap: tracking, and one bit per page of the smallest size. */
  #checkBitmap({ iova, length, into }: { iova: Iova; length: bigint; into: DirtyBitmap }, call: Call): void {
    if (!this.#tracking) refuse("EINVAL", call, "start tracking first");
    if (into.granule !== PAGE_SIZE) refuse("EINVAL", call, `give a bitmap of ${PAGE_SIZE} bytes per bit`);
    if (length / PAGE > BigInt(MAX_BITMAP_PAGES)) refuse("EINVAL", call, "ask for less than 2^31 pages at once");
    if (into.iova > iova || into.iova + into.length < iova + length || (iova - into.iova) % PAGE !== 0n) {
      refuse("EINVAL", call, "give a bitmap of that range");
    }
  }
}

function fits({ aperture, reserved }: SystemIommu, first: PageNumber, last: PageNumber): boolean {
  if (first < aperture.first || last > aperture.last) return false;
  return !reserved.some((stretch) => stretch.first <= last && stretch.last >= first);
}
