import { afterEach, describe, expect, test } from "vitest";
import type { RamBitmap } from "../../src/bitmap/ram-bitmap.js";
import { enableBusMaster } from "../../src/devices/workload.js";
import { EmulatedDesigns } from "../../src/emulated/designs/designs.js";
import { PhysicalMemory } from "../../src/emulated/physical-memory.js";
import { type Bench, describeMachine, eventually, openBench } from "../../src/emulated/vfio/bench.test.helper.js";
import type { Machine } from "../../src/host/host.js";
import { PAGE_SIZE } from "../../src/memory/address.js";
import type { TrackingDesign } from "../../src/tracking/choice.js";
import { DEFAULT_POLICY, type Policy } from "../../src/tracking/choice.js";
import { openDesign } from "../../src/tracking/designs.js";
import { chooseTrackers } from "../../src/tracking/policy.js";
import { probeMachine } from "../../src/tracking/probe.js";
import { FakeVcpus, markedPages } from "../support/fake-host/machine.js";

/*
 * A migration in small, on emulated devices whose DMA goes on in another thread: copy all of RAM, read and copy what is
 * dirty a few times, stop the devices, read and copy once more. The copy must be the memory.
 */

const FOOTPRINT = 100 * PAGE_SIZE;
const BLK = { model: "blk", id: "blk0", iommu: "iommu0", load: { rate: 40, footprint: FOOTPRINT } };
const MLX5 = { model: "mlx5", id: "mlx0", iommu: "iommu0", load: { rate: 0, footprint: FOOTPRINT } };
const vgpu = (id: string, sharedTracker: boolean) => {
  return { model: "vgpu", id, sharedTracker, load: { rate: 20, footprint: 2 * FOOTPRINT }, vram: 64 * 1024 };
};

const open: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each[Symbol.asyncDispose]();
});

async function machineOf(
  devices: readonly { id: string; model: string }[],
): Promise<{ bench: Bench; machine: Machine }> {
  const bench = await openBench(describeMachine(devices));
  open.push(bench);
  const { memory, iommufd, ioas } = bench;
  const physical = new PhysicalMemory();
  for (const arena of memory.arenas) physical.register(arena, { kind: "ram" });
  const machine: Machine = {
    memory,
    vcpus: new FakeVcpus(),
    designs: new EmulatedDesigns({ memory, physical }),
    devices: devices.map(({ id, model }) => {
      return { id, model, vfio: bench.device(id), iommufd, deviceId: bench.deviceId(id), ioas, mdev: model === "vgpu" };
    }),
    mayP2p: () => false,
    setP2pReachable: async () => {},
    [Symbol.asyncDispose]: async () => {},
  };
  return { bench, machine };
}

/** Copies the marked pages as they are now. */
function copyPages(bench: Bench, pages: RamBitmap, copy: Uint8Array): void {
  const { u8 } = bench.memory.arenas[0];
  for (const page of markedPages(pages)) {
    const at = page * PAGE_SIZE;
    copy.set(u8.subarray(at, at + PAGE_SIZE), at);
  }
}

function pagesThatDiffer(bench: Bench, copy: Uint8Array): number[] {
  const { u8, ramPages } = bench.memory.arenas[0];
  const differ: number[] = [];
  for (let page = 0; page < ramPages; page++) {
    const at = page * PAGE_SIZE;
    if (Buffer.compare(u8.subarray(at, at + PAGE_SIZE), copy.subarray(at, at + PAGE_SIZE)) !== 0) differ.push(page);
  }
  return differ;
}

/** Returns what reads reported in pages, and pages that were lost. */
async function copyWhileRunning(
  devices: readonly { id: string; model: string }[],
  design: TrackingDesign,
  policy: Partial<Policy>,
) {
  const { bench, machine } = await machineOf(devices);
  const choices = chooseTrackers(await probeMachine(machine), { ...DEFAULT_POLICY, ...policy });
  const source = await openDesign(design, machine, choices);
  open.push(source);
  const active = devices.filter(({ model }) => model !== "mlx5").map(({ id }) => bench.device(id));
  for (const device of active) await enableBusMaster(device);
  const units = async (device: (typeof active)[number]) => (await device.counters()).units;
  await source.start();
  const copy = bench.memory.arenas[0].u8.slice(0, bench.memory.bytes);
  const reported: number[] = [];
  for (let round = 0; round < 6; round++) {
    const before = await Promise.all(active.map(units));
    await eventually(async () => (await Promise.all(active.map(units))).every((now, i) => now > before[i] + 20));
    const { dirty, failures } = await source.read({ quiesced: false });
    expect(failures).toEqual([]);
    reported.push(dirty.count());
    copyPages(bench, dirty, copy);
  }
  for (const { vfio } of machine.devices) await vfio.setState("STOP");
  const { dirty, failures } = await source.read({ quiesced: true, final: true });
  expect(failures).toEqual([]);
  copyPages(bench, dirty, copy);
  const lost = pagesThatDiffer(bench, copy);
  expect(bench.deaths).toEqual([]);
  return { bench, source, reported, lost };
}

const everything = (bench: Bench) => (bench.memory.bytes - (1 << 20) + 640 * 1024) / PAGE_SIZE;

describe("no write of a running device is lost", () => {
  test.each<TrackingDesign>(["split", "aggregated", "iterating"])("by %s, with an IOMMU and pins", async (design) => {
    const { bench, reported, lost } = await copyWhileRunning([BLK, vgpu("vgpu0", false), MLX5], design, {
      trackers: { mlx0: "device" },
    });
    expect(lost).toEqual([]);
    // Not by naming everything.
    for (const pages of reported) {
      expect(pages).toBeGreaterThan(0);
      expect(pages).toBeLessThan(everything(bench) / 2);
    }
  });

  test("by split, where two mdevs share a tracker, which reports for both", async () => {
    const { source, lost } = await copyWhileRunning([vgpu("vgpu0", true), vgpu("vgpu1", true)], "split", {});
    expect(lost).toEqual([]);
    expect(source.ledger.totals()["domain:vgpu0+vgpu1"].reported).toBeGreaterThan(0);
    expect(source.ledger.device("vgpu1").pagesReported).toBeNull();
  });

  test("by type1, which follows the pins of mdevs", async () => {
    const { bench, reported, lost } = await copyWhileRunning([vgpu("vgpu0", false)], "type1", {});
    expect(lost).toEqual([]);
    for (const pages of reported) expect(pages).toBeLessThan(everything(bench));
  });

  test("by type1, which calls all that is mapped dirty once a device is there that pins nothing", async () => {
    const { bench, reported, lost } = await copyWhileRunning([BLK, vgpu("vgpu0", false)], "type1", {});
    expect(lost).toEqual([]);
    for (const pages of reported) expect(pages).toBe(everything(bench));
  });
});

test("while devices run, their domains are replaced and put back without a DMA that is blocked", async () => {
  const { bench, machine } = await machineOf([BLK]);
  const blk = bench.device("blk0");
  await enableBusMaster(blk);
  await eventually(async () => (await blk.counters()).units > 20);
  const choices = chooseTrackers(await probeMachine(machine), DEFAULT_POLICY);
  for (let i = 0; i < 5; i++) {
    const source = await openDesign("split", machine, choices);
    await source.start();
    await source.read({ quiesced: false });
    await source[Symbol.asyncDispose]();
  }
  const before = (await blk.counters()).units;
  await eventually(async () => (await blk.counters()).units > before);
  expect((await blk.counters()).faults).toBe(0);
});
