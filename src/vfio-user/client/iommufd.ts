import type {
  Access,
  BitmapQuery,
  HwInfo,
  Iommufd,
  IommuOption,
  IovaRange,
  MapFlags,
  MemoryFile,
  MemorySpan,
  ObjectId,
} from "../../host/host.js";
import {
  type Call,
  checkBitmap,
  checkMap,
  checkMemory,
  checkSwitch,
  lastOf,
  mapCall,
  refuse,
} from "../../host/iommufd-checks.js";
import { hex, type Iova, PAGE_SIZE, U64_MAX } from "../../memory/address.js";
import type { Interval } from "../../memory/interval-map.js";
import { Lock } from "../../threads/lock.js";
import type { MappedDevice } from "./dma-mappings.js";
import { Hwpt } from "./hwpt.js";
import { type Area, Ioas, type Slice } from "./ioas.js";
import { VfioUserMemoryFile } from "./memory-file.js";

/** A device that was bound, and the HWPT that it is attached to. */
class Bound {
  readonly id: ObjectId;
  readonly device: MappedDevice;
  hwpt: Hwpt | null = null;

  constructor(id: ObjectId, device: MappedDevice) {
    this.id = id;
    this.device = device;
  }
}

/**
 * What stands in for an iommufd in front of devices behind vfio-user sockets: mapping in an IOAS is VFIO_USER_DMA_MAP on
 * every device that is attached, and this process is the IOMMU of those whose DMA goes by messages.
 *
 * Rules and errors are iommufd's as far as they apply. Devices in other processes need no access objects, and there is no
 * hardware page table: hwInfo() says `none`, and dirty tracking only of a device whose every write is seen here.
 */
export class VfioUserIommufd implements Iommufd {
  readonly #objects = new Map<ObjectId, Ioas | Hwpt | Bound>();
  readonly #lock = new Lock();
  #rlimitMode = 0;
  #nextId = 1;
  #open = true;

  async allocIoas(): Promise<ObjectId> {
    this.#checkOpen({ syscall: "IOMMU_IOAS_ALLOC", attempted: "make an IOAS" });
    return this.#add((id) => new Ioas(id));
  }

