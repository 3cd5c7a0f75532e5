import { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import { IommuDmaPort } from "../../src/emulated/iommu/dma-port.js";
import type { EmulatedDomain } from "../../src/emulated/iommu/domain.js";
import { P2pMatrix } from "../../src/emulated/iommu/p2p-matrix.js";
import { PortCounters } from "../../src/emulated/iommu/port-counters.js";
import { EmulatedSystemIommu } from "../../src/emulated/iommu/system-iommu.js";
import { EmulatedIommufd } from "../../src/emulated/iommufd.js";
import { PhysicalMemory } from "../../src/emulated/physical-memory.js";
import type { ObjectId } from "../../src/host/host.js";
import { CPU_PAGES } from "../../src/iommufd/iova-allocator.js";
import type { DomainMapping, IommuDomain, Port, SystemIommu } from "../../src/iommufd/system-iommu.js";
import { GiB, iovaOf, MiB, PAGE_SIZE, pageOf, TiB } from "../../src/memory/address.js";
import { type Arena, createArena } from "../../src/memory/arena.js";
import { InFlight } from "../../src/memory/in-flight.js";
import { UapiError } from "../../src/uapi/errno.js";
import { type Leaf, linuxMarks, setMarks } from "./linux-marks.js";
import { MEMORY_BYTES, type MockKind } from "./mock-kind.js";
import type { Rig } from "./side.js";
import { SoftwareRig } from "./software-rig.js";
import { larger, Units } from "./units.js";

/** Devices that a sequence can have at once, and the port whose writes stand for theirs. */
const DEVICES = 31;
const WRITER: Port = DEVICES;

/** What entries of the kernel's mock page tables reach, at the first level and at the second, in the kernel's units. */
const KERNEL_ENTRY = 2048n;
const KERNEL_ITEM = BigInt(MiB);

/**
 * The emulated host built like the kernel's mock: one AMD v1 IOMMU, with or without dirty tracking by device, nothing
 * reserved. It is made once; {@link open} makes a new iommufd on it.
 */
export class EmulatedMock implements AsyncDisposable {
  readonly kind: MockKind;
  readonly units: Units;
  readonly physical = new PhysicalMemory();
  readonly ram: Arena;
  readonly inFlight = InFlight.allocate(DEVICES + 1);
  readonly iommu: EmulatedSystemIommu;
  readonly writer: IommuDmaPort;

  constructor(kind: MockKind) {
    this.kind = kind;
    // The emulated IOMMU's smallest page is 4 KiB: where the mock's is 2 KiB, everything is twice as large.
    this.units = new Units(PAGE_SIZE / kind.ioPage);
    this.ram = createArena(this.units.bytesIn(MEMORY_BYTES));
    this.physical.register(this.ram, { kind: "ram" });
    this.iommu = new EmulatedSystemIommu({
      format: "amd-v1",
      dirtyTracking: true,
      ports: DEVICES + 1,
      inFlight: this.inFlight,
      physical: this.physical,
      tableBytes: 32 * MiB,
      reading: "here",
      aperture: { first: pageOf(this.units.in(kind.first)), last: pageOf(this.units.lastIn(kind.last)) },
      reserved: [],
      ...(kind.leafSizes === null ? {} : { leafSizes: kind.leafSizes.map((size) => this.units.bytesIn(size)) }),
    });
    const wiring = this.iommu.wiring(WRITER, {
      p2p: P2pMatrix.allocate(DEVICES + 1),
      counters: PortCounters.allocate(),
      iotlb: 16,
    });
    this.writer = new IommuDmaPort(wiring);
  }

  open(): EmulatedRig {
    return new EmulatedRig(this);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.iommu[Symbol.asyncDispose]();
  }
}

/** One iommufd of an {@link EmulatedMock}, and the devices that are bound to it. */
class EmulatedRig extends SoftwareRig<MockDomain> {
  readonly iommufd: EmulatedIommufd;
  readonly units: Units;
  readonly memory: Rig["memory"];
  readonly #mock: EmulatedMock;
  readonly #tracking: DeviceIommu;
  readonly #plain: DeviceIommu;

  constructor(mock: EmulatedMock) {
    super(DEVICES);
    const { physical, inFlight, units } = mock;
    this.#mock = mock;
    this.units = units;
    const cpuPages = { size: units.in(CPU_PAGES.size), huge: units.in(CPU_PAGES.huge) };
    this.iommufd = new EmulatedIommufd({ physical, inFlight, cpuPages });
    this.memory = { arena: mock.ram, offset: 0, length: mock.ram.bytes };
    const made = (domain: MockDomain) => this.made(domain);
    this.#tracking = new DeviceIommu(mock.iommu, true, Number(cpuPages.size), made);
    this.#plain = new DeviceIommu(mock.iommu, false, Number(cpuPages.size), made);
  }

  protected iommuOf(dirtyTracking: boolean): SystemIommu {
    return dirtyTracking ? this.#tracking : this.#plain;
  }

  async mark(hwpt: ObjectId, granules: DirtyBitmap): Promise<void> {
    const call = { syscall: "DMA", attempted: `write through HWPT ${hwpt}` };
    const domain = this.domains.get(hwpt);
    if (domain === undefined || domain.disposed) throw new UapiError("ENOENT", call);
    const { iommu, writer } = this.#mock;
    await iommu.attach(WRITER, domain.inner);
    try {
      if (!domain.inner.updates) throw new UapiError("EINVAL", call);
      const data = new Uint8Array(1);
      const first = pageOf(granules.iova);
      granules.forEachRun((from, count) => {
        for (let page = first + from; page < first + from + count; page++) {
          const fault = writer.write(page, 0, data, 0, 1);
          if (fault === "not-writeable") throw new Error(`page ${page} was not to be written`);
        }
      });
    } finally {
      await iommu.attach(WRITER, null);
      // Writes to pages that are not mapped fault, as they should: the log must not fill up.
      iommu.takeFaults();
    }
  }

  async getDirtyBitmap(hwpt: ObjectId, query: Parameters<Rig["getDirtyBitmap"]>[1]): Promise<void> {
    const leaves = await this.#dirtyLeaves(hwpt, query);
    const { iova, length, pageSize, into } = query;
    const before = into.words.slice();
    await this.iommufd.getDirtyBitmap(hwpt, query);
    // This host reports what it should: each dirty leaf, as far as it was asked for.
    const last = iova + length - 1n;
    const expected = new DirtyBitmap({ iova: into.iova, length: into.length, granule: pageSize });
    expected.words.set(before);
    for (const leaf of leaves) setMarks(expected, larger(leaf.start, iova), leaf.start + leaf.size, last);
    if (!into.words.every((word, index) => word === expected.words[index])) {
      throw new Error(`${into} was reported of the leaves ${leaves.map((leaf) => `${leaf.start}+${leaf.size}`)}`);
    }
    // From here on as Linux would have it.
    into.words.set(before);
    for (const leaf of leaves) {
      const marks = this.#linuxMarks(leaf, { iova, last });
      if (marks !== null) setMarks(into, marks.from, marks.end, last);
    }
  }

  async hangsLinux(hwpt: ObjectId, range: { iova: bigint; length: bigint }): Promise<boolean> {
    const leaves = await this.#dirtyLeaves(hwpt, range);
    const read = { iova: range.iova, last: range.iova + range.length - 1n };
    return leaves.some((leaf) => this.#linuxMarks(leaf, read) === null);
  }

  #linuxMarks(leaf: Leaf, read: { iova: bigint; last: bigint }): ReturnType<typeof linuxMarks> {
    const second = this.units.in(KERNEL_ITEM);
    return linuxMarks(leaf, read, leaf.size < second ? this.units.in(KERNEL_ENTRY) : second);
  }

  /** The dirty leaves in a range, up to the first hole; none where such a range can't be read. */
  async #dirtyLeaves(hwpt: ObjectId, { iova, length }: { iova: bigint; length: bigint }): Promise<Leaf[]> {
    const leaves: Leaf[] = [];
    const known = this.domains.get(hwpt);
    if (known === undefined || known.disposed || !known.dirtyTracking) return leaves;
    if (length <= 0n || length > BigInt(GiB) || iova > BigInt(64 * TiB)) return leaves;
    const domain = known.inner;
    const first = pageOf(iova);
    const pages = pageOf(iova + length - 1n) - first + 1;
    const dirty: number[] = [];
    const into = new DirtyBitmap({ iova: iovaOf(first), length: iovaOf(pages), granule: PAGE_SIZE });
    await domain.readDirty({ page: first, pages, into, clear: false });
    into.forEachRun((bit, count) => {
      for (let i = bit; i < bit + count; i++) dirty.push(first + i);
    });
    for (const page of dirty) {
      const last = leaves.at(-1);
      if (last !== undefined && iovaOf(page) < last.start + last.size) continue;
      const { leafSizes } = await domain.readDirty({ page, pages: 1, into, clear: false });
      const size = BigInt(leafSizes[0]);
      leaves.push({ start: iovaOf(page) - (iovaOf(page) % size), size });
    }
    return leaves;
  }
}

