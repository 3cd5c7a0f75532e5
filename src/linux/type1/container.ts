import { constants } from "node:fs";
import { countBits } from "../../bitmap/bits.js";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { DirtmapError } from "../../errors.js";
import type { MemorySpan } from "../../host/host.js";
import type { Type1Iommu } from "../../host/type1.js";
import { hex, type Iova, PAGE_SIZE, U64_MAX } from "../../memory/address.js";
import { holdsOf } from "../../memory/holds.js";
import { OpenFile } from "../../sys/open-file.js";
import { Lock } from "../../threads/lock.js";
import { type ErrnoName, UapiError } from "../../uapi/errno.js";
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
  VFIO_GET_API_VERSION,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_UNSET_CONTAINER,
  VFIO_IOMMU_DIRTY_PAGES,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  VFIO_TYPE1v2_IOMMU,
  vfio_bitmap,
  vfio_iommu_type1_dirty_bitmap,
  vfio_iommu_type1_dirty_bitmap_get,
  vfio_iommu_type1_dma_map,
  vfio_iommu_type1_dma_unmap,
  vfio_iommu_type1_info,
} from "../../uapi/vfio.js";
import { Mappings } from "../mappings.js";
import { lockedMemoryRemedy, withRemedy } from "../remedies.js";
import { type GroupIdentity, VfioGroup } from "./group.js";
import { decodeType1Info, type Type1Info } from "./info.js";

/** The container that every kernel with CONFIG_VFIO_CONTAINER, or CONFIG_IOMMUFD_VFIO_CONTAINER in its place, has. */
export const CONTAINER_PATH = "/dev/vfio/vfio";

/** What VFIO_IOMMU_GET_INFO may answer: 65536 ranges of IOVA and the rest. */
const MAX_INFO_BYTES = 2 ** 20 + 4096;

/** A device, as a container needs to know it. */
export interface Type1Device {
  /** Its name in sysfs: a PCI address, an mdev's UUID. */
  readonly id: string;
  readonly group: GroupIdentity;
  /** An mdev: it writes only to what it pins, or has the kernel write for it (vfio_dma_rw), and Linux sees both. */
  readonly mdev: boolean;
}

/** Containers that are open. They are not to be collected before they are closed, nor what they have mapped. */
const open = new Set<LinuxType1Container>();

interface OpenGroup {
  readonly group: VfioGroup;
  readonly members: Map<string, Member>;
}

interface Member {
  readonly mdev: boolean;
  readonly file: OpenFile;
}

/**
 * A legacy VFIO container (/dev/vfio/vfio) with a type1 v2 IOMMU. A device that is in it was opened through its group,
 * and can't be opened by its character device meanwhile, nor be attached to an iommufd's page tables: Linux has either
 * for a group, not both.
 *
 * What holds: memory that is mapped is referred to from here until the kernel has unmapped it; operations run one after
 * the other, as in the kernel, which has one lock for all.
 */
export class LinuxType1Container implements Type1Iommu, AsyncDisposable {
  readonly #file: OpenFile;
  readonly #lock = new Lock();
  readonly #groups = new Map<number, OpenGroup>();
  readonly #mappings = new Mappings();

  private constructor(file: OpenFile) {
    this.#file = file;
    open.add(this);
  }

  /**
   * @param path another file that does a container's work: `/dev/iommu`, whose compatibility layer has no dirty pages
   * @throws UapiError ENOENT, EACCES …; EOPNOTSUPP for a kernel without type1 v2 or with another version of the API
   */
  static async open({ path = CONTAINER_PATH }: { path?: string } = {}): Promise<LinuxType1Container> {
    const file = await OpenFile.open(path, constants.O_RDWR, { name: `VFIO container ${path}`, remedy: openRemedy });
    try {
      const version = file.ioctl(VFIO_GET_API_VERSION, 0, () => `ask ${path} for its version`);
      const type1 = file.ioctl(VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU, () => `ask ${path} for type1`);
      if (version !== VFIO_API_VERSION || type1 === 0) {
        throw new UapiError("EOPNOTSUPP", {
          syscall: VFIO_CHECK_EXTENSION.name,
          attempted: `open ${path} for a type1 v2 IOMMU`,
          remedy: "the kernel needs CONFIG_VFIO_IOMMU_TYPE1 (module vfio_iommu_type1)",
        });
      }
    } catch (error) {
      await file[Symbol.asyncDispose]();
      throw error;
    }
    return new LinuxType1Container(file);
  }

