import { describe, expect, it } from "vitest";
import type { MemorySpan, ObjectId } from "../../host/host.js";
import { type Iova, PAGE_SIZE, U64_MAX } from "../../memory/address.js";
import { createArena } from "../../memory/arena.js";
import { holdsOf } from "../../memory/holds.js";
import { type ErrnoName, UapiError } from "../../uapi/errno.js";
import type { DmaTarget } from "./connection.js";
import type { DmaMapping, MappedDevice } from "./dma-mappings.js";
import { VfioUserIommufd } from "./iommufd.js";

/*
 * The vfio-user host's IOMMU before devices that refuse, are slow, or come and go: what the test of conformance, whose
 * devices do what they are told, takes for granted.
 */

const PAGE = BigInt(PAGE_SIZE);
const RW = { readable: true, writeable: true };

/** A device that notes what it is told, by page, takes its time, and refuses what it is asked to. */
class ToldDevice implements MappedDevice {
  readonly id: string;
  readonly byMessages: boolean;
  readonly mapped = new Map<Iova, DmaMapping>();
  target: DmaTarget | null = null;
  told: string[] = [];
  /** `map 3`, `unmap 3`, and the errno that it answers. */
  readonly refuses = new Map<string, ErrnoName>();

  constructor(id: string, byMessages = false) {
    this.id = id;
    this.byMessages = byMessages;
  }

  async map(iova: Iova, mapping: DmaMapping): Promise<void> {
    await this.#hear(`map ${iova / PAGE}`);
    this.mapped.set(iova, mapping);
  }

  async unmap(iova: Iova): Promise<void> {
    if (!this.mapped.has(iova)) return;
    await this.#hear(`unmap ${iova / PAGE}`);
    this.mapped.delete(iova);
  }

  /** The pages that it maps, in the order in which it was told. */
  get pages(): number[] {
    return [...this.mapped.keys()].map((iova) => Number(iova / PAGE));
  }

  async #hear(what: string): Promise<void> {
    this.told.push(what);
    await new Promise((resolve) => setImmediate(resolve));
    const code = this.refuses.get(what);
    if (code !== undefined) throw new UapiError(code, { syscall: "reply", attempted: what });
  }
}

async function errno(call: Promise<unknown>): Promise<ErrnoName | "none"> {
  return call.then(
    () => "none" as const,
    (error: { code: ErrnoName }) => error.code,
  );
}

async function setup() {
  const arena = createArena(64 * PAGE_SIZE);
  const iommufd = new VfioUserIommufd();
  const [ioas, other] = [await iommufd.allocIoas(), await iommufd.allocIoas()];
  const span = (page: number): MemorySpan => ({ arena, offset: page * PAGE_SIZE, length: PAGE_SIZE });
  /** One page of memory, at a page. */
  const map = (page: number, memoryPage = page, into: ObjectId = ioas) =>
    iommufd.map(into, span(memoryPage), { ...RW, iova: BigInt(page) * PAGE });
  const unmap = (page: number) => iommufd.unmap(ioas, BigInt(page) * PAGE, PAGE);
  /** A device that is attached. */
  const add = async (id: string, pt: ObjectId = ioas, byMessages = false) => {
    const device = new ToldDevice(id, byMessages);
    const bound = iommufd.bindServed(device);
    const hwpt = await iommufd.attachDevice(bound, pt);
    return { device, bound, hwpt };
  };
  return { arena, iommufd, ioas, other, map, unmap, add };
}

