import { closeSync, openSync } from "node:fs";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import type {
  BitmapQuery,
  HwInfo,
  Iommufd,
  IommuOption,
  IovaRange,
  MapFlags,
  MemoryFile,
  MemorySpan,
  ObjectId,
} from "../host/host.js";
import { hex, type Iova, MiB, U64_MAX } from "../memory/address.js";
import { type ArenaHolds, holdsOf } from "../memory/holds.js";
import { addressOf } from "../sys/address.js";
import { ioctl, ioctlOnThread } from "../sys/ioctl.js";
import { type ErrnoName, errnoName, isErrno, UapiError } from "../uapi/errno.js";
import type { IoctlRequest } from "../uapi/ioctl.js";
import * as uapi from "../uapi/iommufd.js";
import type { Fields, Given, Struct, Values } from "../uapi/struct.js";
import { Command } from "./command.js";
import { completeLeaves, reportsLeavesShort } from "./contiguous-leaves.js";
import { decodeHwInfo } from "./hw-info.js";
import { Mappings } from "./mappings.js";
import { LinuxMemoryFile } from "./memory-file.js";
import { withRemedy } from "./remedies.js";

/**
 * Calls about more bytes than this go to a thread. To hand a call to a thread and its answer back takes some 20 us; to stay
 * here holds up everything else that this thread does. Mapping costs the kernel most, since it faults in, zeroes and pins
 * each page: 0.1 to 0.5 us a page, so 1 MiB, 256 pages, takes about 0.1 ms.
 */
const MAP_HERE_BYTES = 1 * MiB;

/**
 * The same for reading dirty bits, where the kernel looks at an IOPTE or two per page, at a few ns each: 64 MiB of
 * pages of 4 KiB take less than 0.1 ms.
 */
const READ_HERE_BYTES = 64 * MiB;

/** Ranges that IOMMU_IOAS_IOVA_RANGES is first asked for; few IOMMUs have more than a handful. */
const IOVA_RANGES = 16;
/** How often it is asked again because there were more, before something is wrong. */
const IOVA_RANGES_TRIES = 8;

/** Bytes of IOMMU_GET_HW_INFO's data that are asked for: more than any type has. */
const HW_INFO_BYTES = 256;

/** Linux doesn't tell what leaves it met. */
const NO_LEAF_SIZES: { readonly leafSizes: readonly number[] } = { leafSizes: [] };

/** Iommufds that are open. They are not to be collected before they are closed, nor what they hold. */
const open = new Set<LinuxIommufd>();

/** An IOAS as this process knows it. */
class Space {
  readonly mappings = new Mappings();
  /**
   * The last of the calls that change its mappings, while one is waiting or running on a thread: the next waits for it.
   * So the mappings change here in the order in which the kernel changes them.
   */
  tail: Promise<unknown> | null = null;
  /** False while everything in it is mapped with pages of the smallest size. */
  largeLeaves = true;
}

/** What one call does, for {@link LinuxIommufd}'s own use. */
interface Call<T> {
  readonly command: Command;
  /** How much work it is for the kernel. */
  readonly thread: boolean;
  /** Sets the fields of `command` that change. */
  readonly encode: () => void;
  /** Takes the kernel's answer out of `command`. */
  readonly decode: () => T;
  readonly attempted: () => string;
  /** Called where the kernel refused. */
  readonly failed?: () => void;
}

/**
 * /dev/iommu of this machine: one ioctl per method (include/uapi/linux/iommufd.h), the kernel's errno where it refuses.
 *
 * Memory that it maps is held: it can be neither let go of nor collected until the kernel has unmapped it, which is at
 * {@link unmap}, at the destruction of the IOAS, or when this object is disposed of.
 */
export class LinuxIommufd implements Iommufd {
  readonly #spaces = new Map<ObjectId, Space>();
  /** HWPTs whose contiguous leaves are reported one entry short, and their IOASes. */
  readonly #short = new Map<ObjectId, Space>();
  readonly #underWay = new Set<Promise<unknown>>();
  #fd: number;
  #closing: Promise<void> | null = null;