  async iovaRanges(ioas: ObjectId): Promise<{ ranges: IovaRange[]; alignment: number }> {
    const { ranges, alignment } = this.#ioas(ioas, {
      syscall: "IOMMU_IOAS_IOVA_RANGES",
      attempted: `list the IOVAs of IOAS ${ioas}`,
    });
    return { ranges, alignment };
  }

  async allowIovas(ioas: ObjectId, ranges: readonly IovaRange[]): Promise<void> {
    const text = ranges.map(({ start, last }) => `${hex(start)}-${hex(last)}`).join(", ") || "everything";
    const call = { syscall: "IOMMU_IOAS_ALLOW_IOVAS", attempted: `allow ${text} in IOAS ${ioas}` };
    const space = this.#ioas(ioas, call);
    await this.#lock.run(async () => space.allow(ranges, call));
  }

  async map(ioas: ObjectId, span: MemorySpan, flags: MapFlags): Promise<Iova> {
    const call = mapCall("IOMMU_IOAS_MAP", ioas, span.length, flags);
    checkMap(flags, [span.length], call);
    const space = this.#ioas(ioas, call);
    checkMemory(span.offset, span.length, call);
    return this.#lock.run(() => this.#map(space, [{ span, mayWrite: flags.writeable, file: null }], flags, call));
  }

  async mapFile(
    ioas: ObjectId,
    file: MemoryFile,
    { start, length }: { start: number; length: number },
    flags: MapFlags,
  ): Promise<Iova> {
    const call = mapCall("IOMMU_IOAS_MAP_FILE", ioas, length, flags);
    checkMap(flags, [length], call);
    const space = this.#ioas(ioas, call);
    checkMemory(start, length, call);
    if (!(file instanceof VfioUserMemoryFile) || !file.isOpen) {
      refuse("EBADF", call, "give an open file that the vfio-user host made");
    }
    if (start + length > file.bytes) refuse("EINVAL", call, `the file ends at ${file.bytes}`);
    const { arena, offset } = file.memory;
    const span = { arena, offset: offset + start, length };
    return this.#lock.run(() => this.#map(space, [{ span, mayWrite: flags.writeable, file }], flags, call));
  }

  async copy(from: { ioas: ObjectId; iova: Iova; length: bigint }, to: { ioas: ObjectId } & MapFlags): Promise<Iova> {
    const call = {
      syscall: "IOMMU_IOAS_COPY",
      attempted: `copy ${hex(from.length)} bytes at ${hex(from.iova)} of IOAS ${from.ioas} to IOAS ${to.ioas}`,
    };
    checkMap(to, [from.length, from.iova], call);
    const source = this.#ioas(from.ioas, call);
    const target = this.#ioas(to.ioas, call);
    return this.#lock.run(() => {
      const { parts, whole } = source.contiguous(from.iova, lastOf(from.iova, from.length, call));
      if (!whole) refuse("ENOENT", call, "copy what is mapped without a hole");
      const slices = parts.map(({ area, span }) => ({ span, mayWrite: area.mayWrite, file: area.file }));
      return this.#map(target, slices, to, call);
    });
  }

  async unmap(ioas: ObjectId, iova: Iova, length: bigint): Promise<bigint> {
    const call = {
      syscall: "IOMMU_IOAS_UNMAP",
      attempted: `unmap ${hex(length)} bytes at ${hex(iova)} of IOAS ${ioas}`,
    };
    const space = this.#ioas(ioas, call);
    const isAll = iova === 0n && length === U64_MAX;
    if (!isAll && (iova >= U64_MAX || length >= U64_MAX)) refuse("EOVERFLOW", call);
    const last = isAll ? U64_MAX : lastOf(iova, length, call);
    return this.#lock.run(async () => {
      let bytes = 0n;
      for (const entry of space.areas.in(iova, last)) {
        if (entry.start < iova || entry.last > last) refuse("ENOENT", call, "unmap whole mappings");
        await this.#unmap(space, entry);
        bytes += entry.last - entry.start + 1n;
      }
      if (bytes === 0n && !isAll) refuse("ENOENT", call, "nothing is mapped there");
      return bytes;
    });
  }

  async setOption(option: IommuOption, value: number): Promise<void> {
    const call = { syscall: "IOMMU_OPTION", attempted: `set ${option.option} to ${value}` };
    if (option.option === "HUGE_PAGES") {
      const ioas = this.#ioas(option.ioas, call);
      checkSwitch(value, call);
      if (value === 0 && ioas.hugePages && ioas.hwpts.size > 0 && ioas.areas.size > 0) {
        refuse("EINVAL", call, "set it before anything is mapped, or before the first device is attached");
      }
      ioas.hugePages = value === 1;
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
    const { byMessages } = this.#get(device, Bound, call).device;
    return { dirtyTracking: byMessages, type: "none", pageSizes: [PAGE_SIZE], data: new Uint8Array(0) };
  }

  async allocHwpt(args: { device: ObjectId; ioas: ObjectId; dirtyTracking: boolean }): Promise<ObjectId> {
    const { dirtyTracking } = args;
    const call = {
      syscall: "IOMMU_HWPT_ALLOC",
      attempted: `make an HWPT${dirtyTracking ? " with dirty tracking" : ""} for device ${args.device} on IOAS ${args.ioas}`,
    };
    const { device } = this.#get(args.device, Bound, call);
    const ioas = this.#objects.get(args.ioas);
    if (!(ioas instanceof Ioas)) refuse("EINVAL", call, "give the id of an IOAS");
    if (dirtyTracking && !device.byMessages) {
      refuse("EOPNOTSUPP", call, "its writes are not seen here: use its own log, or have its DMA go by messages");
    }
    return this.#lock.run(async () => this.#addHwpt(ioas, { dirtyTracking, auto: false }, call).id);
  }

  /** @throws UapiError EOPNOTSUPP: devices in other processes pin nothing */
  async allocEmulatedIommu(ioas: ObjectId): Promise<ObjectId> {
    const call = { syscall: "allocEmulatedIommu", attempted: `make an emulated IOMMU on IOAS ${ioas}` };
    this.#checkOpen(call);
    refuse("EOPNOTSUPP", call, "it is for mdevs of the emulated host");
  }

  async setDirtyTracking(hwpt: ObjectId, on: boolean): Promise<void> {
    const call = {
      syscall: "IOMMU_HWPT_SET_DIRTY_TRACKING",
      attempted: `switch dirty tracking of HWPT ${hwpt} ${on ? "on" : "off"}`,
    };
    const target = this.#get(hwpt, Hwpt, call);
    if (!target.dirtyTracking) refuse("EOPNOTSUPP", call, "make the HWPT with dirtyTracking: true");
    await this.#lock.run(async () => target.setDirtyTracking(on));
  }

  async getDirtyBitmap(
    hwpt: ObjectId,
    query: BitmapQuery & { clear: boolean },
  ): Promise<{ leafSizes: readonly number[] }> {
    const { iova, length } = query;
    const call = {
      syscall: "IOMMU_HWPT_GET_DIRTY_BITMAP",
      attempted: `read the dirty bits of ${hex(length)} bytes at ${hex(iova)} of HWPT ${hwpt}`,
    };
    const target = this.#get(hwpt, Hwpt, call);
    checkBitmap(query, target.ioas.alignment, call);
    if (!target.dirtyTracking) refuse("EOPNOTSUPP", call, "make the HWPT with dirtyTracking: true");
    return this.#lock.run(async () => {
      const mapped = target.ioas.contiguous(iova, iova + length - 1n).parts.at(-1);
      if (mapped === undefined) return { leafSizes: [] };
      target.readDirty(iova, mapped.start + BigInt(mapped.span.length) - 1n, query);
      return { leafSizes: [PAGE_SIZE] };
    });
  }

  /** @throws UapiError EOPNOTSUPP: there are no mdevs here */
  async createAccess(ioas: ObjectId): Promise<Access> {
    const call = { syscall: "iommufd_access_create", attempted: `make an access to IOAS ${ioas}` };
    this.#ioas(ioas, call);
    refuse("EOPNOTSUPP", call, "it is for mdevs");
  }

  async destroy(id: ObjectId): Promise<void> {
    const call = { syscall: "IOMMU_DESTROY", attempted: `destroy object ${id}` };
    this.#checkOpen(call);
    await this.#lock.run(async () => {
      const object = this.#objects.get(id);
      if (object === undefined) refuse("ENOENT", call, "give the id of an object that has not been destroyed");
      if (object instanceof Bound) refuse("EBUSY", call, "unbind the device: its driver holds it");
      const users = object instanceof Hwpt ? object.devices.size : object.hwpts.size;
      if (users > 0) refuse("EBUSY", call, "destroy or detach its users first");
      if (object instanceof Hwpt) this.#removeHwpt(object);
      else await this.#removeIoas(object);
    });
  }

  /** Ends it as close(2) does: devices are detached, and everything is unmapped. The first error is thrown at the end. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await this.#lock.run(async () => {
      const errors: unknown[] = [];
      const objects = [...this.#objects.values()];
      for (const object of objects) {
        if (object instanceof Bound) await this.#detach(object).catch((error) => errors.push(error));
      }
      for (const object of objects) {
        if (object instanceof Ioas) await this.#removeIoas(object).catch((error) => errors.push(error));
      }
      this.#objects.clear();
      if (errors.length > 0) throw errors[0];
    });
  }

  /** VFIO_DEVICE_BIND_IOMMUFD, iommufd's side. */
  bindDevice(device: MappedDevice): ObjectId {
    this.#checkOpen({ syscall: "VFIO_DEVICE_BIND_IOMMUFD", attempted: `bind '${device.id}'` });
    return this.#add((id) => new Bound(id, device));
  }

  /**
   * VFIO_DEVICE_ATTACH_IOMMUFD_PT, iommufd's side; returns the HWPT. What is mapped in the old and the new one alike stays
   * mapped all the time.
   */
  async attachDevice(id: ObjectId, pt: ObjectId): Promise<ObjectId> {
    const call = { syscall: "VFIO_DEVICE_ATTACH_IOMMUFD_PT", attempted: `attach device ${id} to ${pt}` };
    this.#checkOpen(call);
    return this.#lock.run(async () => {
      const target = this.#objects.get(pt);
      if (target === undefined) refuse("ENOENT", call, "give the id of an IOAS or an HWPT");
      const bound = this.#get(id, Bound, call);
      if (target instanceof Bound) refuse("EINVAL", call, "give the id of an IOAS or an HWPT");
      if (target instanceof Hwpt) {
        if (target.dirtyTracking && !bound.device.byMessages) {
          refuse("EINVAL", call, "its writes are not seen here: attach it to an HWPT without dirty tracking");
        }
        await this.#attach(bound, target);
        return target.id;
      }
      const shared = [...target.hwpts].find(({ auto }) => auto);
      const hwpt = shared ?? this.#addHwpt(target, { dirtyTracking: false, auto: true }, call);
      try {
        await this.#attach(bound, hwpt);
      } catch (error) {
        if (hwpt.devices.size === 0) this.#removeHwpt(hwpt);
        throw error;
      }
      return hwpt.id;
    });
  }

  /** VFIO_DEVICE_DETACH_IOMMUFD_PT, iommufd's side: nothing is mapped for the device when it resolves. */
  async detachDevice(id: ObjectId): Promise<void> {
    const call = { syscall: "VFIO_DEVICE_DETACH_IOMMUFD_PT", attempted: `detach device ${id}` };
    this.#checkOpen(call);
    await this.#lock.run(() => this.#detach(this.#get(id, Bound, call)));
  }

  /** The device is closed: it is detached, and its id is free again. */
  async unbindDevice(id: ObjectId): Promise<void> {
    await this.#lock.run(async () => {
      const bound = this.#objects.get(id);
      if (!(bound instanceof Bound)) return;
      await this.#detach(bound);
      this.#objects.delete(id);
    });
  }

  async #map(ioas: Ioas, slices: readonly Slice[], flags: MapFlags, call: Call): Promise<Iova> {
    const length = slices.reduce((sum, { span }) => sum + BigInt(span.length), 0n);
    const first = ioas.place(slices, length, flags, call);
    const { readable, writeable } = flags;
    const done: Interval<Iova, Area>[] = [];
    let start = first;
    try {
      for (const slice of slices) {
        const area = { ...slice, readable, writeable };
        const last = start + BigInt(slice.span.length) - 1n;
        // Entered before any device is told, so that a DMA by messages that follows at once finds it.
        ioas.insert(start, area);
        done.push({ start, last, value: area });
        for (const device of devicesOf(ioas)) await device.map(start, area);
        start = last + 1n;
      }
    } catch (error) {
      for (const entry of done) await this.#unmap(ioas, entry).catch(() => undefined);
      throw error;
    }
    return first;
  }

  async #unmap(ioas: Ioas, entry: Interval<Iova, Area>): Promise<void> {
    for (const device of devicesOf(ioas)) await device.unmap(entry.start);
    ioas.remove(entry);
    for (const hwpt of ioas.hwpts) hwpt.forget(entry.start, entry.last);
  }

  async #attach(bound: Bound, hwpt: Hwpt): Promise<void> {
    const { device, hwpt: before } = bound;
    if (before === hwpt) return;
    const { mapped } = device;
    const wanted = new Map([...hwpt.ioas.areas].map(({ start, value }) => [start, value]));
    const kept = (start: Iova) => {
      const [a, b] = [mapped.get(start), wanted.get(start)];
      return a !== undefined && b !== undefined && isSame(a, b);
    };
    for (const start of [...mapped.keys()]) if (!kept(start)) await device.unmap(start);
    // A write by messages is the new one's from here on: the old one's last bits are in it already.
    device.target = hwpt;
    try {
      for (const [start, area] of wanted) if (!mapped.has(start)) await device.map(start, area);
    } catch (error) {
      // Half of it is of no use, and what was before is partly gone: the device reaches nothing.
      await this.#detach(bound).catch(() => undefined);
      throw error;
    }
    hwpt.devices.add(device);
    bound.hwpt = hwpt;
    if (before !== null) this.#leave(bound, before);
  }

  async #detach(bound: Bound): Promise<void> {
    const { device, hwpt } = bound;
    for (const start of [...device.mapped.keys()]) await device.unmap(start);
    device.target = null;
    bound.hwpt = null;
    if (hwpt !== null) this.#leave(bound, hwpt);
  }

  #leave({ device }: Bound, hwpt: Hwpt): void {
    hwpt.devices.delete(device);
    if (hwpt.auto && hwpt.devices.size === 0) this.#removeHwpt(hwpt);
  }

  #addHwpt(ioas: Ioas, options: { dirtyTracking: boolean; auto: boolean }, call: Call): Hwpt {
    ioas.checkFor(call);
    const hwpt = new Hwpt(this.#nextId, ioas, options);
    this.#add(() => hwpt);
    ioas.hwpts.add(hwpt);
    return hwpt;
  }

  #removeHwpt(hwpt: Hwpt): void {
    hwpt.ioas.hwpts.delete(hwpt);
    this.#objects.delete(hwpt.id);
  }

  async #removeIoas(ioas: Ioas): Promise<void> {
    for (const entry of [...ioas.areas]) await this.#unmap(ioas, entry);
    this.#objects.delete(ioas.id);
  }

  #add(make: (id: ObjectId) => Ioas | Hwpt | Bound): ObjectId {
    const id = this.#nextId++;
    this.#objects.set(id, make(id));
    return id;
  }

  #checkOpen(call: Call): void {
    if (!this.#open) refuse("EBADF", call, "open the iommufd first");
  }

  #get<T>(id: ObjectId, type: abstract new (...args: never[]) => T, call: Call): T {
    this.#checkOpen(call);
    const object = this.#objects.get(id);
    if (object instanceof type) return object;
    refuse("ENOENT", call, `object ${id} is ${object === undefined ? "none" : "of another type"}`);
  }

  #ioas(id: ObjectId, call: Call): Ioas {
    return this.#get(id, Ioas, call);
  }
}

/** The devices that are shown an IOAS. */
function* devicesOf(ioas: Ioas): Generator<MappedDevice> {
  for (const { devices } of ioas.hwpts) yield* devices;
}

function isSame(a: Pick<Area, "span" | "readable" | "writeable">, b: typeof a): boolean {
  return (
    a.span.arena.memory === b.span.arena.memory &&
    a.span.offset === b.span.offset &&
    a.span.length === b.span.length &&
    a.readable === b.readable &&
    a.writeable === b.writeable
  );
}
