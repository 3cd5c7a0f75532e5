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
import { addressOf } from "../sys/address.js";
import { ioctl, ioctlOnThread } from "../sys/ioctl.js";
import { type ErrnoName, errnoName, isErrno, UapiError } from "../uapi/errno.js";
import type { IoctlRequest } from "../uapi/ioctl.js";
import * as uapi from "../uapi/iommufd.js";
import type { Fields, Given, Struct, Values } from "../uapi/struct.js";
import { type LeafReport, leafReport, whyNotInside } from "./iommufd/contiguous-leaves.js";
import { GET_DIRTY_BITMAP } from "./iommufd/dirty-bitmap.js";
import { decodeHwInfo } from "./iommufd/hw-info.js";
import { COPY, MAP, MAP_FILE, UNMAP } from "./iommufd/mapping.js";
import { isId, isU64, type Operation, perform, performOnThread, refuse } from "./iommufd/operation.js";
import { Mappings } from "./mappings.js";
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

  /** True for an IOVA inside a mapping that is known here, but not at its start. */
  isInside(iova: Iova): boolean {
    return this.mappings.in(iova, iova).some(({ start }) => start < iova);
  }
}

/**
 * /dev/iommu of this machine: one ioctl per method (include/uapi/linux/iommufd.h), the kernel's errno where it refuses.
 *
 * Memory that it maps is held: it can be neither let go of nor collected until the kernel has unmapped it, which is at
 * {@link unmap}, at the destruction of the IOAS, or when this object is disposed of.
 */