describe("mapping for served devices", () => {
  it("tells every device that is attached", async () => {
    const { map, unmap, add } = await setup();
    const [a, b] = [await add("a"), await add("b")];
    await map(1);
    await map(2);
    await unmap(1);
    for (const { device } of [a, b]) expect(device.told).toEqual(["map 1", "map 2", "unmap 1"]);
  });

  it("is undone where a device refuses: the others are told to unmap, and nothing is mapped there", async () => {
    const { arena, map, unmap, add } = await setup();
    const [a, b] = [await add("a"), await add("b")];
    b.device.refuses.set("map 1", "ENOSPC");
    expect(await errno(map(1))).toBe("ENOSPC");
    expect([a.device.told, a.device.pages, b.device.pages]).toEqual([["map 1", "unmap 1"], [], []]);
    expect([await errno(unmap(1)), holdsOf(arena).count]).toEqual(["ENOENT", 0]);
    b.device.refuses.clear();
    await map(1);
    expect([a.device.pages, b.device.pages]).toEqual([[1], [1]]);
  });

  it("is undone area by area where a copy of several fails at one of them", async () => {
    const { arena, iommufd, ioas, other, map, add } = await setup();
    await map(1);
    await map(2);
    const { device } = await add("a", other);
    device.refuses.set("map 9", "EIO");
    const from = { ioas, iova: PAGE, length: 2n * PAGE };
    expect(await errno(iommufd.copy(from, { ioas: other, ...RW, iova: 8n * PAGE }))).toBe("EIO");
    expect([device.told, device.pages]).toEqual([["map 8", "map 9", "unmap 8"], []]);
    expect([await iommufd.unmap(other, 0n, U64_MAX), holdsOf(arena).count]).toEqual([0n, 2]);
  });

  it("reports the first refusal if a device refuses the undoing as well; that one is told again when it is unbound", async () => {
    const { iommufd, map, unmap, add } = await setup();
    const [a, b] = [await add("a"), await add("b")];
    a.device.refuses.set("unmap 1", "EIO");
    b.device.refuses.set("map 1", "ENOSPC");
    expect(await errno(map(1))).toBe("ENOSPC");
    expect([a.device.pages, await errno(unmap(1))]).toEqual([[1], "ENOENT"]);
    a.device.refuses.clear();
    await iommufd.unbindDevice(a.bound);
    expect(a.device.pages).toEqual([]);
  });

  it("keeps a mapping that a device refuses to unmap; an unmap that is tried again tells that device alone", async () => {
    const { arena, map, unmap, add } = await setup();
    const [a, b] = [await add("a"), await add("b")];
    await map(1);
    b.device.refuses.set("unmap 1", "EBUSY");
    expect(await errno(unmap(1))).toBe("EBUSY");
    expect([await errno(map(1)), holdsOf(arena).count]).toEqual(["EEXIST", 1]);
    b.device.refuses.clear();
    expect(await unmap(1)).toBe(PAGE);
    expect([a.device.told, b.device.pages, holdsOf(arena).count]).toEqual([["map 1", "unmap 1"], [], 0]);
  });

  it("holds the memory as long as it is mapped, whether or not a device is there", async () => {
    const { arena, iommufd, map, unmap } = await setup();
    await map(1);
    await map(2);
    await unmap(1);
    expect(holdsOf(arena).count).toBe(1);
    await iommufd[Symbol.asyncDispose]();
    expect(holdsOf(arena).count).toBe(0);
  });
});