  /** A container gets its IOMMU with its first device, and loses it with the last. */
  get hasIommu(): boolean {
    return this.#groups.size > 0;
  }

  get pinnedScope(): boolean {
    for (const { members } of this.#groups.values()) {
      for (const { mdev } of members.values()) if (!mdev) return false;
    }
    return true;
  }

  /** VFIO_IOMMU_GET_INFO. @throws UapiError EINVAL without a device; DirtmapError `MALFORMED` */
  info(): Type1Info {
    let answer = new Uint8Array(vfio_iommu_type1_info.size);
    // The first answer says how long the whole is, which may grow before the second is asked for.
    for (;;) {
      vfio_iommu_type1_info.encode({ argsz: answer.length }, answer);
      this.#file.ioctl(VFIO_IOMMU_GET_INFO, answer, () => "ask the container for its IOMMU's limits");
      const { argsz } = vfio_iommu_type1_info.decode(answer);
      if (argsz <= answer.length) return decodeType1Info(answer.subarray(0, argsz));
      if (argsz > MAX_INFO_BYTES) {
        throw new DirtmapError(`VFIO_IOMMU_GET_INFO has ${argsz} bytes to tell, which is not plausible`, {
          code: "MALFORMED",
        });
      }
      answer = new Uint8Array(argsz);
    }
  }