export class LinuxIommufd implements Iommufd {
  readonly #spaces = new Map<ObjectId, Space>();
  /** HWPTs whose leaves this kernel does not report as they were read, and their IOASes. */
  readonly #oddLeaves = new Map<ObjectId, { readonly space: Space; readonly report: LeafReport }>();
  readonly #underWay = new Set<Promise<unknown>>();
  #fd: number;
  #closing: Promise<void> | null = null;

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
    return deny("EMSGSIZE", uapi.IOMMU_IOAS_IOVA_RANGES, attempted);
  }

  async allowIovas(ioas: ObjectId, ranges: readonly IovaRange[]): Promise<void> {
    const { iommu_ioas_allow_iovas: layout, iommu_iova_range: element } = uapi;
    const attempted = () => {
      const text = ranges.map(({ start, last }) => `${hex(start)}-${hex(last)}`).join(", ") || "everything";
      return `allow ${text} in IOAS ${ioas}`;
    };
    const bytes = new Uint8Array(layout.size + ranges.length * element.size);
    for (const [index, { start, last }] of ranges.entries()) {
      if (!isU64(start) || !isU64(last)) deny("EOVERFLOW", uapi.IOMMU_IOAS_ALLOW_IOVAS, attempted);
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

  async map(ioas: ObjectId, span: MemorySpan, flags: MapFlags): Promise<Iova> {
    const space = this.#space(ioas);
    const args = { ioas, mappings: space.mappings, span, flags };
    if (span.length > MAP_HERE_BYTES || space.tail !== null) return this.#later([space], MAP, args);
    this.#checkOpen(MAP, args);
    return perform(MAP, this.#fd, args);
  }

  async mapFile(
    ioas: ObjectId,
    file: MemoryFile,
    range: { start: number; length: number },
    flags: MapFlags,
  ): Promise<Iova> {
    return this.#later([this.#space(ioas)], MAP_FILE, { ioas, file, range, flags });
  }

  async copy(from: { ioas: ObjectId; iova: Iova; length: bigint }, to: { ioas: ObjectId } & MapFlags): Promise<Iova> {
    const [source, target] = [this.#space(from.ioas), this.#space(to.ioas)];
    return this.#later([source, target], COPY, { from, to, source: source.mappings, target: target.mappings });
  }

  async unmap(ioas: ObjectId, iova: Iova, length: bigint): Promise<bigint> {
    const space = this.#space(ioas);
    const args = { ioas, mappings: space.mappings, iova, length };
    if (length > MAP_HERE_BYTES || space.tail !== null) return this.#later([space], UNMAP, args);
    this.#checkOpen(UNMAP, args);
    return perform(UNMAP, this.#fd, args);
  }

  async setOption(option: IommuOption, value: number): Promise<void> {
    const attempted = () => `set ${option.option} to ${value}`;
    if (!Number.isSafeInteger(value) || value < 0) deny("EINVAL", uapi.IOMMU_OPTION, attempted);
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
    this.#oddLeaves.delete(hwpt);
    const report = leafReport();
    if (!dirtyTracking || report === "as-read") return hwpt;
    try {
      const { type } = await this.hwInfo(device);
      // Leaves of several entries are AMD's alone; Intel's tables are the generic ones, too.
      if (type === "amd" || (type === "intel-vtd" && report === "whole")) {
        this.#oddLeaves.set(hwpt, { space: this.#space(ioas), report });
      }
      return hwpt;
    } catch (error) {
      // Its caller would never hear of it.
      await this.destroy(hwpt);
      throw error;
    }
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

  async getDirtyBitmap(
    hwpt: ObjectId,
    query: BitmapQuery & { clear: boolean },
  ): Promise<{ leafSizes: readonly number[] }> {
    const { iova, length, pageSize, into } = query;
    const firstBit = into.iova === iova ? 0 : Number(iova - into.iova) / pageSize;
    // The kernel writes from a byte on. A bitmap whose bits for this range begin inside one is filled by way of another.
    if (firstBit > 0 && Number.isInteger(firstBit) && firstBit % 8 !== 0) return this.#readAside(hwpt, query);
    const odd = this.#oddLeaves.get(hwpt);
    const leaves = odd?.space.largeLeaves === true ? odd : undefined;
    const args = { hwpt, query, firstBit, complete: leaves?.report === "short" };
    if (leaves !== undefined && isU64(iova) && leaves.space.isInside(iova)) {
      const why = whyNotInside(leaves.report, iova);
      if (why !== undefined) refuse("EINVAL", GET_DIRTY_BITMAP, args, `begin where a mapping begins: ${why}`);
    }
    if (length > READ_HERE_BYTES) return this.#later(NO_SPACES, GET_DIRTY_BITMAP, args);
    this.#checkOpen(GET_DIRTY_BITMAP, args);
    return perform(GET_DIRTY_BITMAP, this.#fd, args);
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
   * Makes a call on a thread, after those under way that change the mappings of the same IOASes: so these change here in
   * the order in which the kernel changes them. Closing waits for it.
   */
  #later<Args, Answer>(spaces: readonly Space[], operation: Operation<Args, Answer>, args: Args): Promise<Answer> {
    this.#checkOpen(operation, args);
    const before = spaces.map(({ tail }) => tail);
    const running = Promise.allSettled(before).then(() => performOnThread(operation, this.#fd, args));
    this.#underWay.add(running);
    for (const space of spaces) space.tail = running;
    const done = () => {
      this.#underWay.delete(running);
      for (const space of spaces) if (space.tail === running) space.tail = null;
    };
    running.then(done, done);
    return running;
  }

  #checkOpen<Args>(operation: Operation<Args, unknown>, args: Args): void {
    if (this.#closing !== null) refuse("EBADF", operation, args, "open the iommufd first");
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
    if (this.#closing !== null) deny("EBADF", request, attempted, "open the iommufd first");
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

/** Refuses a call, as the kernel or for it. */
function deny(code: ErrnoName, { name }: IoctlRequest, attempted: () => string, remedy?: string): never {
  throw withRemedy(new UapiError(code, { syscall: name, attempted: attempted(), remedy }));
}

/** An id as the kernel takes it. */
function idOf(id: ObjectId, request: IoctlRequest, attempted: () => string): number {
  if (!isId(id)) deny("ENOENT", request, attempted);
  return id;
}
