import type {
  Access,
  AccessCallbacks,
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
import {
  type Call,
  checkBitmap,
  checkMap,
  checkMemory,
  checkSwitch,
  lastOf,
  mapCall,
  refuse,
} from "../host/iommufd-checks.js";
import { hex, type Iova, PAGE_SIZE, pageOf, U64_MAX } from "../memory/address.js";
import type { Arena } from "../memory/arena.js";
import type { InFlight } from "../memory/in-flight.js";
import { RwLock } from "../threads/rw-lock.js";
import { isErrno } from "../uapi/errno.js";
import { IommufdAccess } from "./access.js";
import { ArenaFile } from "./arena-file.js";
import { BoundDevice, BoundMdev, type MdevBinding } from "./device.js";
import { EmulatedIommuObject } from "./emulated-iommu.js";
import { Hwpt } from "./hwpt.js";
import { Ioas, type PagesSlice } from "./ioas.js";
import { CPU_PAGES, type CpuPages } from "./iova-allocator.js";
import { type IommufdObject, ObjectTable } from "./objects.js";
import type { Port, SystemIommu } from "./system-iommu.js";

/** What a host gives its iommufds. */
export interface SoftwareIommufdOptions {
  /** Whether its devices can reach an arena's memory at all. */
  readonly reaches: (arena: Arena) => boolean;
  /** Where DMA of its mdevs is seen to land; null: it has no mdevs, and what is for them is refused with EOPNOTSUPP. */
  readonly mdevs: InFlight | null;
  /** Default: those of x86. */
  readonly cpuPages?: CpuPages;
}

/**
 * /dev/iommu in this process: the rules of drivers/iommu/iommufd of Linux 7.2, in the order in which it checks them, so
 * that a call with several faults is refused with the same errno. What a device's IOMMU is made of is its host's matter:
 * see {@link SystemIommu}.
 *
 * The first half is the uAPI; the second is what a VFIO device's driver calls: {@link bindDevice} and what follows.
 */
export class SoftwareIommufd implements Iommufd {
  readonly #reaches: (arena: Arena) => boolean;
  readonly #mdevs: InFlight | null;
  readonly #cpuPages: CpuPages;
  readonly #objects = new ObjectTable();
  /** Held while a device's attachment changes or an HWPT comes or goes: ioas->mutex and igroup->lock. */
  readonly #attaching = new RwLock();
  #rlimitMode = 0;
  #open = true;

  constructor({ reaches, mdevs, cpuPages = CPU_PAGES }: SoftwareIommufdOptions) {
    this.#reaches = reaches;
    this.#mdevs = mdevs;
    this.#cpuPages = cpuPages;
  }

  async allocIoas(): Promise<ObjectId> {
    this.#checkOpen({ syscall: "IOMMU_IOAS_ALLOC", attempted: "make an IOAS" });
    return this.#objects.add(new Ioas(this.#reaches, this.#cpuPages));
  }

  async iovaRanges(ioas: ObjectId): Promise<{ ranges: IovaRange[]; alignment: number }> {
    const space = this.#ioas(ioas, { syscall: "IOMMU_IOAS_IOVA_RANGES", attempted: `list the IOVAs of IOAS ${ioas}` });
    return { ranges: space.iovaRanges(), alignment: space.alignment };
  }

  async allowIovas(ioas: ObjectId, ranges: readonly IovaRange[]): Promise<void> {
    const text = ranges.map(({ start, last }) => `${hex(start)}-${hex(last)}`).join(", ") || "everything";
    const call = { syscall: "IOMMU_IOAS_ALLOW_IOVAS", attempted: `allow ${text} in IOAS ${ioas}` };
    await this.#ioas(ioas, call).allowIovas(ranges, call);
  }

  async map(ioas: ObjectId, span: MemorySpan, flags: MapFlags): Promise<Iova> {
    const call = mapCall("IOMMU_IOAS_MAP", ioas, span.length, flags);
    checkMap(flags, [span.length], call);
    const space = this.#ioas(ioas, call);
    checkMemory(span.offset, span.length, call);
    return this.#map(space, span, flags, call);
  }

  async mapFile(
    ioas: ObjectId,
    file: MemoryFile,
    range: { start: number; length: number },
    flags: MapFlags,
  ): Promise<Iova> {
    const { start, length } = range;
    const call = mapCall("IOMMU_IOAS_MAP_FILE", ioas, length, flags);
    checkMap(flags, [length], call);
    const space = this.#ioas(ioas, call);
    checkMemory(start, length, call);
    if (!(file instanceof ArenaFile) || !file.isOpen) refuse("EBADF", call, "give an open file of this host");
    if (start + length > file.bytes) refuse("EINVAL", call, `the file ends at ${file.bytes}`);
    const { arena, offset } = file.memory;
    return this.#map(space, { arena, offset: offset + start, length }, flags, call);
  }

  async copy(from: { ioas: ObjectId; iova: Iova; length: bigint }, to: { ioas: ObjectId } & MapFlags): Promise<Iova> {
    const call = {
      syscall: "IOMMU_IOAS_COPY",
      attempted: `copy ${hex(from.length)} bytes at ${hex(from.iova)} of IOAS ${from.ioas} to IOAS ${to.ioas}`,
    };
    checkMap(to, [from.length, from.iova], call);
    const source = this.#ioas(from.ioas, call);
    const slices: PagesSlice[] = await source.lock.read(() => source.slices(from.iova, from.length, call));
    return this.#ioas(to.ioas, call).map(slices, from.length, to, call);
  }

  async unmap(ioas: ObjectId, iova: Iova, length: bigint): Promise<bigint> {
    const call = {
      syscall: "IOMMU_IOAS_UNMAP",
      attempted: `unmap ${hex(length)} bytes at ${hex(iova)} of IOAS ${ioas}`,
    };
    const space = this.#ioas(ioas, call);
    if (iova === 0n && length === U64_MAX) return space.unmap(0n, U64_MAX, call);
    if (iova >= U64_MAX || length >= U64_MAX) refuse("EOVERFLOW", call);
    const bytes = await space.unmap(iova, lastOf(iova, length, call), call);
    if (bytes === 0n) refuse("ENOENT", call, "nothing is mapped there");
    return bytes;
  }

  async setOption(option: IommuOption, value: number): Promise<void> {
    const call = { syscall: "IOMMU_OPTION", attempted: `set ${option.option} to ${value}` };
    if (option.option === "HUGE_PAGES") {
      const ioas = this.#ioas(option.ioas, call);
      checkSwitch(value, call);
      await ioas.setHugePages(value === 1, call);
      return;
    }
    this.#checkOpen(call);
    if (this.#objects.size > 0) refuse("EBUSY", call, "set it before the first object is made");
    checkSwitch(value, call);
    this.#rlimitMode = value;
  }

  async getOption(option: IommuOption): Promise<number> {
    const call = { syscall: "IOMMU_OPTION", attempted: `get ${option.option}` };
    if (option.option === "HUGE_PAGES") return this.#ioas(option.ioas, call).hugePages ? 1 : 0;
    this.#checkOpen(call);
    return this.#rlimitMode;
  }

  async hwInfo(device: ObjectId): Promise<HwInfo> {
    const call = { syscall: "IOMMU_GET_HW_INFO", attempted: `ask for the IOMMU of device ${device}` };
    this.#checkOpen(call);
    return this.#get(device, BoundDevice, call).iommu.hwInfo();
  }

  async allocHwpt(args: { device: ObjectId; ioas: ObjectId; dirtyTracking: boolean }): Promise<ObjectId> {
    const { dirtyTracking } = args;
    const call = {
      syscall: "IOMMU_HWPT_ALLOC",
      attempted: `make an HWPT${dirtyTracking ? " with dirty tracking" : ""} for device ${args.device} on IOAS ${args.ioas}`,
    };
    this.#checkOpen(call);
    return this.#attaching.write(async () => {
      const { iommu } = this.#get(args.device, BoundDevice, call);
      const ioas = this.#objects.find(args.ioas);
      if (ioas instanceof Hwpt) refuse("EOPNOTSUPP", call, "give an IOAS: there are no nested HWPTs here");
      if (!(ioas instanceof Ioas)) refuse("EINVAL", call, "give the id of an IOAS");
      return this.#objects.add(await Hwpt.create({ ioas, iommu, dirtyTracking, auto: false, call }));
    });
  }

  async allocEmulatedIommu(ioas: ObjectId): Promise<ObjectId> {
    const call = { syscall: "allocEmulatedIommu", attempted: `make an emulated IOMMU on IOAS ${ioas}` };
    const space = this.#ioas(ioas, call);
    return this.#objects.add(new EmulatedIommuObject(space, this.#forMdevs(call)));
  }

  async setDirtyTracking(hwpt: ObjectId, on: boolean): Promise<void> {
    const call = {
      syscall: "IOMMU_HWPT_SET_DIRTY_TRACKING",
      attempted: `switch dirty tracking of HWPT ${hwpt} ${on ? "on" : "off"}`,
    };
    this.#checkOpen(call);
    const target = this.#objects.find(hwpt);
    if (target instanceof EmulatedIommuObject) return target.setDirtyTracking(on, call);
    const { ioas, domain } = this.#get(hwpt, Hwpt, call);
    if (!domain.dirtyTracking) refuse("EOPNOTSUPP", call, "make the HWPT with dirtyTracking: true");
    await ioas.lock.write(() => domain.setDirtyTracking(on));
  }

  async getDirtyBitmap(
    hwpt: ObjectId,
    query: BitmapQuery & { clear: boolean },
  ): Promise<{ leafSizes: readonly number[] }> {
    const { iova, length, into, clear } = query;
    const call = {
      syscall: "IOMMU_HWPT_GET_DIRTY_BITMAP",
      attempted: `read the dirty bits of ${hex(length)} bytes at ${hex(iova)} of HWPT ${hwpt}`,
    };
    this.#checkOpen(call);
    const target = this.#objects.find(hwpt);
    if (target instanceof EmulatedIommuObject) {
      if (!clear) refuse("EOPNOTSUPP", call, "read and clear it, or ask its reader's ledger");
      checkBitmap(query, target.ioas.alignment, call);
      await target.readDirty(query, call);
      return { leafSizes: [PAGE_SIZE] };
    }
    const { ioas, domain } = this.#get(hwpt, Hwpt, call);
    checkBitmap(query, ioas.alignment, call);
    if (!domain.dirtyTracking) refuse("EOPNOTSUPP", call, "make the HWPT with dirtyTracking: true");
    return ioas.lock.read(async () => {
      const mapped = ioas.contiguous(iova, iova + length - 1n).parts.at(-1);
      if (mapped === undefined) return { leafSizes: [] };
      const page = pageOf(iova);
      return domain.readDirty({ page, pages: pageOf(mapped.last) - page + 1, into, clear });
    });
  }

  async createAccess(ioas: ObjectId, callbacks: AccessCallbacks): Promise<Access> {
    const call = { syscall: "iommufd_access_create", attempted: `make an access to IOAS ${ioas}` };
    const space = this.#ioas(ioas, call);
    this.#forMdevs(call);
    const access = new IommufdAccess(callbacks, (closed) => this.#close(closed));
    await access.setIoas(space, call);
    this.#objects.add(access);
    return access;
  }

  async destroy(id: ObjectId): Promise<void> {
    this.#checkOpen({ syscall: "IOMMU_DESTROY", attempted: `destroy object ${id}` });
    await this.#attaching.write(() => this.#objects.destroy(id));
  }

  /**
   * Ends it as close(2) does: devices are detached and everything is destroyed, users before what they use. Drivers
   * should have unbound their devices before. What fails is left as it is, and the first error thrown at the end.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    const errors: unknown[] = [];
    for (const object of [...this.#objects.values()]) {
      if (!(object instanceof BoundDevice || object instanceof IommufdAccess)) continue;
      await this.unbindDevice(object.id).catch((error) => errors.push(error));
    }
    for (let leaf = this.#leaf(); leaf !== undefined; leaf = this.#leaf()) {
      await this.#objects.destroy(leaf.id).catch((error) => errors.push(error));
    }
    if (errors.length > 0) throw errors[0];
  }

  /**
   * VFIO_DEVICE_BIND_IOMMUFD, iommufd's side: a device behind an IOMMU, or an mdev, which gets an access.
   * @throws UapiError ENODEV for a device that has neither
   */
  bindDevice(args: { port: Port; iommu: SystemIommu | null; mdev: MdevBinding | null }): ObjectId {
    const { port, iommu, mdev } = args;
    const call = { syscall: "VFIO_DEVICE_BIND_IOMMUFD", attempted: `bind the device at port ${port}` };
    this.#checkOpen(call);
    if (mdev !== null) return this.#objects.add(new BoundMdev(port, mdev, (closed) => this.#close(closed)));
    if (iommu === null) refuse("ENODEV", call, "put it behind an IOMMU, or make it an mdev");
    return this.#objects.add(new BoundDevice(port, iommu));
  }

  /** The access of a bound mdev: how it pins. @throws UapiError ENOENT for anything else */
  accessOf(id: ObjectId): IommufdAccess {
    return this.#get(id, IommufdAccess, { syscall: "accessOf", attempted: `find the access of device ${id}` });
  }

  /**
   * VFIO_DEVICE_ATTACH_IOMMUFD_PT, iommufd's side; attaching an attached device replaces. `pt` is an HWPT, or an IOAS,
   * on which an HWPT is found or made; for an mdev an IOAS or an emulated IOMMU. Returns what was attached to.
   * @throws UapiError ENOENT, EINVAL for a `pt` of another kind or one that does not fit, EADDRINUSE
   */
  async attachDevice(id: ObjectId, pt: ObjectId): Promise<ObjectId> {
    const call = { syscall: "VFIO_DEVICE_ATTACH_IOMMUFD_PT", attempted: `attach device ${id} to ${pt}` };
    this.#checkOpen(call);
    return this.#attaching.write(async () => {
      const device = this.#objects.find(id);
      if (device instanceof BoundMdev) return this.#attachMdev(device, pt, call);
      const target = this.#objects.find(pt);
      const bound = this.#get(id, BoundDevice, call);
      if (target === undefined) refuse("ENOENT", call, "give the id of an IOAS or an HWPT");
      if (target instanceof Hwpt) {
        await this.#attach(bound, target, call);
        return target.id;
      }
      if (target instanceof Ioas) return this.#attachToIoas(bound, target, call);
      refuse("EINVAL", call, "give the id of an IOAS or an HWPT");
    });
  }

  /** VFIO_DEVICE_DETACH_IOMMUFD_PT, iommufd's side: DMA is blocked when it resolves. Detaching a detached device does nothing. */
  async detachDevice(id: ObjectId): Promise<void> {
    const call = { syscall: "VFIO_DEVICE_DETACH_IOMMUFD_PT", attempted: `detach device ${id}` };
    this.#checkOpen(call);
    await this.#detach(id, call);
  }

  /** The driver lets go of the device: it is detached, and its id is free again. Closing has done that already. */
  async unbindDevice(id: ObjectId): Promise<void> {
    const call = { syscall: "iommufd_device_unbind", attempted: `unbind device ${id}` };
    const object = this.#objects.find(id);
    if (object === undefined && !this.#open) return;
    if (object instanceof IommufdAccess) {
      if (object instanceof BoundMdev) await this.#detach(id, call);
      return this.#close(object);
    }
    const device = this.#get(id, BoundDevice, call);
    await this.#detach(id, call);
    device.users--;
    await this.#objects.destroy(id);
  }

  #checkOpen(call: Call): void {
    if (!this.#open) refuse("EBADF", call, "open the iommufd first");
  }

  #get<T extends IommufdObject>(id: ObjectId, type: abstract new (...args: never[]) => T, call: Call): T {
    return this.#objects.get(id, type, call);
  }

  #ioas(id: ObjectId, call: Call): Ioas {
    this.#checkOpen(call);
    return this.#get(id, Ioas, call);
  }

  /** Where DMA of mdevs is seen to land. @throws UapiError EOPNOTSUPP where the host has no mdevs */
  #forMdevs(call: Call): InFlight {
    return this.#mdevs ?? refuse("EOPNOTSUPP", call, "it is for mdevs, and this host has none");
  }

  #map(ioas: Ioas, { arena, offset, length }: MemorySpan, flags: MapFlags, call: Call): Promise<Iova> {
    const slice = { pages: { arena, writeable: flags.writeable }, offset, length: BigInt(length) };
    return ioas.map([slice], slice.length, flags, call);
  }

  /** An object that nothing holds. */
  #leaf(): IommufdObject | undefined {
    for (const object of this.#objects.values()) if (object.users === 0) return object;
    return undefined;
  }

  async #close(access: IommufdAccess): Promise<void> {
    if (access.id === 0) return;
    this.#objects.remove(access);
    access.users--;
    await access.destroy();
  }

  async #attachMdev(mdev: BoundMdev, pt: ObjectId, call: Call): Promise<ObjectId> {
    const target = this.#objects.find(pt);
    if (target instanceof EmulatedIommuObject) {
      if (!mdev.marksSharedTracker) refuse("EINVAL", call, "its hardware can't mark a shared tracker: give an IOAS");
      await mdev.attach(target.ioas, target, call);
    } else {
      await mdev.attach(this.#ioas(pt, call), null, call);
    }
    return pt;
  }

  /** Linux's automatic domains: the first that takes the device, or a new one without dirty tracking. */
  async #attachToIoas(device: BoundDevice, ioas: Ioas, call: Call): Promise<ObjectId> {
    for (const hwpt of ioas.hwpts) {
      if (!hwpt.auto) continue;
      try {
        await this.#attach(device, hwpt, call);
        return hwpt.id;
      } catch (error) {
        // EINVAL says that the domain doesn't fit the device; anything else is final.
        if (!isErrno(error, "EINVAL")) throw error;
      }
    }
    const hwpt = await Hwpt.create({ ioas, iommu: device.iommu, dirtyTracking: false, auto: true, call });
    this.#objects.add(hwpt);
    try {
      await this.#attach(device, hwpt, call);
    } catch (error) {
      await this.#objects.destroy(hwpt.id);
      throw error;
    }
    return hwpt.id;
  }

  /** Attaches to an HWPT. Whether or not that succeeds: the HWPT that the device has left is left. */
  async #attach(device: BoundDevice, hwpt: Hwpt, call: Call): Promise<void> {
    const before = device.hwpt;
    try {
      await device.attach(hwpt, call);
    } finally {
      if (device.hwpt !== before) await this.#leave(before);
    }
  }

  #detach(id: ObjectId, call: Call): Promise<void> {
    return this.#attaching.write(async () => {
      const device = this.#objects.find(id);
      if (device instanceof BoundMdev) return device.attach(null, null, call);
      const bound = this.#get(id, BoundDevice, call);
      const before = bound.hwpt;
      await bound.detach();
      await this.#leave(before);
    });
  }

  /** A device has left an HWPT: an automatic one goes with its last. */
  async #leave(hwpt: Hwpt | null): Promise<void> {
    if (hwpt?.auto && hwpt.users === 0) await this.#objects.destroy(hwpt.id);
  }
}
