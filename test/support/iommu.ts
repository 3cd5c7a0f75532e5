import { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import { type DmaHooks, type DmaWiring, IommuDmaPort } from "../../src/emulated/iommu/dma-port.js";
import type { EmulatedDomain } from "../../src/emulated/iommu/domain.js";
import { P2pMatrix } from "../../src/emulated/iommu/p2p-matrix.js";
import { PortCounters } from "../../src/emulated/iommu/port-counters.js";
import type { ReadingPlace } from "../../src/emulated/iommu/reader.js";
import { EmulatedSystemIommu } from "../../src/emulated/iommu/system-iommu.js";
import { PhysicalMemory } from "../../src/emulated/physical-memory.js";
import { IOMMU_FORMATS, type IommuFormatName } from "../../src/host/description.js";
import { iovaOf, PAGE_SIZE, type PageNumber } from "../../src/memory/address.js";
import { type Arena, createArena } from "../../src/memory/arena.js";
import { InFlight } from "../../src/memory/in-flight.js";

/*
 * A small machine room for tests and benchmarks: one IOMMU, memory behind it, and ports, without devices or iommufd.
 */

export const ALL_FORMATS: readonly IommuFormatName[] = IOMMU_FORMATS;

export interface BenchOptions {
  readonly format: IommuFormatName;
  readonly dirtyTracking?: boolean;
  readonly ports?: number;
  readonly ramBytes?: number;
  /** Bytes behind a BAR of the last port. */
  readonly barBytes?: number;
  readonly tableBytes?: number;
  readonly iotlb?: number;
  readonly reading?: ReadingPlace;
  readonly inFlight?: InFlight;
  /** Of another bench whose memory this one's IOMMU reaches, too. */
  readonly physical?: PhysicalMemory;
  readonly leafSizes?: readonly number[];
  readonly aperture?: EmulatedSystemIommu["aperture"];
  readonly reserved?: EmulatedSystemIommu["reserved"];
}

/** One IOMMU with everything around it. */
export class TestBench implements AsyncDisposable {
  readonly ram: Arena;
  readonly bar: Arena;
  readonly physical: PhysicalMemory;
  readonly inFlight: InFlight;
  readonly p2p: P2pMatrix;
  readonly iommu: EmulatedSystemIommu;
  readonly #iotlb: number;

  constructor(options: BenchOptions) {
    const ports = options.ports ?? 2;
    this.ram = createArena(options.ramBytes ?? 4 * 2 ** 20);
    this.bar = createArena(options.barBytes ?? 2 ** 16);
    this.physical = options.physical ?? new PhysicalMemory();
    this.physical.register(this.ram, { kind: "ram" });
    this.physical.register(this.bar, { kind: "bar", port: ports - 1 });
    this.inFlight = options.inFlight ?? InFlight.allocate(ports);
    this.p2p = P2pMatrix.allocate(ports);
    this.#iotlb = options.iotlb ?? 64;
    this.iommu = new EmulatedSystemIommu({
      format: options.format,
      dirtyTracking: options.dirtyTracking ?? true,
      ports,
      inFlight: this.inFlight,
      physical: this.physical,
      tableBytes: options.tableBytes ?? 16 * 2 ** 20,
      reading: options.reading ?? "here",
      ...(options.leafSizes === undefined ? {} : { leafSizes: options.leafSizes }),
      ...(options.aperture === undefined ? {} : { aperture: options.aperture }),
      ...(options.reserved === undefined ? {} : { reserved: options.reserved }),
    });
  }

  /** What a device thread is posted. */
  wiring(port: number): DmaWiring {
    return this.iommu.wiring(port, {
      p2p: this.p2p,
      counters: PortCounters.allocate(),
      iotlb: this.#iotlb,
    });
  }

  /** A port on this thread. */
  port(port: number, hooks: DmaHooks = {}): IommuDmaPort {
    return new IommuDmaPort(this.wiring(port), hooks);
  }

  /** Frame of a page of RAM. */
  frame(page: number): number {
    return this.physical.frameOf(this.ram, page * PAGE_SIZE);
  }

  /** Maps pages of RAM, readable and writeable. */
  map(domain: EmulatedDomain, page: PageNumber, ramPage: number, pages: number, hugePages = true): void {
    domain.table.map({ page, frame: this.frame(ramPage), pages, readable: true, writeable: true, hugePages });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.iommu[Symbol.asyncDispose]();
  }
}

/** A bitmap of 4 KiB granules over a range of pages. */
export function bitmapOf(page: PageNumber, pages: number, granule = PAGE_SIZE): DirtyBitmap {
  return new DirtyBitmap({ iova: iovaOf(page), length: BigInt(pages) * 4096n, granule });
}

/** The pages that a read reports. */
export async function readPages(
  domain: EmulatedDomain,
  page: PageNumber,
  pages: number,
  clear = true,
): Promise<PageNumber[]> {
  const into = bitmapOf(page, pages);
  await domain.readDirty({ page, pages, into, clear });
  return pagesOf(into);
}

/** The pages whose bits are set. */
export function pagesOf(bitmap: DirtyBitmap): PageNumber[] {
  const pages: PageNumber[] = [];
  bitmap.forEachPageRun((first, count) => {
    for (let page = first; page < first + count; page++) pages.push(page);
  });
  return pages;
}