describe("attaching a served device", () => {
  it("tells it what is mapped, and detaching that nothing is", async () => {
    const { iommufd, map, add } = await setup();
    await map(1);
    await map(2);
    const { device, bound } = await add("a");
    expect(device.pages).toEqual([1, 2]);
    await iommufd.detachDevice(bound);
    expect([device.pages, device.target]).toEqual([[], null]);
  });

  it("elsewhere keeps what both map alike: it is neither unmapped nor mapped again", async () => {
    const { iommufd, ioas, other, map, add } = await setup();
    await map(1);
    await map(2);
    await map(3);
    const { device, bound } = await add("a");
    await map(2, 2, other);
    await map(3, 7, other);
    await iommufd.copy(
      { ioas, iova: PAGE, length: PAGE },
      { ioas: other, iova: PAGE, readable: true, writeable: false },
    );
    device.told = [];
    await iommufd.attachDevice(bound, other);
    expect(device.told).toEqual(["unmap 1", "unmap 3", "map 1", "map 3"]);
    expect(
      [...device.mapped].map(([iova, { span, writeable }]) => [iova / PAGE, span.offset / PAGE_SIZE, writeable]),
    ).toEqual([
      [2n, 2, true],
      [1n, 1, false],
      [3n, 7, true],
    ]);
  });

  it("leaves it detached if it refuses a mapping: it reaches nothing, and is told of no change", async () => {
    const { iommufd, other, map, add } = await setup();
    await map(1);
    await map(5, 5, other);
    await map(6, 6, other);
    const { device, bound, hwpt } = await add("a");
    device.refuses.set("map 6", "ENOSPC");
    expect(await errno(iommufd.attachDevice(bound, other))).toBe("ENOSPC");
    expect([device.pages, device.target]).toEqual([[], null]);
    expect(await errno(iommufd.setDirtyTracking(hwpt, true)), "its automatic HWPT has gone with it").toBe("ENOENT");
    device.told = [];
    await map(2);
    await map(7, 7, other);
    await iommufd.detachDevice(bound);
    expect(device.told).toEqual([]);
    device.refuses.clear();
    await iommufd.attachDevice(bound, other);
    expect(device.pages).toEqual([5, 6, 7]);
  });

  it("takes turns with mapping: the device is told of each mapping once", async () => {
    const { iommufd, ioas, other, map, unmap, add } = await setup();
    for (let page = 1; page < 8; page++) await map(page);
    const { device, bound } = await add("a", other);
    device.told = [];
    const [, hwpt] = await Promise.all([map(8), iommufd.attachDevice(bound, ioas), map(9), unmap(3), map(10)]);
    expect(device.pages.sort((a, b) => a - b)).toEqual([1, 2, 4, 5, 6, 7, 8, 9, 10]);
    const maps = device.told.filter((what) => what.startsWith("map"));
    expect(maps).toHaveLength(new Set(maps).size);
    expect(hwpt).toBeGreaterThan(0);
  });

  it("ends with a detach that it may refuse: it stays attached, and can be detached again", async () => {
    const { iommufd, map, add } = await setup();
    await map(1);
    const { device, bound } = await add("a");
    device.refuses.set("unmap 1", "EBUSY");
    expect(await errno(iommufd.detachDevice(bound))).toBe("EBUSY");
    await map(2);
    expect(device.pages).toEqual([1, 2]);
    device.refuses.clear();
    await iommufd.detachDevice(bound);
    expect(device.pages).toEqual([]);
  });

  it("to an HWPT with dirty tracking is refused unless its writes are seen, and so is the HWPT: with its name and a remedy", async () => {
    const { iommufd, ioas, add } = await setup();
    const seen = await add("seen", ioas, true);
    const unseen = await add("unseen");
    expect([
      (await iommufd.hwInfo(seen.bound)).dirtyTracking,
      (await iommufd.hwInfo(unseen.bound)).dirtyTracking,
    ]).toEqual([true, false]);
    await expect(iommufd.allocHwpt({ device: unseen.bound, ioas, dirtyTracking: true })).rejects.toMatchObject({
      code: "EOPNOTSUPP",
      message: expect.stringContaining("'unseen'"),
      remedy: expect.stringContaining("messages"),
    });
    const hwpt = await iommufd.allocHwpt({ device: seen.bound, ioas, dirtyTracking: true });
    await expect(iommufd.attachDevice(unseen.bound, hwpt)).rejects.toMatchObject({ code: "EINVAL" });
    expect(await iommufd.attachDevice(seen.bound, hwpt)).toBe(hwpt);
  });

  it("lets its messages reach what is mapped, across mappings; a range that is partly mapped is refused as a whole", async () => {
    const { arena, iommufd, ioas, map, add } = await setup();
    await map(1, 8);
    await map(2, 3);
    await iommufd.map(
      1,
      { arena, offset: 0, length: PAGE_SIZE },
      { iova: 3n * PAGE, readable: true, writeable: false },
    );
    const { target } = (await add("a", ioas, true)).device;
    const edge = 2n * PAGE - 2n;
    expect(target?.write(edge, Uint8Array.of(1, 2, 3))).toBeNull();
    expect([...arena.u8.subarray(9 * PAGE_SIZE - 2, 9 * PAGE_SIZE), arena.u8[3 * PAGE_SIZE]]).toEqual([1, 2, 3]);
    const back = new Uint8Array(3);
    expect([target?.read(edge, back), [...back]]).toEqual([null, [1, 2, 3]]);
    expect(target?.write(3n * PAGE - 1n, Uint8Array.of(9, 9))).toBe("EPERM");
    expect(target?.read(4n * PAGE - 1n, new Uint8Array(2))).toBe("EFAULT");
    expect(arena.u8[4 * PAGE_SIZE - 1]).toBe(0);
  });
});
