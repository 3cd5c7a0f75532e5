import type { Access, AccessCallbacks, MemorySpan } from "../host/host.js";
import { type Call, lastOf, refuse } from "../host/iommufd-checks.js";
import { hex, type Iova, PAGE_SIZE, U64_MAX } from "../memory/address.js";
import { type AccessUser, type AreaPart, answered, type Ioas } from "./ioas.js";
import { IommufdObject } from "./objects.js";
import { PinLog, pagesOf } from "./pin-log.js";

const PAGE = BigInt(PAGE_SIZE);

/**
 * How an mdev's driver reaches an IOAS's memory without an IOMMU (struct iommufd_access, device.c).
 *
 * What holds: a pin counts in each area that it touches until the same range is unpinned, and an area with pins stays
 * mapped. Everything here but the callbacks happens in one go, so a pin never meets a half-done unmap.
 */
export class IommufdAccess extends IommufdObject implements Access, AccessUser {
  /** What it has, or had, pinned: an mdev's own DMA logging reads it. */
  readonly pins = new PinLog();
  readonly #callbacks: AccessCallbacks;
  readonly #dispose: (access: IommufdAccess) => Promise<void>;
  #ioas: Ioas | null = null;
  /** Pins by range, each with the areas that count it. */
  readonly #held = new Map<string, { count: number; readonly parts: readonly AreaPart[] }>();

  /** @param dispose takes the access out of the table: what closing it means */
  constructor(callbacks: AccessCallbacks, dispose: (access: IommufdAccess) => Promise<void>) {
    super();
    this.#callbacks = callbacks;
    this.#dispose = dispose;
    this.users = 1;
  }

  get ioas(): Ioas | null {
    return this.#ioas;
  }

  /**
   * iommufd_access_attach, _replace and _detach: from now on it reaches this IOAS, or none. Pins in the old one are
   * asked back.
   * @param between runs while nothing is pinned, so that the owner can't write
   * @throws UapiError EADDRINUSE for an IOAS with areas that are not aligned to pages; EDEADLK where pins are kept
   */
  async setIoas(ioas: Ioas | null, call: Call, between?: () => Promise<void>): Promise<void> {
    const old = this.#ioas;
    if (old === ioas) {
      await between?.();
      return;
    }
    if (ioas !== null) {
      await ioas.lock.write(() => ioas.addAccess(this, call));
      ioas.users++;
    }
    // No new pins while the owner gives the old ones back; unpinning goes on.
    this.#ioas = null;
    try {
      if (old !== null) await answered(this.notifyUnmap(0n, U64_MAX), call);
    } finally {
      this.#releaseAll();
      if (old !== null) {
        await old.lock.write(() => old.removeAccess(this));
        old.users--;
      }
      await between?.();
      this.#ioas = ioas;
    }
  }

  notifyUnmap(iova: Iova, length: bigint): Promise<void> {
    return this.#callbacks.unmap(iova, length);
  }

  async pin({ iova, length, write }: { iova: Iova; length: bigint; write: boolean }): Promise<MemorySpan[]> {
    const call = { syscall: "iommufd_access_pin_pages", attempted: `pin ${hex(length)} bytes at ${hex(iova)}` };
    const { parts, whole } = this.#parts(iova, length, call);
    parts.forEach(({ area, offset, start, last }, index) => {
      const end = offset + Number(last - start) + 1;
      const isLast = whole && index === parts.length - 1;
      if (area.unmapping || offset % PAGE_SIZE !== 0 || (!isLast && end % PAGE_SIZE !== 0)) {
        refuse("EINVAL", call, "pin pages that are mapped page by page and not about to be unmapped");
      }
      checkPermission(area, write, call);
    });
    if (!whole) refuse("ENOENT", call, "pin what is mapped without a hole");
    const key = keyOf(iova, length);
    const held = this.#held.get(key);
    if (held === undefined) this.#held.set(key, { count: 1, parts });
    else held.count++;
    for (const { area } of parts) area.pins++;
    const { firstPage, pages } = pagesOf(iova, length);
    this.pins.pin(firstPage, pages, write);
    return spans(parts);
  }

