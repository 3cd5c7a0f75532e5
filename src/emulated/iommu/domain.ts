import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { DomainMapping, IommuDomain, Port } from "../../iommufd/system-iommu.js";
import { hex, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import type { InFlight } from "../../memory/in-flight.js";
import { Lock } from "../../threads/lock.js";
import { UapiError } from "../../uapi/errno.js";
import type { PhysicalMemory } from "../physical-memory.js";
import { leafSizesOf, targetOf } from "./dirty-target.js";
import { LAST_PAGE } from "./format.js";
import type { PageTable } from "./page-table.js";
import type { DirtyReader } from "./reader.js";

/** What a domain needs of the IOMMU that made it. */
export interface DomainHardware {
  /** Where memory lies that it maps. */
  readonly physical: PhysicalMemory;
  readonly inFlight: InFlight;
  readonly reader: DirtyReader;
  /** Switches recording on or off in a port's device-table entry. */
  setUpdates(port: Port, on: boolean): void;
}

/**
 * An I/O page table and the ports behind it. Operations that wait run one after the other; `map`, which only adds to the
 * tree, may run beside them.
 *
 * Whoever makes entries clean or non-present flushes all ports, and resolves once all DMA that was in flight has drained:
 * an IOTLB that still holds the old entry would write without leaving a trace.
 */
export class EmulatedDomain implements IommuDomain {
  readonly dirtyTracking: boolean;
  readonly pageSizes: readonly number[];
  /** Changed by the IOMMU alone. A port leaves only when its DMA through this domain has drained. */
  readonly ports = new Set<Port>();
  readonly table: PageTable;
  readonly #hardware: DomainHardware;
  readonly #lock = new Lock();
  #tracking = false;

  constructor(table: PageTable, dirtyTracking: boolean, hardware: DomainHardware) {
    this.table = table;
    this.dirtyTracking = dirtyTracking;
    this.pageSizes = table.leafShifts.map((shift) => 2 ** shift);
    this.#hardware = hardware;
  }

  /** Whether devices that are attached now must record writes. */
  get updates(): boolean {
    return this.#tracking || (this.dirtyTracking && this.table.format.alwaysUpdates);
  }

  async map({ page, memory, ...rest }: DomainMapping): Promise<void> {
    const frame = this.#hardware.physical.frameOf(memory.arena, memory.offset);
    this.table.map({ page, frame, pages: memory.length / PAGE_SIZE, ...rest });
  }

  unmap({ page, pages, into }: { page: PageNumber; pages: number; into?: DirtyBitmap }): Promise<void> {
    const target = into === undefined ? null : targetOf(into);
    return this.#lock.run(async () => {
      const removal = this.table.remove(page, pages, target);
      await this.#flush();
      this.table.release(removal, page, pages, target);
    });
  }

  setDirtyTracking(on: boolean): Promise<void> {
    if (!this.dirtyTracking) return Promise.reject(untracked("IOMMU_HWPT_SET_DIRTY_TRACKING", "set dirty tracking"));
    return this.#lock.run(async () => {
      this.#tracking = on;
      // Recording is on before bits are cleared: what is written from the flush on is recorded and not cleared.
      for (const port of this.ports) this.#hardware.setUpdates(port, this.updates);
      if (on) await this.#scan({ page: 0, pages: LAST_PAGE + 1, into: null, clear: true, stopAtHole: false });
      await this.#flush();
    });
  }

  readDirty({
    page,
    pages,
    into,
    clear,
  }: {
    page: PageNumber;
    pages: number;
    into: DirtyBitmap;
    clear: boolean;
  }): Promise<{ leafSizes: readonly number[] }> {
    if (!this.dirtyTracking) return Promise.reject(untracked("IOMMU_HWPT_GET_DIRTY_BITMAP", "read dirty bits"));
    if (!(page >= 0 && pages > 0 && page + pages - 1 <= LAST_PAGE)) {
      const attempted = `read dirty bits of ${pages} pages at IOVA ${hex(page * PAGE_SIZE)}`;
      return Promise.reject(new UapiError("EINVAL", { syscall: "IOMMU_HWPT_GET_DIRTY_BITMAP", attempted }));
    }
    return this.#lock.run(async () => {
      const sizes = await this.#scan({ page, pages, into: targetOf(into), clear, stopAtHole: true });
      if (clear) await this.#flush();
      return { leafSizes: leafSizesOf(sizes) };
    });
  }

  dispose(): void {
    if (this.ports.size > 0) {
      throw new UapiError("EBUSY", {
        syscall: "iommu_domain_free",
        attempted: `free a domain that ${this.ports.size} devices are attached to`,
      });
    }
    this.table.dispose();
  }

  #scan(request: Omit<Parameters<DirtyReader["scan"]>[1], "root">): Promise<number> {
    return this.#hardware.reader.scan(this.table.format, { root: this.table.root, ...request }, this.table.tables);
  }

  /** Invalidates what the ports have cached, and waits for DMA that may still go by it. */
  async #flush(): Promise<void> {
    await this.#hardware.inFlight.invalidate(this.ports);
  }
}

function untracked(syscall: string, attempted: string): UapiError {
  return new UapiError("EOPNOTSUPP", {
    syscall,
    attempted: `${attempted} of a domain without dirty tracking`,
    remedy: "allocate it with IOMMU_HWPT_ALLOC_DIRTY_TRACKING",
  });
}
