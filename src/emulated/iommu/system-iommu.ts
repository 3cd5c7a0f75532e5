import type { IommuFormatName } from "../../host/description.js";
import type { HwInfo } from "../../host/host.js";
import type { IommuDomain, Port, SystemIommu } from "../../iommufd/system-iommu.js";
import { RESULT_BYTES } from "../../kernels/ioptes.js";
import { type Kernels, loadKernels } from "../../kernels/kernels.js";
import { GiB } from "../../memory/address.js";
import { type Arena, createArena } from "../../memory/arena.js";
import type { InFlight } from "../../memory/in-flight.js";
import { Lock } from "../../threads/lock.js";
import { UapiError } from "../../uapi/errno.js";
import type { PhysicalMemory } from "../physical-memory.js";
import type { DmaWiring } from "./dma-port.js";
import { EmulatedDomain } from "./domain.js";
import { EventLog, type IommuFault } from "./event-log.js";
import { LAST_PAGE, type PageTableFormat, TABLE_BYTES } from "./format.js";
import { FORMATS } from "./formats.js";
import type { P2pMatrix } from "./p2p-matrix.js";
import { PageTable } from "./page-table.js";
import type { PortCounters } from "./port-counters.js";
import { DirtyReader, type ReadingPlace } from "./reader.js";
import { TablePages } from "./table-pages.js";

/** Room for page tables: 512 GiB mapped at 4 KiB. Address space only; memory is taken as tables are made. */
const DEFAULT_TABLE_BYTES = 1 * GiB;

/** Events that the log holds until they are taken. */
const EVENT_LOG_CAPACITY = 1024;

/** Spacing of the result blocks: cache lines of their own. */
const RESULT_SPACING = Math.ceil(RESULT_BYTES / 64) * 64;

export interface EmulatedSystemIommuOptions {
  readonly format: IommuFormatName;
  /** false: hardware that can't track. */
  readonly dirtyTracking: boolean;
  /** Ports of the whole host: device-table entries are indexed by port. */
  readonly ports: number;
  readonly inFlight: InFlight;
  /** What it translates to. */
  readonly physical: PhysicalMemory;
  /** Room for page tables in bytes: 2 GiB per TiB that is mapped at 4 KiB, at most 4 GiB. */
  readonly tableBytes?: number;
  readonly reading?: ReadingPlace;
  /** Sizes of leaf that it can have, in bytes, ascending, out of the format's; default: all of them. */
  readonly leafSizes?: readonly number[];
  /** Default: all that the format translates. */
  readonly aperture?: SystemIommu["aperture"];
  /** Default: what such machines reserve. */
  readonly reserved?: SystemIommu["reserved"];
}

/**
 * One emulated IOMMU. Its arena holds, from the start: a page that is no table (offset 0), with the readers' result
 * blocks; the device table, one entry per port in the format's own layout; page tables.
 */
export class EmulatedSystemIommu implements SystemIommu, AsyncDisposable {
  readonly dirtyTracking: boolean;
  readonly aperture: SystemIommu["aperture"];
  readonly reserved: SystemIommu["reserved"];
  readonly format: PageTableFormat;
  readonly #leafShifts: readonly number[];
  readonly #arena: Arena;
  readonly #kernels: Kernels;
  readonly #tables: TablePages;
  readonly #reader: DirtyReader;
  readonly #inFlight: InFlight;
  readonly #physical: PhysicalMemory;
  readonly #events = EventLog.allocate(EVENT_LOG_CAPACITY);
  readonly #attached = new Map<Port, EmulatedDomain>();
  readonly #domains = new WeakSet<IommuDomain>();
  readonly #lock = new Lock();