  async unpin({ iova, length }: { iova: Iova; length: bigint }): Promise<void> {
    const call = { syscall: "iommufd_access_unpin_pages", attempted: `unpin ${hex(length)} bytes at ${hex(iova)}` };
    const key = keyOf(iova, length);
    const held = this.#held.get(key);
    if (held === undefined) refuse("EINVAL", call, "unpin exactly a range that was pinned");
    this.#release(key, held);
    const { firstPage, pages } = pagesOf(iova, length);
    this.pins.unpin(firstPage, pages);
  }

  async read(iova: Iova, into: Uint8Array): Promise<void> {
    const call = { syscall: "iommufd_access_rw", attempted: `read ${into.length} bytes at ${hex(iova)}` };
    let done = 0;
    for (const { part, bytes } of this.#transfer(iova, into.length, false, call)) {
      into.set(part.area.pages.arena.u8.subarray(part.offset, part.offset + bytes), done);
      done += bytes;
    }
  }

  async write(iova: Iova, from: Uint8Array): Promise<void> {
    const call = { syscall: "iommufd_access_rw", attempted: `write ${from.length} bytes at ${hex(iova)}` };
    let done = 0;
    for (const { part, bytes } of this.#transfer(iova, from.length, true, call)) {
      part.area.pages.arena.u8.set(from.subarray(done, done + bytes), part.offset);
      done += bytes;
      const { firstPage, pages } = pagesOf(part.start, BigInt(bytes));
      this.pins.wrote(firstPage, pages);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#dispose(this);
  }

  async destroy(): Promise<void> {
    await this.setIoas(null, { syscall: "iommufd_access_destroy", attempted: "detach the access" });
  }

  #parts(iova: bigint, length: bigint, call: Call): { parts: AreaPart[]; whole: boolean } {
    const last = lastOf(iova, length, call);
    if (this.#ioas === null) refuse("ENOENT", call, "attach the access to an IOAS first");
    return this.#ioas.contiguous(iova, last);
  }

  /** The parts of a transfer in turn: as in Linux, those before one that is refused have been transferred. */
  *#transfer(iova: bigint, length: number, write: boolean, call: Call): Generator<{ part: AreaPart; bytes: number }> {
    const { parts, whole } = this.#parts(iova, BigInt(length), call);
    for (const part of parts) {
      if (part.area.unmapping) refuse("EINVAL", call, "the mapping is about to go");
      checkPermission(part.area, write, call);
      yield { part, bytes: Number(part.last - part.start) + 1 };
    }
    if (!whole) refuse("ENOENT", call, "transfer what is mapped without a hole");
  }

  #release(key: string, held: { count: number; readonly parts: readonly AreaPart[] }): void {
    for (const { area } of held.parts) area.pins--;
    if (--held.count === 0) this.#held.delete(key);
  }

  /** What the owner kept although it was asked: the IOAS must not wait for it for ever. */
  #releaseAll(): void {
    for (const [key, held] of [...this.#held]) while (held.count > 0) this.#release(key, held);
    for (const { firstPage, pages } of this.pins.pinned()) while (this.pins.unpin(firstPage, pages));
  }
}

function checkPermission(area: AreaPart["area"], write: boolean, call: Call): void {
  if (write ? area.writeable : area.readable) return;
  refuse("EPERM", call, `the mapping is not ${write ? "writeable" : "readable"}`);
}

function keyOf(iova: bigint, length: bigint): string {
  return `${iova}:${length}`;
}

/** The memory behind parts, one span per run that is contiguous in an arena; whole pages. */
function spans(parts: readonly AreaPart[]): MemorySpan[] {
  const result: { arena: MemorySpan["arena"]; offset: number; length: number }[] = [];
  for (const { area, offset, start, last } of parts) {
    const { arena } = area.pages;
    const length = Number(((last - start) / PAGE + 1n) * PAGE);
    const previous = result.at(-1);
    if (previous !== undefined && previous.arena === arena && previous.offset + previous.length === offset) {
      previous.length += length;
    } else {
      result.push({ arena, offset, length });
    }
  }
  return result;
}
