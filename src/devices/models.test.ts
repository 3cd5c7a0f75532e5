import { createSocket } from "node:dgram";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import type { ReplaySchedule } from "../host/replay-schedule.js";
import { MiB, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { FlatContext, runUntil } from "./flat-host.test.helper.js";
import { MLX5_QUEUES_REGISTER } from "./mlx5.js";
import { createWorkloadModel, type WorkloadDescription } from "./models.js";
import { BUFFER_ENTRY_BYTES, type ModelWiring, type PciModel, REGION, REGISTER, STATUS } from "./pci-model.js";
import { checkStamps, stampsIntact } from "./stamp.js";
import { VGPU_WINDOW_PAGES } from "./vgpu.js";

const PAGES = 200;
const buffers = [
  { firstPage: 256, pages: 120 },
  { firstPage: 500, pages: PAGES - 120 },
];

const descriptions: { [model in WorkloadDescription["model"]]: WorkloadDescription } = {
  mlx5: {
    model: "mlx5",
    id: "mlx5-0",
    iommu: "iommu0",
    load: { rate: 200, footprint: PAGES * PAGE_SIZE },
    p2pTargets: [],
    dmaLogging: { pageSizes: [4096], maxRanges: 8, addressWidth: 52, readableWhen: "always" },
  },
  nic: { model: "nic", id: "nic0", iommu: "iommu0", load: { rate: 200, footprint: PAGES * PAGE_SIZE }, p2pTargets: [] },
  blk: { model: "blk", id: "blk0", iommu: "iommu0", load: { rate: 200, footprint: PAGES * PAGE_SIZE }, p2pTargets: [] },
  vgpu: {
    model: "vgpu",
    id: "vgpu0",
    load: { rate: 200, footprint: PAGES * PAGE_SIZE },
    p2pTargets: [],
    sharedTracker: false,
    vram: 64 * 1024,
  },
  replay: {
    model: "replay",
    id: "replay0",
    iommu: "iommu0",
    load: { rate: 0, footprint: 0 },
    p2pTargets: [],
    trace: "unused.dtrc",
    dmaLogging: { pageSizes: [4096], maxRanges: 8, addressWidth: 52, readableWhen: "always" },
  },
};

/** All pages of the buffers, the last first, in two intervals of 4 ms and one between in which nothing happens. */
function replayOf(pages: readonly number[]): ReplaySchedule {
  const shared = new Uint32Array(new SharedArrayBuffer(4 * pages.length));
  shared.set(pages);
  const writes = new Uint32Array(new SharedArrayBuffer(12));
  writes.set([pages.length >> 1, pages.length >> 1, pages.length]);
  const endsUs = new Float64Array(new SharedArrayBuffer(24));
  endsUs.set([4000, 6000, 10_000]);
  return { pages: shared, writes, endsUs };
}

const allPages = buffers.flatMap(({ firstPage, pages }) => Array.from({ length: pages }, (_, i) => firstPage + i));
const replay = replayOf(allPages.toReversed());

const disposables: Disposable[] = [];
afterEach(() => {
  for (const disposable of disposables.splice(0)) disposable[Symbol.dispose]();
});

function wiring(change: Partial<ModelWiring> = {}): ModelWiring {
  return { incarnation: 1, seed: 1, memory: null, buffers, p2p: [], replay, ...change };
}

async function startModel(
  name: WorkloadDescription["model"],
  memory = createGuestMemory(4 * MiB),
  change: Partial<ModelWiring> = {},
) {
  const vram = name === "vgpu" ? new Uint8Array(64 * 1024) : null;
  const model = createWorkloadModel(descriptions[name], wiring({ memory: vram, ...change }));
  disposables.push(model);
  const context = new FlatContext(memory);
  await model.start(context);
  return { model, memory, context };
}

/** Sends datagrams to a NIC, paced so that its ring does not overflow. */
function feed(model: PciModel): void {
  const socket = createSocket("udp4");
  const timer = setInterval(() => {
    for (let i = 0; i < 10; i++) socket.send(Buffer.alloc(256 + i * 800, i), model.counters().udpPort, "127.0.0.1");
  }, 2);
  disposables.push({
    [Symbol.dispose]() {
      clearInterval(timer);
      socket.close();
    },
  });
}

describe.each(["mlx5", "nic", "blk", "vgpu", "replay"] as const)("the model %s", (name) => {
  it("writes stamped units into all of its buffers, and nowhere else", async () => {
    const { model, memory, context } = await startModel(name);
    if (name === "mlx5" || name === "nic") feed(model);
    await runUntil(model, () => model.counters().lastSequence > PAGES + 20);
    model.quiesce();
    const problems = checkStamps(memory, model.trail());
    expect(problems).toMatchObject({ checked: PAGES, lost: 0, torn: 0, reordered: 0, foreign: 0 });
    for (const page of context.dma.written) {
      expect(buffers.some(({ firstPage, pages }) => page >= firstPage && page < firstPage + pages)).toBe(true);
    }
    expect(context.failures).toEqual([]);
  });

  it("goes on after a migration without a gap in its numbers", async () => {
    const source = await startModel(name);
    if (name === "mlx5" || name === "nic") feed(source.model);
    await runUntil(source.model, () => source.model.counters().lastSequence > 50);
    source.model.quiesce();
    const state = source.model.save();
    const last = source.model.counters().lastSequence;

    const destination = await startModel(name, source.memory, { incarnation: 2 });
    destination.model.load(state);
    expect(destination.model.counters().lastSequence).toBe(last);
    if (name === "mlx5" || name === "nic") feed(destination.model);
    await runUntil(destination.model, () => destination.model.counters().lastSequence > last + 30);
    destination.model.quiesce();
    const trail = destination.model.trail();
    expect(trail.epochs).toEqual([
      { incarnation: 1, firstSequence: 1 },
      { incarnation: 2, firstSequence: last + 1 },
    ]);
    expect(stampsIntact(checkStamps(source.memory, trail))).toBe(true);
  });

  it("saves a state of the same size at all times, and the same state twice while stopped", async () => {
    const { model } = await startModel(name);
    const before = model.save();
    if (name === "mlx5" || name === "nic") feed(model);
    await runUntil(model, () => model.counters().lastSequence > 20);
    model.quiesce();
    expect(model.save().byteLength).toBe(before.byteLength);
    expect(model.save()).toEqual(model.save());
    expect(model.save()).not.toEqual(before);
  });

  it("refuses a state that was cut, extended, or is of something else", async () => {
    const { model } = await startModel(name);
    const state = model.save();
    const other = (await startModel(name === "nic" ? "blk" : "nic")).model.save();
    for (const bad of [
      state.slice(0, -1),
      state.slice(0, 20),
      new Uint8Array(0),
      new Uint8Array(64).fill(255),
      other,
    ]) {
      expect(() => model.load(bad)).toThrow(expect.objectContaining({ code: "BAD_DEVICE_STATE" }));
    }
    model.load(state);
    expect(model.save().byteLength).toBe(state.byteLength);
  });

  it("tries the same number again after a blocked write, and leaves no gap", async () => {
    const { model, memory, context } = await startModel(name);
    if (name === "mlx5" || name === "nic") feed(model);
    context.dma.fault = "detached";
    await runUntil(model, () => model.counters().faults > 3);
    expect(model.counters().lastSequence).toBe(0);
    context.dma.fault = null;
    await runUntil(model, () => model.counters().lastSequence > 10);
    model.quiesce();
    expect(stampsIntact(checkStamps(memory, model.trail()))).toBe(true);
  });

  // A replay has none: its trace paces it (replay-order.test.ts).
  it.skipIf(name === "replay")("keeps to its rate", async () => {
    const slow = { ...descriptions[name], load: { rate: 1, footprint: PAGES * PAGE_SIZE } } as WorkloadDescription;
    const model = createWorkloadModel(slow, wiring({ memory: name === "vgpu" ? new Uint8Array(65536) : null }));
    disposables.push(model);
    await model.start(new FlatContext(createGuestMemory(4 * MiB)));
    if (name === "mlx5" || name === "nic") feed(model);
    const from = performance.now();
    await runUntil(model, () => performance.now() - from > 200);
    // 1 MB/s is a page in 4.1 ms; a burst after a pause comes on top. Below: the machine may be busy with other tests.
    const pages = (performance.now() - from) / 4.096;
    expect(model.counters().lastSequence).toBeGreaterThan(5);
    expect(model.counters().lastSequence).toBeLessThan(pages + 8);
  });

  it("tells the guest by interrupts, fewer than there are units", async () => {
    const { model, context } = await startModel(name);
    if (name === "mlx5" || name === "nic") feed(model);
    await runUntil(model, () => context.interrupts > 2);
    expect(context.interrupts).toBeLessThan(model.counters().units);
    model.quiesce();
    const before = context.interrupts;
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(context.interrupts).toBe(before);
  });

  it("shows its sequence number in a register", async () => {
    const { model } = await startModel(name);
    if (name === "mlx5" || name === "nic") feed(model);
    await runUntil(model, () => model.counters().lastSequence > 5);
    model.quiesce();
    const register = new Uint8Array(4);
    model.regionRead(REGION.BAR0, REGISTER.SEQUENCE_LOW, register);
    expect(new DataView(register.buffer).getUint32(0, true)).toBe(model.counters().lastSequence);
  });
});

describe("the buffer table", () => {
  const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
  const entry = (iova: bigint, bytes: bigint) => new Uint8Array(BigUint64Array.of(iova, bytes).buffer);
  const used = (model: PciModel): number => {
    const bytes = new Uint8Array(4);
    model.regionRead(REGION.BAR0, REGISTER.BUFFERS, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  };
  const writeEntry = (model: PciModel, index: number, iova: bigint, bytes = 4096n) =>
    model.regionWrite(REGION.BAR0, REGISTER.BUFFER_TABLE + index * BUFFER_ENTRY_BYTES, entry(iova, bytes));
  async function programmed(): Promise<PciModel> {
    const { model } = await startModel("nic", undefined, { buffers: [] });
    writeEntry(model, 0, 0x100000n);
    writeEntry(model, 1, 0x200000n, 8192n);
    model.regionWrite(REGION.BAR0, REGISTER.BUFFERS, u32(2));
    expect(used(model)).toBe(2);
    return model;
  }

  it("is not used any more once an entry in use was written, and still is where another was", async () => {
    const model = await programmed();
    writeEntry(model, 2, 1n);
    expect([used(model), model.counters().slots]).toEqual([2, 3]);
    model.regionWrite(REGION.BAR0, REGISTER.BUFFER_TABLE + 2 * BUFFER_ENTRY_BYTES - 1, Uint8Array.of(0));
    expect([used(model), model.counters().slots]).toEqual([0, 0]);
    model.regionWrite(REGION.BAR0, REGISTER.BUFFERS, u32(2));
    expect([used(model), model.counters().slots]).toEqual([2, 3]);
  });

  it.each([0, 1, 2, 3])("follows a write to byte %d of their number alone", async (byte) => {
    const model = await programmed();
    // A table of so many entries there isn't: the number in use stays.
    model.regionWrite(REGION.BAR0, REGISTER.BUFFERS + byte, Uint8Array.of(0xff));
    expect(used(model)).toBe(2);
    model.regionWrite(REGION.BAR0, REGISTER.BUFFERS + byte, Uint8Array.of(byte === 0 ? 1 : 0));
    expect(used(model)).toBe(byte === 0 ? 1 : 2);
  });

  it("moves with the device, whatever its guest has written to it", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            offset: fc.oneof(fc.integer({ min: 0x38, max: 0x48 }), fc.integer({ min: 0xf8, max: 0x130 })),
            data: fc.uint8Array({ minLength: 1, maxLength: 24 }),
          }),
          { maxLength: 6 },
        ),
        async (writes) => {
          const model = await programmed();
          for (const { offset, data } of writes) model.regionWrite(REGION.BAR0, offset, data);
          const { model: target } = await startModel("nic", undefined, { buffers: [] });
          target.load(model.save());
          expect(used(target)).toBe(used(model));
          expect(target.counters().slots).toBe(model.counters().slots);
        },
      ),
    );
  });

  it.each([
    ["begins inside a page, too high for a number to tell", 2n ** 53n + 1n, 4096n],
    ["has no whole pages, too long for a number to tell", 0n, 2n ** 53n + 1n],
    ["ends behind the 64-bit address space", 2n ** 64n - 4096n, 8192n],
    ["is empty", 0x100000n, 0n],
    ["has more pages than can be counted", 0n, 2n ** 63n],
  ])("is refused with an entry that %s", async (_, iova, bytes) => {
    const model = await programmed();
    writeEntry(model, 2, iova, bytes);
    model.regionWrite(REGION.BAR0, REGISTER.BUFFERS, u32(3));
    expect(used(model)).toBe(2);
  });

  it("may have the last page of the 64-bit address space", async () => {
    const model = await programmed();
    writeEntry(model, 2, 2n ** 64n - 4096n);
    model.regionWrite(REGION.BAR0, REGISTER.BUFFERS, u32(3));
    expect(used(model)).toBe(3);
  });
});

