import { U64_MAX } from "../../src/memory/address.js";
import type { Random } from "../../tools/random.js";
import { MEMORY_BYTES, type MockKind } from "./mock-kind.js";
import type { Model, ModelArea, ModelObject } from "./model.js";
import { ID_LAST, ID_ZERO, type Name, type Operation, type Permissions } from "./operation.js";

/*
 * Makes up the next operation of a sequence: mostly one that means something for what is there, and in a good share of
 * cases one that is slightly wrong: a misaligned address, an id of another kind, a range beyond what is mapped.
 */

/** The IOAS that devices stand on while they have no HWPT of the kind under test; nothing is mapped in it. */
const PARK: Name = "park";

const KIB = 1024;
const SIZES = [2 * KIB, 4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB, 2048 * KIB];

/** At most so many, so that tables and answers stay small. */
const MAX_DEVICES = 6;

/** The first operations of a sequence, which make it worth while. */
export function opening(kind: MockKind, random: Random, model: Model): Operation[] {
  if (random.chance(5)) return [];
  const operations: Operation[] = [];
  if (!kind.automatic) operations.push({ kind: "allocIoas", as: PARK });
  const ioas = model.fresh("ioas");
  operations.push({ kind: "allocIoas", as: ioas });
  if (random.chance(30)) operations.push({ kind: "setHugePages", ioas, value: 0 });
  if (random.chance(20)) return operations;
  const device = model.fresh("device");
  const pt = kind.automatic ? ioas : PARK;
  operations.push({ kind: "addDevice", as: device, auto: model.fresh("auto"), pt, dirtyTracking: true });
  if (random.chance(10)) return operations;
  const hwpt = model.fresh("hwpt");
  operations.push({ kind: "allocHwpt", as: hwpt, device, ioas, dirtyTracking: true });
  if (random.chance(70)) operations.push({ kind: "setDirtyTracking", hwpt, on: true });
  return operations;
}

/** The next operation. */
export function nextOperation(kind: MockKind, random: Random, model: Model): Operation {
  return new Generator(kind, random, model).next();
}

class Generator {
  readonly #kind: MockKind;
  readonly #random: Random;
  readonly #model: Model;

  constructor(kind: MockKind, random: Random, model: Model) {
    this.#kind = kind;
    this.#random = random;
    this.#model = model;
  }