  readonly #map = new Command(uapi.IOMMU_IOAS_MAP, uapi.iommu_ioas_map);
  readonly #mapFile = new Command(uapi.IOMMU_IOAS_MAP_FILE, uapi.iommu_ioas_map_file);
  readonly #copy = new Command(uapi.IOMMU_IOAS_COPY, uapi.iommu_ioas_copy);
  readonly #unmap = new Command(uapi.IOMMU_IOAS_UNMAP, uapi.iommu_ioas_unmap);
  readonly #getDirty = new Command(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.iommu_hwpt_get_dirty_bitmap);

  private constructor(fd: number) {
    this.#fd = fd;
    open.add(this);
  }

  /** @throws UapiError ENOENT or ENODEV without iommufd, EACCES without the right to open it */
  static open(path = "/dev/iommu"): LinuxIommufd {
    try {
      return new LinuxIommufd(openSync(path, "r+"));
    } catch (error) {
      const { errno, code } = error as NodeJS.ErrnoException;
      if (errno === undefined) throw error;
      throw new UapiError(errnoName(-errno), {
        syscall: "open",
        attempted: `open ${path}`,
        remedy: OPEN_REMEDIES.get(code ?? ""),
        cause: error,
      });
    }
  }

  /** For VFIO_DEVICE_BIND_IOMMUFD; -1 once it is closed. */
  get fd(): number {
    return this.#fd;
  }

  async allocIoas(): Promise<ObjectId> {
    const { out_ioas_id } = this.#call(uapi.IOMMU_IOAS_ALLOC, uapi.iommu_ioas_alloc, {}, () => "make an IOAS");
    this.#spaces.set(out_ioas_id, new Space());
    return out_ioas_id;
  }

  async iovaRanges(ioas: ObjectId): Promise<{ ranges: IovaRange[]; alignment: number }> {
    const { iommu_ioas_iova_ranges: layout, iommu_iova_range: element } = uapi;
    const attempted = () => `list the IOVAs of IOAS ${ioas}`;
    let room = IOVA_RANGES;
    for (let tries = 0; tries < IOVA_RANGES_TRIES; tries++) {
      const bytes = new Uint8Array(layout.size + room * element.size);
      const allowed_iovas = addressOf(bytes) + BigInt(layout.size);
      const id = idOf(ioas, uapi.IOMMU_IOAS_IOVA_RANGES, attempted);
      layout.encode({ size: layout.size, ioas_id: id, num_iovas: room, allowed_iovas }, bytes);
      try {
        this.#ioctl(uapi.IOMMU_IOAS_IOVA_RANGES, bytes, attempted);
      } catch (error) {
        if (!isErrno(error, "EMSGSIZE")) throw error;
        room = layout.decode(bytes).num_iovas;
        continue;
      }
      const { num_iovas, out_iova_alignment } = layout.decode(bytes);
      const ranges = Array.from({ length: Math.min(num_iovas, room) }, (_, index) =>
        element.decode(bytes, layout.size + index * element.size),
      );
      return { ranges, alignment: Number(out_iova_alignment) };
    }
    return refuse("EMSGSIZE", uapi.IOMMU_IOAS_IOVA_RANGES, attempted);
  }

  async allowIovas(ioas: ObjectId, ranges: readonly IovaRange[]): Promise<void> {
    const { iommu_ioas_allow_iovas: layout, iommu_iova_range: element } = uapi;
    const attempted = () => {
      const text = ranges.map(({ start, last }) => `${hex(start)}-${hex(last)}`).join(", ") || "everything";
      return `allow ${text} in IOAS ${ioas}`;
    };
    const bytes = new Uint8Array(layout.size + ranges.length * element.size);
    for (const [index, { start, last }] of ranges.entries()) {
      if (!isU64(start) || !isU64(last)) refuse("EOVERFLOW", uapi.IOMMU_IOAS_ALLOW_IOVAS, attempted);
      element.encode({ start, last }, bytes, layout.size + index * element.size);
    }
    const values = {
      size: layout.size,
      ioas_id: idOf(ioas, uapi.IOMMU_IOAS_ALLOW_IOVAS, attempted),
      num_iovas: ranges.length,
      allowed_iovas: addressOf(bytes) + BigInt(layout.size),
    };
    layout.encode(values, bytes);
    this.#ioctl(uapi.IOMMU_IOAS_ALLOW_IOVAS, bytes, attempted);
  }