describe.each(["mlx5", "nic", "blk", "vgpu"] as const)("the driver of the model %s, in the middle of a DMA", (name) => {
  /** As {@link startModel}, with its work under way in buffers that its driver gave it. */
  async function working() {
    const { model, memory, context } = await startModel(name, undefined, { buffers: [] });
    if (name === "mlx5" || name === "nic") feed(model);
    give(model, buffers);
    await runUntil(model, () => model.counters().lastSequence > 10);
    return { model, memory, context };
  }

  function give(model: PciModel, spans: typeof buffers): void {
    for (const [index, { firstPage, pages }] of spans.entries()) {
      const entry = BigUint64Array.of(BigInt(firstPage * PAGE_SIZE), BigInt(pages * PAGE_SIZE));
      model.regionWrite(REGION.BAR0, REGISTER.BUFFER_TABLE + index * BUFFER_ENTRY_BYTES, new Uint8Array(entry.buffer));
    }
    model.regionWrite(REGION.BAR0, REGISTER.BUFFERS, new Uint8Array(Uint32Array.of(spans.length).buffer));
  }

  it("gives it other buffers: their units are numbered from 1, without a gap", async () => {
    const { model, memory, context } = await working();
    const others = [{ firstPage: 700, pages: 40 }];
    let seen = false;
    context.dma.meanwhile = () => {
      give(model, others);
      seen = true;
    };
    await runUntil(model, () => seen && model.counters().lastSequence > 60);
    model.quiesce();
    expect(checkStamps(memory, model.trail())).toMatchObject({
      checked: 40,
      lost: 0,
      torn: 0,
      reordered: 0,
      foreign: 0,
    });
    expect(model.hasFailed || context.failures.length > 0).toBe(false);
  });

  it("resets it: it does no more, until it has buffers again", async () => {
    const { model, memory, context } = await working();
    let written = -1;
    context.dma.meanwhile = () => {
      model.regionWrite(REGION.BAR0, REGISTER.STATUS, new Uint8Array(Uint32Array.of(STATUS.RESET).buffer));
      written = context.dma.written.length;
    };
    await runUntil(model, () => written >= 0);
    model.run(1);
    expect([context.dma.written.length, model.counters().slots]).toEqual([written + 1, 0]);
    give(model, buffers);
    await runUntil(model, () => model.counters().lastSequence > PAGES);
    model.quiesce();
    expect(stampsIntact(checkStamps(memory, model.trail()))).toBe(true);
  });
});