  /** @throws UsageError `MEMORY_DOES_NOT_FIT` */
  constructor(options: EmulatedSystemIommuOptions) {
    const { format, dirtyTracking, ports, inFlight, physical, tableBytes, reading, leafSizes } = options;
    this.format = FORMATS[format];
    this.#leafShifts = this.format.leafShifts.filter((shift) => leafSizes?.includes(2 ** shift) ?? true);
    this.aperture = options.aperture ?? { first: 0, last: LAST_PAGE };
    this.dirtyTracking = dirtyTracking;
    this.reserved = options.reserved ?? this.format.reserved;
    this.#inFlight = inFlight;
    this.#physical = physical;
    this.#arena = createArena(tableBytes ?? DEFAULT_TABLE_BYTES);
    this.#kernels = loadKernels(this.#arena.memory);
    const deviceTable = Math.ceil((ports * this.format.deviceEntryBytes) / TABLE_BYTES) * TABLE_BYTES;
    this.#tables = new TablePages(this.#arena, this.#kernels, DEVICE_TABLE + deviceTable);
    this.#reader = new DirtyReader(this.#arena, [RESULT_SPACING, 2 * RESULT_SPACING], reading ?? "by-size");
    for (let port = 0; port < ports; port++) this.format.storeRoot(this.#arena.i32, this.#entry(port), 0);
  }

  hwInfo(): HwInfo {
    return {
      dirtyTracking: this.dirtyTracking,
      type: this.format.hwType,
      pageSizes: this.#leafShifts.map((shift) => 2 ** shift),
      data: this.format.hwInfoData(this.dirtyTracking),
    };
  }

  allocDomain({ dirtyTracking }: { dirtyTracking: boolean }): EmulatedDomain {
    if (dirtyTracking && !this.dirtyTracking) {
      throw new UapiError("EOPNOTSUPP", {
        syscall: "IOMMU_HWPT_ALLOC",
        attempted: "allocate a domain with dirty tracking on an IOMMU that can't track",
        remedy: "leave IOMMU_HWPT_ALLOC_DIRTY_TRACKING out, and track in the device",
      });
    }
    const table = new PageTable({
      format: this.format,
      leafShifts: this.#leafShifts,
      tables: this.#tables,
      kernels: this.#kernels,
      dirtyTracking,
    });
    const domain: EmulatedDomain = new EmulatedDomain(table, dirtyTracking, {
      inFlight: this.#inFlight,
      physical: this.#physical,
      reader: this.#reader,
      // A port that is on its way to another domain has that one's setting already.
      setUpdates: (port, on) => {
        if (this.#attached.get(port) === domain) this.format.storeUpdates(this.#arena.i32, this.#entry(port), on);
      },
    });
    this.#domains.add(domain);
    return domain;
  }

  attach(port: Port, next: IommuDomain | null): Promise<void> {
    if (next !== null && !(next instanceof EmulatedDomain && this.#domains.has(next))) {
      return Promise.reject(
        new UapiError("EINVAL", {
          syscall: "iommu_attach_device",
          attempted: `attach port ${port} to a domain of another IOMMU`,
          remedy: "allocate an HWPT for this device",
        }),
      );
    }
    return this.#lock.run(() => this.#attach(port, next));
  }

  async #attach(port: Port, next: EmulatedDomain | null): Promise<void> {
    const { format } = this;
    const words = this.#arena.i32;
    const entry = this.#entry(port);
    const previous = this.#attached.get(port);
    if (previous === (next ?? undefined)) return;
    // The new domain counts the port as its own before the first DMA can go through it, and the old one until the last
    // has landed: whoever clears bits meanwhile flushes and drains it. Recording goes on first and off last, since bits
    // too many in the old table do no harm.
    next?.ports.add(port);
    if (next?.updates) format.storeUpdates(words, entry, true);
    format.storeRoot(words, entry, next?.table.root ?? 0);
    if (next === null) this.#attached.delete(port);
    else this.#attached.set(port, next);
    await this.#inFlight.invalidate([port]);
    previous?.ports.delete(port);
    if (next === null || !next.updates) {
      format.storeUpdates(words, entry, false);
      this.#inFlight.flush(port);
    }
  }

  /** What a device thread needs for an {@link IommuDmaPort} behind this IOMMU. Post it. */
  wiring(port: Port, args: { p2p: P2pMatrix; counters: PortCounters; iotlb: number }): DmaWiring {
    return {
      format: this.format.name,
      tables: this.#arena.memory,
      deviceEntry: this.#entry(port),
      port,
      inFlight: this.#inFlight.words,
      physical: this.#physical.posted(),
      p2p: args.p2p.words,
      events: this.#events.words,
      counters: args.counters.values,
      iotlb: args.iotlb,
    };
  }

  /** Takes the faults of this IOMMU's devices out of its event log, oldest first. */
  takeFaults(): IommuFault[] {
    return this.#events.take();
  }

  /** Faults that found the event log full. */
  get faultsDropped(): number {
    return this.#events.dropped;
  }

  /** Ends the reader's thread. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#reader[Symbol.asyncDispose]();
  }

  /** Index of the first word of a port's device-table entry. */
  #entry(port: Port): number {
    return (DEVICE_TABLE + port * this.format.deviceEntryBytes) / 4;
  }
}

/** Byte offset of the device table. */
const DEVICE_TABLE = TABLE_BYTES;