/** The mock as one device sees it: the mock has one IOMMU, and a flag per device that it can't track. */
class DeviceIommu implements SystemIommu {
  readonly dirtyTracking: boolean;
  readonly aperture: SystemIommu["aperture"];
  readonly reserved: SystemIommu["reserved"];
  readonly #inner: EmulatedSystemIommu;
  readonly #cpuPage: number;
  readonly #made: (domain: MockDomain) => void;

  constructor(inner: EmulatedSystemIommu, dirtyTracking: boolean, cpuPage: number, made: (domain: MockDomain) => void) {
    this.dirtyTracking = dirtyTracking;
    this.aperture = inner.aperture;
    this.reserved = inner.reserved;
    this.#inner = inner;
    this.#cpuPage = cpuPage;
    this.#made = made;
  }

  hwInfo(): ReturnType<SystemIommu["hwInfo"]> {
    return { ...this.#inner.hwInfo(), dirtyTracking: this.dirtyTracking };
  }

  allocDomain(options: { dirtyTracking: boolean }): MockDomain {
    if (options.dirtyTracking && !this.dirtyTracking) {
      throw new UapiError("EOPNOTSUPP", { syscall: "alloc", attempted: "make a domain for an IOMMU that can't track" });
    }
    const domain = new MockDomain(this.#inner.allocDomain(options), this.#cpuPage);
    this.#made(domain);
    return domain;
  }

  async attach(port: Port, domain: IommuDomain | null): Promise<void> {
    if (domain?.dirtyTracking && !this.dirtyTracking) {
      throw new UapiError("EINVAL", { syscall: "attach", attempted: "attach a device whose IOMMU can't track" });
    }
    await this.#inner.attach(port, domain instanceof MockDomain ? domain.inner : domain);
  }
}

/** A domain whose smallest leaves are the CPU's pages where HUGE_PAGES is 0: iommufd maps page by page then. */
class MockDomain implements IommuDomain {
  readonly inner: EmulatedDomain;
  readonly #cpuPage: number;
  disposed = false;

  constructor(inner: EmulatedDomain, cpuPage: number) {
    this.inner = inner;
    this.#cpuPage = cpuPage;
  }

  get dirtyTracking(): boolean {
    return this.inner.dirtyTracking;
  }

  get pageSizes(): readonly number[] {
    return this.inner.pageSizes;
  }

  get ports(): ReadonlySet<Port> {
    return this.inner.ports;
  }

  async map(mapping: DomainMapping): Promise<void> {
    const length = this.#cpuPage;
    if (mapping.hugePages || length === PAGE_SIZE) return this.inner.map(mapping);
    const { page, memory, ...rest } = mapping;
    for (let done = 0; done < memory.length; done += length) {
      const piece = { arena: memory.arena, offset: memory.offset + done, length };
      await this.inner.map({ ...rest, page: page + done / PAGE_SIZE, memory: piece, hugePages: true });
    }
  }

  unmap(args: Parameters<IommuDomain["unmap"]>[0]): Promise<void> {
    return this.inner.unmap(args);
  }

  setDirtyTracking(on: boolean): Promise<void> {
    return this.inner.setDirtyTracking(on);
  }

  readDirty(args: Parameters<IommuDomain["readDirty"]>[0]): ReturnType<IommuDomain["readDirty"]> {
    return this.inner.readDirty(args);
  }

  dispose(): void {
    this.inner.dispose();
    this.disposed = true;
  }
}