describe("P2P writes", () => {
  it("go to the device's corner of its target's BAR, and not while P2P is quiesced", async () => {
    const bar = { firstPage: 900, pages: 4 };
    const { model, context } = await startModel("blk", undefined, { p2p: [{ target: "vgpu0", pages: bar }] });
    context.p2pQuiesced = true;
    await runUntil(model, () => model.counters().lastSequence > 40);
    expect(context.dma.written.some((page) => page >= 900)).toBe(false);
    context.p2pQuiesced = false;
    await runUntil(model, () => model.counters().p2pUnits > 5);
    expect(context.dma.written.filter((page) => page >= 900 && page < 904).length).toBe(model.counters().p2pUnits);
  });
});

describe("the vGPU", () => {
  it("writes only pages that it has pinned, and pins one window at a time", async () => {
    const { model, context } = await startModel("vgpu");
    const write = context.dma.write.bind(context.dma);
    context.dma.write = (page, ...rest) => {
      expect(context.pinned.has(page)).toBe(true);
      return write(page, ...rest);
    };
    await runUntil(model, () => model.counters().lastSequence > 3 * PAGES);
    expect(model.counters().windowsPinned).toBeGreaterThan(9);
    expect(context.mostPinned).toBeLessThanOrEqual(VGPU_WINDOW_PAGES);
  });

  it("unpins everything on reset, and clears its video memory", async () => {
    const { model, context } = await startModel("vgpu");
    model.regionWrite(REGION.BAR2, 100, Uint8Array.of(1, 2, 3));
    await runUntil(model, () => model.counters().lastSequence > 10);
    model.reset();
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(context.pinned.size).toBe(0);
    const vram = new Uint8Array(3);
    model.regionRead(REGION.BAR2, 100, vram);
    expect(vram).toEqual(new Uint8Array(3));
  });
});

