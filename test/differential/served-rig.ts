import type { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { ObjectId } from "../../src/host/host.js";
import type { SystemIommu } from "../../src/iommufd/system-iommu.js";
import { hex, type Iova, iovaOf, pageOf } from "../../src/memory/address.js";
import { type Arena, createArena } from "../../src/memory/arena.js";
import { Lock } from "../../src/threads/lock.js";
import { UapiError } from "../../src/uapi/errno.js";
import type { DmaTarget } from "../../src/vfio-user/client/connection.js";
import type { DmaMapping, MappedDevice } from "../../src/vfio-user/client/dma-mappings.js";
import { VfioUserIommufd } from "../../src/vfio-user/client/iommufd.js";
import { ServedDomain } from "../../src/vfio-user/client/served-domain.js";
import { ServedIommu } from "../../src/vfio-user/client/served-iommu.js";
import { MEMORY_BYTES, type MockKind } from "./mock-kind.js";
import type { Rig } from "./side.js";
import { SoftwareRig } from "./software-rig.js";
import { Units } from "./units.js";

const DEVICES = 31;

/**
 * The vfio-user host before devices without a socket in between, which note what they are told. Those that can be tracked
 * have their DMA go by messages.
 */
export class ServedRig extends SoftwareRig<NotedDomain> {
  readonly iommufd = new VfioUserIommufd();
  readonly units = new Units(1);
  readonly memory: Rig["memory"];
  readonly #kind: MockKind;
  readonly #lock = new Lock();
  readonly #devices = new Set<NotingDevice>();

  constructor(kind: MockKind, ram: Arena = createArena(MEMORY_BYTES)) {
    super(DEVICES);
    this.#kind = kind;
    this.memory = { arena: ram, offset: 0, length: MEMORY_BYTES };
  }

  async mark(hwpt: ObjectId, granules: DirtyBitmap): Promise<void> {
    const call = { syscall: "DMA", attempted: `write through HWPT ${hwpt}` };
    const domain = this.domains.get(hwpt);
    if (domain === undefined || domain.disposed) throw new UapiError("ENOENT", call);
    this.#checkDevices();
    if (!domain.tracks) throw new UapiError("EINVAL", call);
    const first = pageOf(granules.iova);
    granules.forEachRun((from, count) => {
      for (let page = first + from; page < first + from + count; page++) {
        const refused = domain.write(iovaOf(page), Uint8Array.of(1));
        if (refused === "EPERM") throw new Error(`page ${page} was not to be written`);
      }
    });
  }

  async getDirtyBitmap(hwpt: ObjectId, query: Parameters<Rig["getDirtyBitmap"]>[1]): Promise<void> {
    this.#checkDevices();
    await this.iommufd.getDirtyBitmap(hwpt, query);
  }

  protected iommuOf(dirtyTracking: boolean): SystemIommu {
    const device = new NotingDevice(dirtyTracking);
    this.#devices.add(device);
    return new NotedIommu(device, this.#lock, this.#kind, (domain) => this.made(domain));
  }

  /** That each device was told exactly what the domain maps that answers its messages. @throws Error */
  #checkDevices(): void {
    for (const { target, mapped } of this.#devices) {
      const shown = target instanceof ServedDomain ? [...target.mappings] : [];
      const expected = shown.map(({ start, value }) => described(start, value));
      const told = [...mapped].map(([start, mapping]) => described(start, mapping));
      if (told.sort().join() === expected.sort().join()) continue;
      throw new Error(`a device was told [${told}], and [${expected}] is mapped`);
    }
  }
}

function described(start: Iova, { span, readable, writeable }: DmaMapping): string {
  const permissions = `${readable ? "r" : ""}${writeable ? "w" : ""}`;
  return `${hex(span.length)} bytes of ${hex(span.offset)} at ${hex(start)} ${permissions}`;
}

class NotingDevice implements MappedDevice {
  readonly id = "noting";
  readonly byMessages: boolean;
  readonly mapped = new Map<Iova, DmaMapping>();
  target: DmaTarget | null = null;

  constructor(byMessages: boolean) {
    this.byMessages = byMessages;
  }

  async map(iova: Iova, mapping: DmaMapping): Promise<void> {
    if (this.mapped.has(iova)) throw new Error(`${iova} was told twice`);
    this.mapped.set(iova, mapping);
  }

  async unmap(iova: Iova): Promise<void> {
    this.mapped.delete(iova);
  }
}

/** With the aperture of the other side's IOMMU. */
class NotedIommu extends ServedIommu {
  override readonly aperture: ServedIommu["aperture"];
  readonly #lock: Lock;
  readonly #made: (domain: NotedDomain) => void;

  constructor(device: MappedDevice, lock: Lock, { first, last }: MockKind, made: (domain: NotedDomain) => void) {
    super(device, lock);
    this.aperture = { first: pageOf(first), last: pageOf(last) };
    this.#lock = lock;
    this.#made = made;
  }

  override allocDomain(options: { dirtyTracking: boolean }): ServedDomain {
    const { dirtyTracking } = super.allocDomain(options);
    const domain = new NotedDomain(dirtyTracking, this.#lock);
    this.#made(domain);
    return domain;
  }
}

class NotedDomain extends ServedDomain {
  tracks = false;
  disposed = false;

  override setDirtyTracking(on: boolean): Promise<void> {
    this.tracks = on;
    return super.setDirtyTracking(on);
  }

  override dispose(): void {
    this.disposed = true;
  }
}