  map(ioas: ObjectId, span: MemorySpan, flags: MapFlags): Promise<Iova> {
    const command = this.#map;
    const { u32, u64 } = command;
    const { offset, length } = span;
    const attempted = () => mapping(ioas, length, flags);
    const space = this.#space(ioas);
    let holds: ArenaHolds;
    return this.#change([space], {
      command,
      thread: length > MAP_HERE_BYTES,
      attempted,
      encode: () => {
        checkStretch(offset, length, command, attempted);
        if (offset + length > span.arena.bytes) {
          refuse("EFAULT", command.request, attempted, "give memory inside the arena");
        }
        holds = holdsOf(span.arena);
        u32[MAP.flags] = flagsOf(flags);
        u32[MAP.ioas_id] = idOf(ioas, command.request, attempted);
        command.setNumber(MAP.user_va, holds.address + offset);
        command.setNumber(MAP.length, length);
        u64[MAP.iova] = iovaOf(flags, command, attempted);
        // From before the kernel sees it: the memory must not go while the call runs.
        holds.take();
      },
      decode: () => {
        const iova = u64[MAP.iova];
        space.mappings.add(iova, u64[MAP.length], holds);
        return iova;
      },
      failed: () => holds.release(),
    });
  }

  mapFile(
    ioas: ObjectId,
    file: MemoryFile,
    { start, length }: { start: number; length: number },
    flags: MapFlags,
  ): Promise<Iova> {
    const command = this.#mapFile;
    const { u32, u64 } = command;
    const attempted = () => mapping(ioas, length, flags);
    return this.#change([this.#space(ioas)], {
      command,
      thread: length > MAP_HERE_BYTES,
      attempted,
      encode: () => {
        checkStretch(start, length, command, attempted);
        u32[MAP_FILE.flags] = flagsOf(flags);
        u32[MAP_FILE.ioas_id] = idOf(ioas, command.request, attempted);
        // Of a file that another host made there is no descriptor: the kernel's answer to -1 is the right one, EBADF.
        u32[MAP_FILE.fd] = file instanceof LinuxMemoryFile ? file.fd : -1;
        command.setNumber(MAP_FILE.start, start);
        command.setNumber(MAP_FILE.length, length);
        u64[MAP_FILE.iova] = iovaOf(flags, command, attempted);
      },
      decode: () => u64[MAP_FILE.iova],
    });
  }

  copy(from: { ioas: ObjectId; iova: Iova; length: bigint }, to: { ioas: ObjectId } & MapFlags): Promise<Iova> {
    const command = this.#copy;
    const { u32, u64 } = command;
    const { iova, length } = from;
    const attempted = () => `copy ${hex(length)} bytes at ${hex(iova)} of IOAS ${from.ioas} to IOAS ${to.ioas}`;
    const source = this.#space(from.ioas);
    const target = this.#space(to.ioas);
    return this.#change([source, target], {
      command,
      thread: length > MAP_HERE_BYTES,
      attempted,
      encode: () => {
        if (!isU64(iova) || !isU64(length)) refuse("EOVERFLOW", command.request, attempted);
        u32[COPY.flags] = flagsOf(to);
        u32[COPY.dst_ioas_id] = idOf(to.ioas, command.request, attempted);
        u32[COPY.src_ioas_id] = idOf(from.ioas, command.request, attempted);
        u64[COPY.length] = length;
        u64[COPY.dst_iova] = iovaOf(to, command, attempted);
        u64[COPY.src_iova] = iova;
      },
      decode: () => {
        const copied = u64[COPY.dst_iova];
        source.mappings.copyTo(target.mappings, { iova, length, to: copied });
        return copied;
      },
    });
  }

  unmap(ioas: ObjectId, iova: Iova, length: bigint): Promise<bigint> {
    const command = this.#unmap;
    const { u32, u64 } = command;
    const attempted = () => `unmap ${hex(length)} bytes at ${hex(iova)} of IOAS ${ioas}`;
    const space = this.#space(ioas);
    return this.#change([space], {
      command,
      thread: length > MAP_HERE_BYTES,
      attempted,
      encode: () => {
        if (!isU64(iova) || !isU64(length)) refuse("EOVERFLOW", command.request, attempted);
        u32[UNMAP.ioas_id] = idOf(ioas, command.request, attempted);
        u64[UNMAP.iova] = iova;
        u64[UNMAP.length] = length;
      },
      decode: () => {
        space.mappings.remove(iova, lastOf(iova, length));
        return u64[UNMAP.length];
      },
      failed: () => this.#followUnmap(ioas, space, iova, length),
    });
  }

  async setOption(option: IommuOption, value: number): Promise<void> {
    const attempted = () => `set ${option.option} to ${value}`;
    if (!Number.isSafeInteger(value) || value < 0) refuse("EINVAL", uapi.IOMMU_OPTION, attempted);
    this.#option(option, { op: uapi.IOMMU_OPTION_OP_SET, val64: BigInt(value) }, attempted);
    // The kernel refuses to switch large leaves off while any could be there.
    if (option.option === "HUGE_PAGES") this.#space(option.ioas).largeLeaves = value !== 0;
  }

  async getOption(option: IommuOption): Promise<number> {
    return Number(this.#option(option, { op: uapi.IOMMU_OPTION_OP_GET, val64: 0n }, () => `get ${option.option}`));
  }

  async hwInfo(device: ObjectId): Promise<HwInfo> {
    const { iommu_hw_info: layout, IOMMU_GET_HW_INFO: request } = uapi;
    const attempted = () => `ask for the IOMMU of device ${device}`;
    const bytes = new Uint8Array(layout.size + HW_INFO_BYTES);
    const values = {
      size: layout.size,
      dev_id: idOf(device, request, attempted),
      data_len: HW_INFO_BYTES,
      data_uptr: addressOf(bytes) + BigInt(layout.size),
    };
    layout.encode(values, bytes);
    this.#ioctl(request, bytes, attempted);
    const { out_data_type, out_capabilities, data_len } = layout.decode(bytes);
    const data = bytes.slice(layout.size, layout.size + Math.min(data_len, HW_INFO_BYTES));
    return decodeHwInfo({ type: out_data_type, capabilities: out_capabilities, data });
  }

  async allocHwpt(args: { device: ObjectId; ioas: ObjectId; dirtyTracking: boolean }): Promise<ObjectId> {
    const { device, ioas, dirtyTracking } = args;
    const attempted = () =>
      `make an HWPT${dirtyTracking ? " with dirty tracking" : ""} for device ${device} on IOAS ${ioas}`;
    const request = uapi.IOMMU_HWPT_ALLOC;
    const values = {
      flags: dirtyTracking ? uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING : 0,
      dev_id: idOf(device, request, attempted),
      pt_id: idOf(ioas, request, attempted),
    };
    const hwpt = this.#call(request, uapi.iommu_hwpt_alloc, values, attempted).out_hwpt_id;
    this.#short.delete(hwpt);
    if (dirtyTracking && reportsLeavesShort() && (await this.hwInfo(device)).type === "amd") {
      this.#short.set(hwpt, this.#space(ioas));
    }
    return hwpt;
  }

  async allocEmulatedIommu(ioas: ObjectId): Promise<never> {
    throw new UapiError("EOPNOTSUPP", {
      syscall: "allocEmulatedIommu",
      attempted: `make an emulated IOMMU on IOAS ${ioas}`,
      remedy: "Linux has no such object: track each mdev by itself",
    });
  }

  async setDirtyTracking(hwpt: ObjectId, on: boolean): Promise<void> {
    const attempted = () => `switch dirty tracking of HWPT ${hwpt} ${on ? "on" : "off"}`;
    const request = uapi.IOMMU_HWPT_SET_DIRTY_TRACKING;
    const values = {
      flags: on ? uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0,
      hwpt_id: idOf(hwpt, request, attempted),
    };
    this.#call(request, uapi.iommu_hwpt_set_dirty_tracking, values, attempted);
  }

  getDirtyBitmap(hwpt: ObjectId, query: BitmapQuery & { clear: boolean }): Promise<{ leafSizes: readonly number[] }> {
    const { iova, length, pageSize, into, clear } = query;
    const firstBit = into.iova === iova ? 0 : Number(iova - into.iova) / pageSize;
    // The kernel writes from a byte on. A bitmap whose bits for this range begin inside one is filled by way of another.
    if (firstBit > 0 && Number.isInteger(firstBit) && firstBit % 8 !== 0) return this.#readAside(hwpt, query);
    const command = this.#getDirty;
    const { u32, u64 } = command;
    const attempted = () => `read the dirty bits of ${hex(length)} bytes at ${hex(iova)} of HWPT ${hwpt}`;
    return this.#change(NO_SPACES, {
      command,
      thread: length > READ_HERE_BYTES,
      attempted,
      encode: () => {
        if (!isU64(iova) || !isU64(length)) refuse("EOVERFLOW", command.request, attempted);
        // The kernel is given an address, and writes what it finds: that the bits fit is for us to check.
        const fits = into.granule === pageSize && firstBit >= 0 && firstBit + Number(length) / pageSize <= into.bits;
        if (!fits || firstBit % 1 !== 0) {
          refuse("EINVAL", command.request, attempted, "give a bitmap of that range and page size");
        }
        u32[GET_DIRTY.hwpt_id] = idOf(hwpt, command.request, attempted);
        u32[GET_DIRTY.flags] = clear ? 0 : uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
        u64[GET_DIRTY.iova] = iova;
        u64[GET_DIRTY.length] = length;
        command.setNumber(GET_DIRTY.page_size, pageSize);
        command.setNumber(GET_DIRTY.data, into.address + firstBit / 8);
      },
      decode: () => {
        if (this.#short.get(hwpt)?.largeLeaves) completeLeaves(into, { iova, length });
        return NO_LEAF_SIZES;
      },
    });
  }

  /** @throws UapiError EOPNOTSUPP, always: on Linux accesses are made by the drivers of mdevs, in the kernel */
  async createAccess(ioas: ObjectId): Promise<never> {
    throw new UapiError("EOPNOTSUPP", {
      syscall: "iommufd_access_create",
      attempted: `make an access to IOAS ${ioas}`,
      remedy: "on Linux an mdev's driver makes it, in the kernel, when the mdev is bound",
    });
  }

  async destroy(id: ObjectId): Promise<void> {
    const attempted = () => `destroy object ${id}`;
    const request = uapi.IOMMU_DESTROY;
    const space = this.#spaces.get(id);
    if (space?.tail) await space.tail.catch(() => {});
    this.#call(request, uapi.iommu_destroy, { id: idOf(id, request, attempted) }, attempted);
    space?.mappings.clear();
    this.#spaces.delete(id);
  }

  /**
   * Waits for the calls under way, unmaps all memory of this process, and closes the descriptor. A device that is still
   * bound keeps the kernel's side alive, but reaches no memory through it any more. Calls that come later are EBADF.
   */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    const fd = this.#fd;
    this.#fd = -1;
    for (const [ioas, { mappings }] of this.#spaces) {
      if (mappings.empty) continue;
      const { iommu_ioas_unmap: layout } = uapi;
      const all = layout.encode({ size: layout.size, ioas_id: ioas, iova: 0n, length: U64_MAX });
      // What can't be unmapped stays held: an mdev's driver didn't let go of its pins.
      await ioctlOnThread(fd, uapi.IOMMU_IOAS_UNMAP, all, () => `unmap IOAS ${ioas}`).then(
        () => mappings.clear(),
        () => {},
      );
    }
    closeSync(fd);
    if ([...this.#spaces.values()].every(({ mappings }) => mappings.empty)) open.delete(this);
  }

  #space(ioas: ObjectId): Space {
    let space = this.#spaces.get(ioas);
    if (space === undefined) {
      space = new Space();
      this.#spaces.set(ioas, space);
    }
    return space;
  }

  /**
   * Does a call, here or on a thread, after those under way that change the mappings of the same spaces. The command's
   * structure is this object's, and lent to the call from `encode` to `decode`, which run without a break between; a call on
   * a thread gets a copy.
   */
  async #change<T>(spaces: readonly Space[], call: Call<T>): Promise<T> {
    if (this.#closing !== null) refuse("EBADF", call.command.request, call.attempted, "open the iommufd first");
    if (call.thread || spaces.some(({ tail }) => tail !== null)) return this.#later(spaces, call);
    call.encode();
    try {
      ioctl(this.#fd, call.command.request, call.command.bytes, call.attempted);
    } catch (error) {
      call.failed?.();
      throw withRemedy(error);
    }
    return call.decode();
  }

  #later<T>(spaces: readonly Space[], call: Call<T>): Promise<T> {
    const before = spaces.map(({ tail }) => tail);
    const running = this.#onThread(before, call);
    this.#underWay.add(running);
    for (const space of spaces) space.tail = running;
    const done = () => {
      this.#underWay.delete(running);
      for (const space of spaces) if (space.tail === running) space.tail = null;
    };
    running.then(done, done);
    return running;
  }

  async #onThread<T>(before: readonly (Promise<unknown> | null)[], call: Call<T>): Promise<T> {
    await Promise.allSettled(before);
    const { command, attempted } = call;
    call.encode();
    const bytes = command.bytes.slice();
    try {
      await ioctlOnThread(this.#fd, command.request, bytes, attempted);
    } catch (error) {
      call.failed?.();
      throw withRemedy(error);
    }
    command.bytes.set(bytes);
    return call.decode();
  }

  /**
   * An unmap of a range fails at the first mapping that it can't unmap, with those below unmapped. The kernel knows which:
   * a copy of a mapping onto itself is refused with EEXIST while it is there, and with ENOENT once it isn't.
   */
  #followUnmap(ioas: ObjectId, space: Space, iova: Iova, length: bigint): void {
    if (!isU64(iova) || !isU64(length) || length === 0n) return;
    for (const { start, last } of space.mappings.in(iova, lastOf(iova, length))) {
      const { iommu_ioas_copy: layout } = uapi;
      const probe = layout.encode({
        size: layout.size,
        flags: uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_READABLE,
        src_ioas_id: ioas,
        dst_ioas_id: ioas,
        length: last - start + 1n,
        src_iova: start,
        dst_iova: start,
      });
      try {
        ioctl(this.#fd, uapi.IOMMU_IOAS_COPY, probe, () => `look whether ${hex(start)} is mapped in IOAS ${ioas}`);
      } catch (error) {
        if (!isErrno(error, "ENOENT")) return;
      }
      space.mappings.remove(start, last);
    }
  }

  async #readAside(hwpt: ObjectId, query: BitmapQuery & { clear: boolean }): Promise<{ leafSizes: readonly number[] }> {
    const { iova, length, pageSize, into } = query;
    const aside = new DirtyBitmap({ iova, length, granule: pageSize });
    const answer = await this.getDirtyBitmap(hwpt, { ...query, into: aside });
    into.or(aside);
    return answer;
  }

  #option(option: IommuOption, values: { op: number; val64: bigint }, attempted: () => string): bigint {
    const object = option.option === "HUGE_PAGES" ? option.ioas : 0;
    const option_id = option.option === "HUGE_PAGES" ? uapi.IOMMU_OPTION_HUGE_PAGES : uapi.IOMMU_OPTION_RLIMIT_MODE;
    const object_id = idOf(object, uapi.IOMMU_OPTION, attempted);
    return this.#call(uapi.IOMMU_OPTION, uapi.iommu_option, { ...values, option_id, object_id }, attempted).val64;
  }

  /** An ioctl that takes one structure, sets its `size`, and returns what the kernel made of it. */
  #call<Of extends Fields & { readonly size: "u32" }>(
    request: IoctlRequest,
    layout: Struct<Of>,
    values: Given<Of>,
    attempted: () => string,
  ): Values<Of> {
    const bytes = layout.encode({ ...values, size: layout.size });
    this.#ioctl(request, bytes, attempted);
    return layout.decode(bytes);
  }

  #ioctl(request: IoctlRequest, bytes: Uint8Array, attempted: () => string): void {
    if (this.#closing !== null) refuse("EBADF", request, attempted, "open the iommufd first");
    try {
      ioctl(this.#fd, request, bytes, attempted);
    } catch (error) {
      throw withRemedy(error);
    }
  }
}

