import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { DomainMapping, IommuDomain, Port } from "../../iommufd/system-iommu.js";
import { type Iova, iovaOf, PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { contiguousParts, type Interval, IntervalMap } from "../../memory/interval-map.js";
import type { Lock } from "../../threads/lock.js";
import type { ErrnoName } from "../../uapi/errno.js";
import type { DmaTarget } from "./connection.js";
import type { DmaMapping, MappedDevice } from "./dma-mappings.js";
import { WrittenPages } from "./written-pages.js";

/**
 * What is mapped for the served devices that are attached. It also answers the reads and writes of devices whose DMA goes by
 * messages, and with dirty tracking notes what they wrote: this process is their IOMMU, and a write is stored, then marked,
 * then answered, in one go.
 *
 * What holds: while the lock is free, each attached device has been told exactly what the domain maps, unless its server has
 * refused. All devices and domains of an iommufd share the lock.
 */
export class ServedDomain implements IommuDomain, DmaTarget {
  readonly dirtyTracking: boolean;
  readonly pageSizes = [PAGE_SIZE];
  readonly #devices = new Map<Port, MappedDevice>();
  readonly #mappings = new IntervalMap<Iova, DmaMapping>();
  readonly #lock: Lock;
  readonly #dirty = new WrittenPages();
  #tracks = false;

  constructor(dirtyTracking: boolean, lock: Lock) {
    this.dirtyTracking = dirtyTracking;
    this.#lock = lock;
  }

  get ports(): ReadonlySet<Port> {
    return new Set(this.#devices.keys());
  }

  /** What it maps, by ascending address. */
  get mappings(): Iterable<Interval<Iova, DmaMapping>> {
    return this.#mappings;
  }

  /** Attaches a device that has been told what the domain maps: from now on it is told of changes. */
  join(port: Port, device: MappedDevice): void {
    this.#devices.set(port, device);
  }

  leave(port: Port): void {
    this.#devices.delete(port);
  }

  map({ page, memory, readable, writeable }: DomainMapping): Promise<void> {
    const iova = iovaOf(page);
    const mapping = { span: memory, readable, writeable };
    return this.#lock.run(async () => {
      // Entered before any device is told, so that a DMA by messages that follows at once finds it.
      this.#mappings.insert(iova, iova + BigInt(memory.length) - 1n, mapping);
      try {
        for (const device of this.#devices.values()) await device.map(iova, mapping);
      } catch (error) {
        // A device that refuses this as well is told again when it is detached.
        for (const device of this.#devices.values()) await device.unmap(iova).catch(() => undefined);
        this.#mappings.delete(iova);
        throw error;
      }
    });
  }

  unmap({ page, pages }: { page: PageNumber; pages: number }): Promise<void> {
    const [iova, last] = [iovaOf(page), iovaOf(page + pages) - 1n];
    return this.#lock.run(async () => {
      for (const device of this.#devices.values()) await device.unmap(iova);
      this.#mappings.delete(iova);
      if (this.#tracks) this.#dirty.forget(iova, last);
    });
  }

  /** Switching on clears what was dirty before. */
  async setDirtyTracking(on: boolean): Promise<void> {
    this.#dirty.clear();
    this.#tracks = on;
  }

  async readDirty({
    page,
    pages,
    into,
    clear,
  }: {
    page: PageNumber;
    pages: number;
    into: DirtyBitmap;
    clear: boolean;
  }) {
    this.#dirty.read(iovaOf(page), iovaOf(page + pages) - 1n, { into, clear });
    return { leafSizes: this.pageSizes };
  }

  dispose(): void {
    // Nobody is attached, so nobody was told of what it maps.
  }

  read(address: Iova, into: Uint8Array): ErrnoName | null {
    return this.#reach(address, into.byteLength, "readable", (memory, done) => into.set(memory, done));
  }

  write(address: Iova, from: Uint8Array): ErrnoName | null {
    const refused = this.#reach(address, from.byteLength, "writeable", (memory, done) =>
      memory.set(from.subarray(done, done + memory.byteLength)),
    );
    if (refused === null && this.#tracks) this.#dirty.add(address, from.byteLength);
    return refused;
  }

  /** All of a range is reached, or nothing. */
  #reach(
    address: Iova,
    bytes: number,
    way: "readable" | "writeable",
    use: (memory: Uint8Array, done: number) => void,
  ): ErrnoName | null {
    if (bytes === 0) return null;
    const { parts, whole } = contiguousParts(this.#mappings, address, address + BigInt(bytes) - 1n);
    if (!whole) return "EFAULT";
    if (parts.some(({ value }) => !value[way])) return "EPERM";
    for (const { value, start, last, skipped } of parts) {
      const from = value.span.offset + Number(skipped);
      use(value.span.arena.u8.subarray(from, from + Number(last - start) + 1), Number(start - address));
    }
    return null;
  }
}
