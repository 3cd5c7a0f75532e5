import type { MemorySpan } from "../../host/host.js";
import type { Iova } from "../../memory/address.js";
import { sharedFileOf } from "../../memory/shared-files.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
} from "../../uapi/vfio-user.js";
import type { DmaMode } from "../server/client-memory.js";
import type { Connection, DmaTarget } from "./connection.js";
import type { WrittenPages } from "./written-pages.js";

/** Memory as a device is shown it. */
export interface DmaMapping {
  readonly span: MemorySpan;
  readonly readable: boolean;
  readonly writeable: boolean;
}

/** What its IOMMU needs of a served device: it is told what to map, and its messages are answered. */
export interface MappedDevice {
  readonly id: string;
  /** All its DMA goes by messages: we see every write, as an IOMMU would. */
  readonly byMessages: boolean;
  /** Whom its reads and writes by messages go to; null: they are refused. */
  target: DmaTarget | null;
  /** What is mapped, by its first address. */
  readonly mapped: ReadonlyMap<Iova, DmaMapping>;
  /** @throws UapiError */
  map(iova: Iova, mapping: DmaMapping): Promise<void>;
  /** Resolves when DMA in flight to it has ended. @throws UapiError */
  unmap(iova: Iova): Promise<void>;
}

/** A served device's view of our memory. */
export class DmaMappings implements MappedDevice {
  readonly id: string;
  readonly byMessages: boolean;
  /** While the device's log is on: what it writes by messages, which a server may leave to its client to note. */
  written: WrittenPages | null = null;
  readonly #connection: Connection;
  readonly #mapped = new Map<Iova, DmaMapping>();
  #target: DmaTarget | null = null;

  constructor(id: string, connection: Connection, mode: DmaMode) {
    this.id = id;
    this.byMessages = mode === "messages";
    this.#connection = connection;
  }

  get target(): DmaTarget | null {
    return this.#target;
  }

  set target(target: DmaTarget | null) {
    this.#target = target;
    if (this.#connection.failure === undefined) this.#connection.dma = target === null ? null : this.#noting(target);
  }

  get mapped(): ReadonlyMap<Iova, DmaMapping> {
    return this.#mapped;
  }

  /** What goes to a target, whose writes are also part of the device's log. */
  #noting(target: DmaTarget): DmaTarget {
    return {
      read: (address, into) => target.read(address, into),
      write: (address, from) => {
        const refused = target.write(address, from);
        if (refused === null) this.written?.add(address, from.byteLength);
        return refused;
      },
    };
  }

  /** VFIO_USER_DMA_MAP, with the descriptor of the file that the memory lies in, if there is one. @throws UapiError */
  async map(iova: Iova, mapping: DmaMapping): Promise<void> {
    const { span, readable, writeable } = mapping;
    const file =
      this.byMessages || this.#connection.agreement.maxFds === 0 ? undefined : sharedFileOf(span.arena, span);
    const request = vfio_user_dma_map.encode({
      argsz: vfio_user_dma_map.size,
      flags: (readable ? VFIO_USER_F_DMA_REGION_READ : 0) | (writeable ? VFIO_USER_F_DMA_REGION_WRITE : 0),
      offset: BigInt(file?.offset ?? 0),
      address: iova,
      size: BigInt(span.length),
    });
    const fds = file === undefined ? [] : [file.fd];
    await this.#connection.call(VFIO_USER_COMMAND.DMA_MAP, "VFIO_USER_DMA_MAP", request, fds);
    this.#mapped.set(iova, mapping);
  }

  /**
   * VFIO_USER_DMA_UNMAP; the reply says that DMA in flight to it has ended. A server that is gone has nothing mapped.
   * @throws UapiError
   */
  async unmap(iova: Iova): Promise<void> {
    const mapping = this.#mapped.get(iova);
    if (mapping === undefined) return;
    const request = vfio_user_dma_unmap.encode({
      argsz: vfio_user_dma_unmap.size,
      address: iova,
      size: BigInt(mapping.span.length),
    });
    try {
      await this.#connection.call(VFIO_USER_COMMAND.DMA_UNMAP, "VFIO_USER_DMA_UNMAP", request);
    } catch (error) {
      if (this.#connection.failure === undefined) throw error;
    }
    this.#mapped.delete(iova);
  }
}