const NO_SPACES: readonly Space[] = [];

const OPEN_REMEDIES: ReadonlyMap<string, string> = new Map([
  ["ENOENT", "load the module iommufd, of Linux 6.2 or later (CONFIG_IOMMUFD)"],
  ["ENODEV", "load the module iommufd, of Linux 6.2 or later (CONFIG_IOMMUFD)"],
  ["EACCES", "run as root, or give this user the right to read and write it"],
  ["EPERM", "run as root, or outside a sandbox that forbids the device"],
]);

/** Where the fields of the hot commands lie: u32 by offset / 4, u64 by offset / 8. */
const MAP = {
  flags: uapi.iommu_ioas_map.offsetOf("flags") / 4,
  ioas_id: uapi.iommu_ioas_map.offsetOf("ioas_id") / 4,
  user_va: uapi.iommu_ioas_map.offsetOf("user_va") / 8,
  length: uapi.iommu_ioas_map.offsetOf("length") / 8,
  iova: uapi.iommu_ioas_map.offsetOf("iova") / 8,
};
const MAP_FILE = {
  flags: uapi.iommu_ioas_map_file.offsetOf("flags") / 4,
  ioas_id: uapi.iommu_ioas_map_file.offsetOf("ioas_id") / 4,
  fd: uapi.iommu_ioas_map_file.offsetOf("fd") / 4,
  start: uapi.iommu_ioas_map_file.offsetOf("start") / 8,
  length: uapi.iommu_ioas_map_file.offsetOf("length") / 8,
  iova: uapi.iommu_ioas_map_file.offsetOf("iova") / 8,
};
const COPY = {
  flags: uapi.iommu_ioas_copy.offsetOf("flags") / 4,
  dst_ioas_id: uapi.iommu_ioas_copy.offsetOf("dst_ioas_id") / 4,
  src_ioas_id: uapi.iommu_ioas_copy.offsetOf("src_ioas_id") / 4,
  length: uapi.iommu_ioas_copy.offsetOf("length") / 8,
  dst_iova: uapi.iommu_ioas_copy.offsetOf("dst_iova") / 8,
  src_iova: uapi.iommu_ioas_copy.offsetOf("src_iova") / 8,
};
const UNMAP = {
  ioas_id: uapi.iommu_ioas_unmap.offsetOf("ioas_id") / 4,
  iova: uapi.iommu_ioas_unmap.offsetOf("iova") / 8,
  length: uapi.iommu_ioas_unmap.offsetOf("length") / 8,
};
const GET_DIRTY = {
  hwpt_id: uapi.iommu_hwpt_get_dirty_bitmap.offsetOf("hwpt_id") / 4,
  flags: uapi.iommu_hwpt_get_dirty_bitmap.offsetOf("flags") / 4,
  iova: uapi.iommu_hwpt_get_dirty_bitmap.offsetOf("iova") / 8,
  length: uapi.iommu_hwpt_get_dirty_bitmap.offsetOf("length") / 8,
  page_size: uapi.iommu_hwpt_get_dirty_bitmap.offsetOf("page_size") / 8,
  data: uapi.iommu_hwpt_get_dirty_bitmap.offsetOf("data") / 8,
};