  /**
   * Opens a device: its group, unless a device of it is in the container already, goes into the container
   * (VFIO_GROUP_SET_CONTAINER); with the first one the container gets its IOMMU (VFIO_SET_IOMMU); then the device
   * (VFIO_GROUP_GET_DEVICE_FD). It may do DMA to what is mapped from then on. The container closes the descriptor, if
   * nobody has by then.
   * @throws UapiError EBUSY for one that is open already; EPERM for a group that a driver of the kernel uses too, or
   * where interrupts can't be isolated; EINVAL for an IOMMU that can't do what is mapped; ENODEV. Then it is as before
   */
  addDevice(device: Type1Device): Promise<OpenFile> {
    return this.#lock.run(async () => {
      const known = this.#groups.get(device.group.id);
      if (known?.members.has(device.id)) {
        throw new UapiError("EBUSY", {
          syscall: VFIO_GROUP_GET_DEVICE_FD.name,
          attempted: `open ${device.id}`,
          remedy: "it is in the container already",
        });
      }
      const home = known ?? (await this.#addGroup(device.group));
      try {
        const file = home.group.openDevice(device.id);
        home.members.set(device.id, { mdev: device.mdev, file });
        return file;
      } catch (error) {
        if (known === undefined) await this.#removeGroup(home);
        throw error;
      }
    });
  }

  /**
   * Closes a device, and with the last one of its group takes the group out (VFIO_GROUP_UNSET_CONTAINER). What a device
   * that did not report its writes may have written is dirty at the next read. With the last group all mappings go.
   * @throws UapiError ENODEV for a device that isn't in it
   */
  removeDevice(id: string): Promise<void> {
    return this.#lock.run(async () => {
      const home = [...this.#groups.values()].find(({ members }) => members.has(id));
      const member = home?.members.get(id);
      if (home === undefined || member === undefined) {
        throw new UapiError("ENODEV", {
          syscall: VFIO_GROUP_UNSET_CONTAINER.name,
          attempted: `remove ${id} from the container`,
          remedy: "it is not in it",
        });
      }
      await member.file[Symbol.asyncDispose]();
      home.members.delete(id);
      if (home.members.size === 0) await this.#removeGroup(home);
    });
  }

  mapDma(args: { iova: Iova; span: MemorySpan; readable: boolean; writeable: boolean }): Promise<void> {
    const { iova, span, readable, writeable } = args;
    return this.#lock.run(async () => {
      const attempted = () => `map ${hex(span.length)} bytes at ${hex(iova)}`;
      const call = { syscall: VFIO_IOMMU_MAP_DMA.name, attempted };
      const { arena, offset, length } = span;
      const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
      if (!whole || offset + length > arena.bytes) {
        throw new UapiError("EFAULT", { ...call, attempted: attempted(), remedy: "name memory inside the arena" });
      }
      const size = BigInt(length);
      checkU64(call, iova, size);
      const holds = holdsOf(arena);
      const map = vfio_iommu_type1_dma_map.encode({
        argsz: vfio_iommu_type1_dma_map.size,
        flags: (readable ? VFIO_DMA_MAP_FLAG_READ : 0) | (writeable ? VFIO_DMA_MAP_FLAG_WRITE : 0),
        vaddr: BigInt(holds.address + offset),
        iova,
        size,
      });
      // From before the kernel sees it: the memory must not go while the call runs.
      holds.take();
      try {
        await this.#file.ioctlOnThread(VFIO_IOMMU_MAP_DMA, map, attempted);
      } catch (error) {
        holds.release();
        throw withRemedy(error, ({ code }) => this.#mapRemedy(code));
      }
      this.#mappings.add(iova, size, holds);
    });
  }

  unmapDma(args: { iova: Iova; length: bigint; all?: boolean; dirty?: DirtyBitmap }): Promise<bigint> {
    const { iova, length, all = false, dirty } = args;
    return this.#lock.run(async () => {
      const attempted = () => `unmap ${all ? "everything" : `${hex(length)} bytes at ${hex(iova)}`}`;
      const call = { syscall: VFIO_IOMMU_UNMAP_DMA.name, attempted };
      checkU64(call, iova, length);
      const unmap = new Uint8Array(vfio_iommu_type1_dma_unmap.size + vfio_bitmap.size);
      const flags =
        (all ? VFIO_DMA_UNMAP_FLAG_ALL : 0) | (dirty === undefined ? 0 : VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP);
      vfio_iommu_type1_dma_unmap.encode({ argsz: unmap.length, flags, iova, size: length }, unmap);
      const ioctl = () => this.#file.ioctlOnThread(VFIO_IOMMU_UNMAP_DMA, unmap, attempted);
      if (dirty === undefined) await ioctl();
      else {
        await this.#withBitmap({ iova, length, into: dirty }, call, async (bitmap) => {
          vfio_bitmap.encode(bitmap, unmap, vfio_iommu_type1_dma_unmap.size);
          await ioctl();
        });
      }
      const last = all ? U64_MAX : iova + length - 1n;
      this.#mappings.remove(iova, last);
      return vfio_iommu_type1_dma_unmap.decode(unmap).size;
    });
  }

  dirtyPagesStart(): Promise<void> {
    return this.#lock.run(async () => this.#dirtyPages(VFIO_IOMMU_DIRTY_PAGES_FLAG_START, "start tracking"));
  }

  dirtyPagesStop(): Promise<void> {
    return this.#lock.run(async () => this.#dirtyPages(VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, "stop tracking"));
  }

  dirtyPagesGetBitmap({ iova, length, into }: { iova: Iova; length: bigint; into: DirtyBitmap }): Promise<void> {
    return this.#lock.run(async () => {
      for (const part of this.#parts(iova, length)) await this.#getBitmap({ ...part, into });
    });
  }

  /** Closes devices, groups and container; the kernel unmaps all. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#lock.run(async () => {
      for (const { group, members } of this.#groups.values()) {
        for (const { file } of members.values()) await file[Symbol.asyncDispose]();
        await group[Symbol.asyncDispose]();
      }
      this.#groups.clear();
      await this.#file[Symbol.asyncDispose]();
      this.#mappings.clear();
      open.delete(this);
    });
  }

  async #addGroup(identity: GroupIdentity): Promise<OpenGroup> {
    const group = await VfioGroup.open(identity);
    try {
      await group.setContainer(this.#file);
      if (!this.hasIommu) {
        this.#file.ioctl(
          VFIO_SET_IOMMU,
          VFIO_TYPE1v2_IOMMU,
          () => `give the container of group ${identity.id} its IOMMU`,
        );
      }
    } catch (error) {
      await group[Symbol.asyncDispose]();
      throw withRemedy(error, ({ code }) => attachRemedy(code, identity));
    }
    const home = { group, members: new Map<string, Member>() };
    this.#groups.set(identity.id, home);
    return home;
  }

  async #removeGroup({ group }: OpenGroup): Promise<void> {
    try {
      await group.unsetContainer();
    } finally {
      await group[Symbol.asyncDispose]();
      this.#groups.delete(group.id);
      if (!this.hasIommu) this.#mappings.clear();
    }
  }

  #dirtyPages(flags: number, attempted: string): void {
    const dirty = vfio_iommu_type1_dirty_bitmap.encode({ argsz: vfio_iommu_type1_dirty_bitmap.size, flags });
    try {
      this.#file.ioctl(VFIO_IOMMU_DIRTY_PAGES, dirty, () => attempted);
    } catch (error) {
      throw withRemedy(error, () => this.#dirtyRemedy());
    }
  }

  /**
   * The reads that make up one. Linux shifts a mapping's bits in place where the mapping's first bit is not the first of
   * a word, and does not clear what it has shifted beyond the mapping's end: later reads then report pages that are not
   * dirty, or not even mapped (update_user_bitmap and vfio_iova_dirty_bitmap). So each mapping is read by itself, bit 0
   * being its first page. What the kernel refuses, it is asked for as a whole.
   */
  #parts(iova: Iova, length: bigint): { iova: Iova; length: bigint }[] {
    const last = iova + length - 1n;
    const mappings = iova < 0n || length <= 0n ? [] : this.#mappings.in(iova, last);
    const misaligned = ((iova | length) & 4095n) !== 0n;
    if (
      misaligned ||
      mappings.length === 0 ||
      mappings.some((mapping) => mapping.start < iova || mapping.last > last)
    ) {
      return [{ iova, length }];
    }
    return mappings.map((mapping) => ({ iova: mapping.start, length: mapping.last - mapping.start + 1n }));
  }

  async #getBitmap(query: { iova: Iova; length: bigint; into: DirtyBitmap }): Promise<void> {
    const { iova, length } = query;
    const attempted = () => `get the bitmap of ${hex(length)} bytes at ${hex(iova)}`;
    const call = { syscall: VFIO_IOMMU_DIRTY_PAGES.name, attempted };
    checkU64(call, iova, length);
    const { size } = vfio_iommu_type1_dirty_bitmap;
    const get = new Uint8Array(size + vfio_iommu_type1_dirty_bitmap_get.size);
    vfio_iommu_type1_dirty_bitmap.encode({ argsz: get.length, flags: VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP }, get);
    await this.#withBitmap(query, call, async (bitmap) => {
      vfio_iommu_type1_dirty_bitmap_get.encode({ iova, size: length, bitmap }, get, size);
      await this.#file.ioctlOnThread(VFIO_IOMMU_DIRTY_PAGES, get, attempted);
    });
  }

  /**
   * Has the kernel write a range's bits, and adds them to the caller's bitmap. Linux writes whole words over what is
   * there, instead of adding to it: it may write to the caller's bitmap only where that has no bits yet, and where the
   * range begins at a word; else to one that is added afterwards.
   */
  async #withBitmap(
    { iova, length, into }: { iova: Iova; length: bigint; into: DirtyBitmap },
    { syscall, attempted }: Call,
    write: (bitmap: { pgsize: bigint; size: bigint; data: bigint }) => Promise<void>,
  ): Promise<void> {
    const granule = BigInt(into.granule);
    const first = (iova - into.iova) / granule;
    if (iova < into.iova || (iova - into.iova) % granule !== 0n || iova + length > into.iova + into.length) {
      throw new UapiError("EINVAL", { syscall, attempted: attempted(), remedy: "give a bitmap of that range" });
    }
    // The kernel wants room for whole words of 64 bits; bitmaps are padded to pages.
    const size = ((length / granule + 63n) / 64n) * 8n;
    const word = Number(first / 32n);
    const place = into.words.subarray(word, word + Number(size / 4n));
    const inPlace = first % 64n === 0n && countBits(place) === 0;
    const bitmap = inPlace ? into : new DirtyBitmap({ iova, length: length || granule, granule: into.granule });
    const data = BigInt(bitmap.address) + (inPlace ? BigInt(word) * 4n : 0n);
    try {
      await write({ pgsize: granule, size, data });
    } catch (error) {
      throw withRemedy(error, () => this.#dirtyRemedy());
    }
    if (!inPlace) into.or(bitmap);
  }

  #mapRemedy(code: ErrnoName): string | undefined {
    if (code === "ENOMEM") return lockedMemoryRemedy();
    if (code === "EEXIST") return "unmap first";
    if (code === "ENOSPC") return "map in fewer, larger pieces, or raise vfio_iommu_type1's parameter dma_entry_limit";
    if (code !== "EINVAL") return undefined;
    if (!this.hasIommu) return "add a device to the container first";
    const { pageSize, iovaRanges } = this.#infoIfAny() ?? { pageSize: PAGE_SIZE, iovaRanges: null };
    const where = iovaRanges?.map(({ start, last }) => `${hex(start)} to ${hex(last)}`).join(", ");
    return `give an IOVA, length and memory that are multiples of ${pageSize}${where ? `, within ${where}` : ""}`;
  }

  /** For remedies, which must not fail themselves. */
  #infoIfAny(): Type1Info | null {
    try {
      return this.info();
    } catch {
      return null;
    }
  }

  #dirtyRemedy(): string | undefined {
    if (!this.hasIommu) return "add a device to the container first";
    if (this.#infoIfAny()?.dirtyPages !== null) return undefined;
    return (
      "iommufd stands in for the container here, and its compatibility layer has no dirty pages: use the container " +
      "(CONFIG_VFIO_CONTAINER), or an iommufd's own page tables and their dirty tracking"
    );
  }
}

