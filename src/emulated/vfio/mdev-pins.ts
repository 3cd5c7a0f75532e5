import type { LogSource } from "../../devices/variant-driver/dma-logging.js";
import type { IommufdAccess } from "../../iommufd/access.js";
import type { PinLog } from "../../iommufd/pin-log.js";
import { iovaOf, PAGE_SIZE, pageOf } from "../../memory/address.js";
import { isErrno } from "../../uapi/errno.js";
import type { PhysicalMemory } from "../physical-memory.js";
import type { DeviceSide, PinService } from "../threads/device-threads.js";
import { pinnedRuns } from "./pin-port.js";

/**
 * An mdev's driver on the main side: pins for its device what that asks for, and takes pins back when memory is about to
 * be unmapped. What is held here is what the access has pinned; the device's own table is never larger.
 */
export class MdevPins implements PinService {
  readonly #access: IommufdAccess;
  readonly #physical: PhysicalMemory;
  readonly #held = new Map<string, { page: number; pages: number }>();
  /** Raised whenever pins are taken back: a device that learns of a pin from before must not use it. */
  #epoch = 0;

  constructor(access: IommufdAccess, physical: PhysicalMemory) {
    this.#access = access;
    this.#physical = physical;
  }

  async pin({ page, pages }: { page: number; pages: number }): ReturnType<PinService["pin"]> {
    const range = { iova: iovaOf(page), length: BigInt(pages) * BigInt(PAGE_SIZE) };
    // Still held: it is being taken back by an unmap, and the device asks again before that has ended.
    if (this.#held.has(keyOf(page, pages))) return { fault: "not-mapped" };
    const epoch = this.#epoch;
    // Held and pinned in one go, so that an unmap finds either both or neither.
    this.#held.set(keyOf(page, pages), { page, pages });
    try {
      const spans = await this.#access.pin({ ...range, write: true });
      return {
        epoch,
        runs: pinnedRuns(
          page,
          spans.map(({ arena, offset, length }) => ({ frame: this.#physical.frameOf(arena, offset), bytes: length })),
        ),
      };
    } catch (error) {
      this.#held.delete(keyOf(page, pages));
      if (isErrno(error, "ENOENT") || isErrno(error, "EINVAL")) return { fault: "not-mapped" };
      if (isErrno(error, "EPERM")) return { fault: "not-writeable" };
      throw error;
    }
  }

  async unpin({ page, pages }: { page: number; pages: number }): Promise<void> {
    // Taken back by an unmap meanwhile: nothing is left to unpin.
    if (!this.#held.delete(keyOf(page, pages))) return;
    await this.#access.unpin({ iova: iovaOf(page), length: BigInt(pages) * BigInt(PAGE_SIZE) });
  }

  /** The access's unmap callback: when it resolves the device reaches nothing in the range, and nothing there is pinned. */
  async release(client: DeviceSide, iova: bigint, length: bigint): Promise<void> {
    const first = pageOf(iova);
    const end = pageOf(iova + length - 1n) + 1;
    const epoch = ++this.#epoch;
    for (const { page, pages } of [...this.#held.values()]) {
      if (page >= end || page + pages <= first) continue;
      await client.dropPins({ page, pages, epoch });
      await this.unpin({ page, pages });
    }
  }
}

/** An mdev's DMA logging: the pages that were pinned for writing at any time since the last read. */
export function pinLogSource(pins: () => PinLog | undefined): LogSource {
  return {
    async start() {
      pins()?.start();
    },
    async readAndClear(firstPage, pages, { into }) {
      pins()?.readAndClear({ firstPage, pages, into });
    },
    async stop() {
      pins()?.stop();
    },
  };
}

function keyOf(page: number, pages: number): string {
  return `${page}:${pages}`;
}