function refuse(code: ErrnoName, { name }: IoctlRequest, attempted: () => string, remedy?: string): never {
  throw new UapiError(code, { syscall: name, attempted: attempted(), remedy });
}

function isU64(value: bigint): boolean {
  return value >= 0n && value <= U64_MAX;
}

/** An id as the kernel takes it. What is no u32 can't be the id of anything. */
function idOf(id: ObjectId, request: IoctlRequest, attempted: () => string): number {
  if (id >>> 0 !== id) refuse("ENOENT", request, attempted, "give the id of an object that has not been destroyed");
  return id;
}

function checkStretch(start: number, length: number, { request }: Command, attempted: () => string): void {
  const whole = Number.isSafeInteger(start) && Number.isSafeInteger(length) && Number.isSafeInteger(start + length);
  if (!whole || start < 0 || length < 0) refuse("EOVERFLOW", request, attempted, "give whole numbers of bytes, from 0");
}

function flagsOf({ iova, readable, writeable }: MapFlags): number {
  return (
    (iova === undefined ? 0 : uapi.IOMMU_IOAS_MAP_FIXED_IOVA) |
    (readable ? uapi.IOMMU_IOAS_MAP_READABLE : 0) |
    (writeable ? uapi.IOMMU_IOAS_MAP_WRITEABLE : 0)
  );
}

/** The IOVA that was asked for, or 0. */
function iovaOf({ iova }: MapFlags, { request }: Command, attempted: () => string): Iova {
  if (iova === undefined) return 0n;
  if (!isU64(iova)) refuse("EOVERFLOW", request, attempted);
  return iova;
}

/** The last address of a range that doesn't go past 2^64, as far as there are addresses. */
function lastOf(iova: bigint, length: bigint): bigint {
  const last = iova + length - 1n;
  return last > U64_MAX ? U64_MAX : last;
}

function mapping(ioas: ObjectId, length: number, { iova }: MapFlags): string {
  return `map ${hex(length)} bytes${iova === undefined ? "" : ` at IOVA ${hex(iova)}`} in IOAS ${ioas}`;
}
