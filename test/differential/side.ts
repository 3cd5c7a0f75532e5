import { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import type { BitmapQuery, Iommufd, MapFlags, MemorySpan, ObjectId } from "../../src/host/host.js";
import { hex } from "../../src/memory/address.js";
import { isErrno, UapiError } from "../../src/uapi/errno.js";
import { Ids } from "./ids.js";
import type { Answer, Name, Operation, Permissions } from "./operation.js";
import type { Units } from "./units.js";

/** What one of the two hosts brings: its iommufd, memory to map, and devices whose writes a test decides on. */
export interface Rig extends AsyncDisposable {
  readonly iommufd: Iommufd;
  readonly units: Units;
  /** The memory that sequences map, in this host's bytes. */
  readonly memory: MemorySpan;
  /** Size of the smallest IOMMU page in this host's bytes. */
  readonly ioPage: number;
  /** Makes a device, binds it and attaches it: `own` is an object that a device has besides, where it has one. */
  addDevice(pt: ObjectId, dirtyTracking: boolean): Promise<{ own?: ObjectId; device: ObjectId; hwpt: ObjectId }>;
  /** Attaches a device to something else; returns the HWPT. */
  replace(device: ObjectId, pt: ObjectId): Promise<ObjectId>;
  removeDevice(device: ObjectId): Promise<void>;
  /** @param onIoas whether `ioas` is an IOAS */
  allocHwpt(args: { device: ObjectId; ioas: ObjectId; dirtyTracking: boolean; onIoas: boolean }): Promise<ObjectId>;
  /** Writes to the granules whose bits are set. @throws UapiError EINVAL where the HWPT isn't tracking */
  mark(hwpt: ObjectId, granules: DirtyBitmap): Promise<void>;
  /** IOMMU_HWPT_GET_DIRTY_BITMAP, with the bits that Linux 7.2 sets: see {@link linuxMarks}. */
  getDirtyBitmap(hwpt: ObjectId, query: BitmapQuery & { clear: boolean }): Promise<void>;
  /** Whether that read would keep Linux 7.2 busy for ever; the emulated host knows. */
  hangsLinux?(hwpt: ObjectId, range: { iova: bigint; length: bigint }): Promise<boolean>;
}

/** Runs operations on one host, and puts its answers in terms that both have in common. */
export class Side {
  readonly ids = new Ids();
  readonly #rig: Rig;

  constructor(rig: Rig) {
    this.#rig = rig;
  }

  async run(op: Operation): Promise<Answer> {
    try {
      const answer = await this.#run(op);
      return typeof answer === "string" ? { ok: true, text: answer } : { ok: true, ...answer };
    } catch (error) {
      if (error instanceof UapiError) return { ok: false, text: error.code };
      return { ok: false, text: String(error) };
    }
  }

  /** Whether an object answers to its id: what is called for that changes nothing. */
  async exists(name: Name): Promise<boolean> {
    const { iommufd } = this.#rig;
    const id = this.ids.of(name);
    const call = (): Promise<unknown> => {
      if (name.startsWith("device")) return iommufd.hwInfo(id);
      if (!name.startsWith("hwpt") && !name.startsWith("auto")) {
        return iommufd.getOption({ option: "HUGE_PAGES", ioas: id });
      }
      // From 1 on, a length of 0 is refused: but only of an HWPT that is there.
      const into = new DirtyBitmap({ iova: 1n, length: 1n, granule: 1 });
      return iommufd.getDirtyBitmap(id, { iova: 1n, length: 0n, pageSize: 1, into, clear: false });
    };
    try {
      await call();
      return true;
    } catch (error) {
      return !isErrno(error, "ENOENT");
    }
  }

  /** See {@link Rig.hangsLinux}. */
  async hangsLinux(op: Operation): Promise<boolean> {
    if (op.kind !== "getDirtyBitmap") return false;
    const { units } = this.#rig;
    const range = { iova: units.in(op.iova), length: units.in(op.length) };
    return (await this.#rig.hangsLinux?.(this.ids.of(op.hwpt), range)) ?? false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#rig[Symbol.asyncDispose]();
  }

  async #run(op: Operation): Promise<string | Omit<Answer, "ok">> {
    const { iommufd, units, memory } = this.#rig;
    const { ids } = this;
    switch (op.kind) {
      case "allocIoas":
        ids.add(op.as, await iommufd.allocIoas());
        return "done";
      case "destroy":
        await iommufd.destroy(ids.of(op.target));
        return "done";
      case "map": {
        const span = {
          arena: memory.arena,
          offset: memory.offset + units.bytesIn(op.offset),
          length: units.bytesIn(op.length),
        };
        const iova = await iommufd.map(ids.of(op.ioas), span, this.#flags(op.iova, op.permissions));
        return this.#mapped(iova);
      }
      case "copy": {
        const from = { ioas: ids.of(op.from), iova: units.in(op.iova), length: units.in(op.length) };
        const to = { ioas: ids.of(op.to), ...this.#flags(op.at, op.permissions) };
        return this.#mapped(await iommufd.copy(from, to));
      }
      case "unmap": {
        const bytes = await iommufd.unmap(ids.of(op.ioas), units.in(op.iova), units.in(op.length));
        return `${hex(units.out(bytes))} bytes`;
      }
      case "iovaRanges": {
        const { ranges, alignment } = await iommufd.iovaRanges(ids.of(op.ioas));
        const texts = ranges.map(({ start, last }) => `${hex(units.out(start))}-${hex(units.lastOut(last))}`);
        return `${texts.join(", ")} aligned to ${units.alignmentOut(alignment)}`;
      }
      case "allowIovas": {
        const ranges = op.ranges.map(({ start, last }) => ({ start: units.in(start), last: units.lastIn(last) }));
        await iommufd.allowIovas(ids.of(op.ioas), ranges);
        return "done";
      }
      case "setHugePages":
        await iommufd.setOption({ option: "HUGE_PAGES", ioas: ids.of(op.ioas) }, op.value);
        return "done";
      case "getHugePages":
        return `${await iommufd.getOption({ option: "HUGE_PAGES", ioas: ids.of(op.ioas) })}`;
      case "setRlimitMode":
        await iommufd.setOption({ option: "RLIMIT_MODE" }, op.value);
        return "done";
      case "getRlimitMode":
        return `${await iommufd.getOption({ option: "RLIMIT_MODE" })}`;
      case "addDevice": {
        const { own, device, hwpt } = await this.#rig.addDevice(ids.ofLive(op.pt), op.dirtyTracking);
        if (own !== undefined) ids.add(`${op.as}'s own`, own);
        ids.add(op.as, device);
        return this.#attached(hwpt, op.auto);
      }
      case "replace":
        return this.#attached(await this.#rig.replace(ids.of(op.device), ids.of(op.pt)), op.auto);
      case "removeDevice":
        await this.#rig.removeDevice(ids.of(op.device));
        ids.end(`${op.device}'s own`);
        return "done";
      case "hwInfo": {
        // The mock has registers of its own.
        const { dirtyTracking } = await iommufd.hwInfo(ids.of(op.device));
        return `dirty tracking ${dirtyTracking}`;
      }
      case "allocHwpt": {
        const { dirtyTracking } = op;
        const onIoas = op.ioas.startsWith("ioas") && ids.has(op.ioas);
        const args = { device: ids.of(op.device), ioas: ids.of(op.ioas), dirtyTracking, onIoas };
        ids.add(op.as, await this.#rig.allocHwpt(args));
        return "done";
      }
      case "setDirtyTracking":
        await iommufd.setDirtyTracking(ids.of(op.hwpt), op.on);
        return "done";
      case "mark": {
        const { ioPage } = this.#rig;
        if (op.pages.length === 0) return "done";
        const length = BigInt((Math.max(...op.pages) + 1) * ioPage);
        const granules = new DirtyBitmap({ iova: units.in(op.iova), length, granule: ioPage });
        for (const page of op.pages) granules.set(page);
        await this.#rig.mark(ids.of(op.hwpt), granules);
        return "done";
      }
      case "getDirtyBitmap":
        return this.#getDirtyBitmap(op);
    }
  }

  async #getDirtyBitmap(op: Operation & { kind: "getDirtyBitmap" }): Promise<string> {
    const { units } = this.#rig;
    const hwpt = this.ids.of(op.hwpt);
    const [iova, length] = [units.in(op.iova), units.in(op.length)];
    const pageSize = units.bytesIn(op.pageSize);
    // A refused range may be of any length; the bitmap then is a small one.
    const covered = length > 0n && length < 1n << 33n ? length : BigInt(pageSize);
    const into = new DirtyBitmap({ iova, length: covered, granule: pageSize });
    if (op.preset) into.set(into.bits - 1);
    await this.#rig.getDirtyBitmap(hwpt, { iova, length, pageSize, into, clear: op.clear });
    const runs: string[] = [];
    into.forEachRun((first, count) => runs.push(count === 1 ? `${first}` : `${first}-${first + count - 1}`));
    return `bits ${runs.join(", ") || "none"}`;
  }

  #flags(iova: bigint | null, permissions: Permissions): MapFlags {
    const flags = { readable: permissions.includes("r"), writeable: permissions.includes("w") };
    return iova === null ? flags : { ...flags, iova: this.#rig.units.in(iova) };
  }

  #mapped(iova: bigint): Omit<Answer, "ok"> {
    const own = this.#rig.units.out(iova);
    return { text: `at ${hex(own)}`, iova: own };
  }

  #attached(id: ObjectId, auto: Name): Omit<Answer, "ok"> {
    const known = this.ids.nameOf(id);
    if (known === undefined) this.ids.add(auto, id);
    const hwpt = known ?? auto;
    return { text: `attached to ${hwpt}`, hwpt };
  }
}