interface Call {
  readonly syscall: string;
  readonly attempted: () => string;
}

/** A structure's field has 64 bits. */
function checkU64({ syscall, attempted }: Call, ...values: bigint[]): void {
  if (values.every((value) => value >= 0n && value <= U64_MAX)) return;
  throw new UapiError("EOVERFLOW", { syscall, attempted: attempted(), remedy: "end the range at or below 2^64" });
}

function openRemedy(code: ErrnoName): string | undefined {
  if (code === "ENOENT" || code === "ENODEV") {
    return "load the module vfio; the kernel needs CONFIG_VFIO_GROUP and CONFIG_VFIO_CONTAINER (or CONFIG_IOMMUFD_VFIO_CONTAINER)";
  }
  return code === "EACCES" ? "let this user read and write /dev/vfio/vfio, or run as root" : undefined;
}

function attachRemedy(code: ErrnoName, { id }: GroupIdentity): string | undefined {
  if (code === "EPERM") {
    return (
      "the interrupts of its devices can't be isolated: switch interrupt remapping on in the firmware, or accept the " +
      "risk with vfio_iommu_type1's parameter allow_unsafe_interrupts"
    );
  }
  if (code === "ENODEV") return "the kernel needs CONFIG_VFIO_IOMMU_TYPE1 (module vfio_iommu_type1)";
  return code === "EINVAL"
    ? `unmap what the IOMMU of group ${id} can't translate, or give it a container of its own`
    : undefined;
}