describe("the mlx5 VF", () => {
  it("has a larger state after more receive queues were configured", async () => {
    const { model } = await startModel("mlx5");
    const before = model.save().byteLength;
    model.regionWrite(REGION.BAR0, MLX5_QUEUES_REGISTER, Uint8Array.of(6, 0, 0, 0));
    expect(model.counters().queues).toBe(6);
    expect(model.save().byteLength).toBe(before + 2 * 4096);
  });
});

describe("the disk", () => {
  it("brings the file's bytes into memory, in order, across a migration", async () => {
    const { model, memory, context } = await startModel("blk");
    await runUntil(model, () => model.counters().lastSequence > 20);
    model.quiesce();
    const position = model.counters().filePosition;
    expect(position).toBe(model.counters().lastSequence * 4048);
    const next = await startModel("blk", memory, { incarnation: 2 });
    next.model.load(model.save());
    await runUntil(next.model, () => next.model.counters().lastSequence > model.counters().lastSequence + 5);
    expect(next.model.counters().filePosition).toBe(next.model.counters().lastSequence * 4048);
    expect(context.failures).toEqual([]);
  });

  it("refuses a file that is not there", async () => {
    const model = createWorkloadModel(
      { ...descriptions.blk, file: "/nonexistent/disk.img" } as WorkloadDescription,
      wiring(),
    );
    disposables.push(model);
    await expect(model.start(new FlatContext(createGuestMemory(4 * MiB)))).rejects.toMatchObject({
      code: "BAD_DISK_FILE",
    });
  });
});

describe("a replayed device", () => {
  it("refuses the state of one that replays another trace", async () => {
    const { model } = await startModel("replay");
    const other = await startModel("replay", createGuestMemory(4 * MiB), { replay: replayOf([300, 301]) });
    expect(() => model.load(other.model.save())).toThrow(expect.objectContaining({ code: "BAD_DEVICE_STATE" }));
  });

  it("is refused where the host has no trace for it", () => {
    const { replay: _, ...without } = wiring();
    expect(() => createWorkloadModel(descriptions.replay, without)).toThrow(
      expect.objectContaining({ code: "NO_TRACE" }),
    );
  });

  it("writes nothing where its trace has nothing", async () => {
    const { model } = await startModel("replay", createGuestMemory(4 * MiB), { replay: replayOf([]) });
    expect(model.run(1)).toBeGreaterThan(0);
    expect(model.counters().lastSequence).toBe(0);
    expect(checkStamps(createGuestMemory(4 * MiB), model.trail())).toMatchObject({ checked: 0 });
  });
});