  next(): Operation {
    const model = this.#model;
    const has = (kind: ModelObject["kind"]) => (model.names(kind).length > 0 ? 1 : 0);
    const tracked = this.#tracked().length > 0 ? 1 : 0;
    const make = this.#random.weighted<() => Operation>([
      [model.names("ioas").length < 4 ? 4 : 1, () => ({ kind: "allocIoas", as: model.fresh("ioas") })],
      [4, () => ({ kind: "destroy", target: this.#any() })],
      [20, () => this.#map()],
      [6, () => this.#copy()],
      [10, () => this.#unmap()],
      [5, () => ({ kind: "iovaRanges", ioas: this.#ioas() })],
      [5, () => this.#allowIovas()],
      [2, () => ({ kind: "setHugePages", ioas: this.#ioas(), value: this.#random.pick([0, 0, 1, 1, 2]) })],
      [2, () => ({ kind: "getHugePages", ioas: this.#ioas() })],
      [1, () => ({ kind: "setRlimitMode", value: this.#random.pick([0, 1, 2]) })],
      [1, () => ({ kind: "getRlimitMode" })],
      [model.names("device").length < MAX_DEVICES ? 5 : 0, () => this.#addDevice()],
      [6 * has("device"), () => this.#replace()],
      [2 * has("device"), () => ({ kind: "removeDevice", device: this.#random.pick(model.names("device")) })],
      [2, () => ({ kind: "hwInfo", device: this.#device() })],
      [6, () => this.#allocHwpt()],
      [4, () => ({ kind: "setDirtyTracking", hwpt: this.#hwpt(), on: this.#random.chance(75) })],
      [12 * tracked + has("hwpt"), () => this.#mark()],
      [16 * tracked + 2, () => this.#getDirtyBitmap()],
    ]);
    return make();
  }

  #tracked(): Name[] {
    const { objects } = this.#model;
    return this.#model.names("hwpt").filter((name) => {
      const object = objects.get(name);
      return object?.kind === "hwpt" && object.tracking && this.#model.areasOf(name).length > 0;
    });
  }

  // ---- ids

  /** Mostly one of `right`; else an id of something else, of what is gone, or of nothing. */
  #name(right: readonly Name[], others: readonly Name[]): Name {
    const { gone } = this.#model;
    const wrong: Name[] = [ID_ZERO, ID_LAST, ...others, ...gone.filter((name) => !name.startsWith("device"))];
    return right.length > 0 && !this.#random.chance(6) ? this.#random.pick(right) : this.#random.pick(wrong);
  }

  /** What is neither parked nor made by the host for a parked device: those are of the other kind of page table. */
  #names(...kinds: readonly ModelObject["kind"][]): Name[] {
    return [...this.#model.objects]
      .filter(([name, object]) => {
        const parked = name === PARK || (object.kind === "hwpt" && object.ioas === PARK);
        return kinds.includes(object.kind) && !parked;
      })
      .map(([name]) => name);
  }

  #ioas(): Name {
    const used = this.#names("ioas").filter((name) => this.#model.areas(name).length > 0);
    if (used.length > 0 && this.#random.chance(60)) return this.#random.pick(used);
    return this.#name(this.#names("ioas"), this.#names("device", "hwpt"));
  }

  #device(): Name {
    return this.#name(this.#names("device"), this.#names("ioas", "hwpt"));
  }

  #hwpt(): Name {
    const tracked = this.#tracked();
    if (tracked.length > 0 && this.#random.chance(60)) return this.#random.pick(tracked);
    return this.#name(this.#names("hwpt"), this.#names("device", "ioas"));
  }

  #any(): Name {
    return this.#random.pick([...this.#model.objects.keys(), ...this.#model.gone, ID_ZERO, ID_LAST]);
  }

  /** What a device is attached to. */
  #pt(): Name {
    const right = this.#names("hwpt");
    if (this.#kind.automatic) right.push(...this.#names("ioas"));
    else if (this.#model.objects.has(PARK)) right.push(PARK, PARK);
    return this.#name(right, this.#names("device"));
  }

  // ---- addresses and lengths

  #size(): bigint {
    const sizes = SIZES.filter((size) => size >= this.#kind.ioPage);
    // Small ones more often.
    return BigInt(sizes[Math.min(this.#random.below(sizes.length), this.#random.below(sizes.length))]);
  }

  #length(): bigint {
    return (
      this.#size() * BigInt(this.#random.weighted([[5, 1] as const, [3, 2] as const, [2, 3] as const, [1, 7] as const]))
    );
  }

  #badLength(): bigint {
    const page = BigInt(this.#kind.ioPage);
    return this.#random.pick([0n, 1n, page / 2n, page + 1n, page * 3n + page / 2n, 3n << 62n, U64_MAX]);
  }

  /** Somewhere in the aperture, mostly in one of a few places, so that operations meet. */
  #iova(length: bigint): bigint {
    const { first, last } = this.#kind;
    const random = this.#random;
    const size = this.#size();
    const end = last + 1n;
    return random.weighted<() => bigint>([
      [12, () => first + size * BigInt(random.below(16))],
      [6, () => first + BigInt(1 << 30) / 2n + size * BigInt(random.below(16))],
      [3, () => end - (length > 0n && length < end ? length : size)],
      [2, () => end - size * BigInt(random.below(4))],
      [1, () => (first >= size ? first - size : end)],
    ])();
  }

  #badIova(length: bigint): bigint {
    const page = BigInt(this.#kind.ioPage);
    const size = this.#size();
    return this.#random.pick([
      this.#iova(length) + page / 2n,
      this.#iova(length) + 1n,
      this.#kind.last + 1n,
      U64_MAX,
      U64_MAX + 1n - size,
      U64_MAX + 1n - page,
      0n,
    ]);
  }

  /** A range that has to do with what is mapped: all or a part of an area, several, or some of what lies beside them. */
  #rangeOf(areas: readonly ModelArea[]): { iova: bigint; length: bigint } {
    const random = this.#random;
    if (areas.length === 0) {
      const length = this.#length();
      return { iova: this.#iova(length), length };
    }
    const at = random.below(areas.length);
    const area = areas[at];
    const page = BigInt(this.#kind.ioPage);
    const part = (length: bigint) => {
      const pages = length / page;
      return pages <= 1n ? 0n : page * BigInt(random.below(Number(pages < 4096n ? pages : 4096n)));
    };
    return random.weighted<() => { iova: bigint; length: bigint }>([
      [10, () => ({ iova: area.iova, length: area.length })],
      [
        4,
        () => {
          const to = areas[random.between(at, Math.min(at + 2, areas.length - 1))];
          return { iova: area.iova, length: to.iova + to.length - area.iova };
        },
      ],
      [
        5,
        () => {
          const skip = part(area.length);
          const rest = area.length - skip;
          const drop = random.chance(50) ? part(rest) : 0n;
          return { iova: area.iova + skip, length: rest - drop };
        },
      ],
      [
        2,
        () => {
          const before = area.iova >= page ? page : 0n;
          return { iova: area.iova - before, length: area.length + before + this.#size() };
        },
      ],
    ])();
  }

  #permissions(): Permissions {
    return this.#random.weighted<Permissions>([
      [16, "rw"],
      [3, "w"],
      [3, "r"],
      [1, ""],
    ]);
  }

  // ---- operations

  #map(): Operation {
    const random = this.#random;
    const ioas = this.#ioas();
    let length = this.#length();
    if (length > BigInt(MEMORY_BYTES)) length = BigInt(MEMORY_BYTES);
    if (random.chance(6)) {
      // Of what no memory is as long as, only what is refused by its length alone.
      const bad = this.#badLength();
      length = bad < BigInt(MEMORY_BYTES) ? bad : 0n;
    }
    const room = BigInt(MEMORY_BYTES) - length;
    const unit = random.chance(8) ? BigInt(random.pick([1, 512, this.#kind.ioPage / 2])) : this.#size();
    let offset = (BigInt(random.below(MEMORY_BYTES)) / unit) * unit;
    if (offset > room) offset = unit <= room ? room - (room % unit) : 0n;
    let iova: bigint | null = null;
    if (random.chance(60)) {
      iova = random.chance(8) ? this.#badIova(length) : this.#place(ioas, length);
      // Leaves become large where IOVA and memory are aligned alike.
      if (random.chance(40)) offset = iova % BigInt(MEMORY_BYTES) <= room ? iova % BigInt(MEMORY_BYTES) : offset;
    }
    return {
      kind: "map",
      ioas,
      offset: Number(offset),
      length: Number(length),
      iova,
      permissions: this.#permissions(),
    };
  }

  /** Where to map: anywhere, beside an area, or on one. */
  #place(ioas: Name, length: bigint): bigint {
    const random = this.#random;
    const areas = this.#model.areas(ioas);
    if (areas.length === 0 || random.chance(60)) return this.#iova(length);
    const area = random.pick(areas);
    if (random.chance(60)) return area.iova + area.length;
    if (random.chance(60) && area.iova >= length) return area.iova - length;
    return this.#rangeOf(areas).iova;
  }

  #copy(): Operation {
    const random = this.#random;
    const from = this.#ioas();
    const to = this.#ioas();
    let { iova, length } = this.#rangeOf(this.#model.areas(from));
    if (random.chance(6)) length = this.#badLength();
    if (random.chance(4)) iova = this.#badIova(length);
    let at: bigint | null = null;
    if (random.chance(50)) at = random.chance(8) ? this.#badIova(length) : this.#place(to, length);
    return { kind: "copy", from, iova, length, to, at, permissions: this.#permissions() };
  }

  #unmap(): Operation {
    const random = this.#random;
    const ioas = this.#ioas();
    if (random.chance(8)) return { kind: "unmap", ioas, iova: 0n, length: U64_MAX };
    let { iova, length } = this.#rangeOf(this.#model.areas(ioas));
    if (random.chance(6)) length = this.#badLength();
    if (random.chance(6)) iova = this.#badIova(length);
    return { kind: "unmap", ioas, iova, length };
  }

  #allowIovas(): Operation {
    const random = this.#random;
    const ioas = this.#ioas();
    const ranges = Array.from({ length: random.pick([0, 1, 1, 2, 3]) }, () => {
      const length = this.#length() * BigInt(random.pick([1, 4, 16]));
      const start = random.chance(10) ? this.#badIova(length) : this.#iova(length);
      const last = start + length - 1n;
      return random.chance(5) ? { start: last < U64_MAX ? last : U64_MAX, last: start } : { start, last };
    });
    return { kind: "allowIovas", ioas, ranges: ranges.filter(({ last }) => last <= U64_MAX) };
  }

  #addDevice(): Operation {
    return {
      kind: "addDevice",
      as: this.#model.fresh("device"),
      auto: this.#model.fresh("auto"),
      pt: this.#pt(),
      dirtyTracking: this.#random.chance(75),
    };
  }

  #replace(): Operation {
    return {
      kind: "replace",
      device: this.#random.pick(this.#model.names("device")),
      auto: this.#model.fresh("auto"),
      pt: this.#pt(),
    };
  }

  #allocHwpt(): Operation {
    return {
      kind: "allocHwpt",
      as: this.#model.fresh("hwpt"),
      device: this.#device(),
      ioas: this.#random.chance(90) ? this.#ioas() : this.#any(),
      dirtyTracking: this.#random.chance(75),
    };
  }

  #mark(): Operation {
    const random = this.#random;
    const hwpt = this.#hwpt();
    const range = this.#rangeOf(this.#model.areasOf(hwpt));
    const page = BigInt(this.#kind.ioPage);
    const iova = range.iova - (range.iova % page);
    const count = Number(range.length / page);
    const limit = count > 2048 ? 2048 : Math.max(1, count);
    const pages = new Set<number>();
    for (let i = random.between(1, 6); i > 0; i--) pages.add(random.below(limit));
    return { kind: "mark", hwpt, iova, pages: [...pages].sort((a, b) => a - b) };
  }

  #getDirtyBitmap(): Operation {
    const random = this.#random;
    const page = this.#kind.ioPage;
    const { marked } = this.#model;
    let hwpt = this.#hwpt();
    let areas = this.#model.areasOf(hwpt);
    if (marked !== null && random.chance(50) && this.#model.areasOf(marked.hwpt).length > 0) {
      // Where something was written: the area, or all from a page on.
      hwpt = marked.hwpt;
      const written = marked.iova + BigInt(page) * BigInt(random.pick([0, ...marked.pages]));
      const all = this.#model.areasOf(hwpt);
      const hit = all.filter((area) => written >= area.iova && written < area.iova + area.length);
      areas = hit.length > 0 ? hit : all;
    }
    let { iova, length } = this.#rangeOf(areas);
    const pageSize = random.weighted([
      [12, page] as const,
      [2, page / 2] as const,
      [2, page * 2] as const,
      [2, page * 4] as const,
      [1, page * 64] as const,
      [1, 4096] as const,
      [1, 1024 * KIB] as const,
    ]);
    if (random.chance(60)) {
      // Outwards to the page size, so that it isn't refused.
      const unit = BigInt(pageSize);
      const end = iova + length + unit - 1n;
      iova -= iova % unit;
      length = end - (end % unit) - iova;
    }
    if (random.chance(5)) length = this.#badLength();
    if (random.chance(5)) iova = this.#badIova(length);
    // A bitmap of more than a GiB isn't worth its memory, unless the range is refused.
    if (length > 1n << 30n && iova + length - 1n <= U64_MAX) length = 1n << 20n;
    // At 0, Linux takes a length of 0 for the whole space, and writes beyond the bitmap: no library asks it that.
    if (iova === 0n && length === 0n) iova = BigInt(page);
    // The last address of all is the same in any unit, but what comes after a byte there isn't.
    if (iova === U64_MAX && length === 1n) length = BigInt(page);
    return {
      kind: "getDirtyBitmap",
      hwpt,
      iova,
      length,
      pageSize,
      clear: random.chance(60),
      preset: random.chance(20),
    };
  }
}
