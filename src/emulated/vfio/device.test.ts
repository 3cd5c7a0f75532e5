import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { REGION, REGISTER, STATUS } from "../../devices/pci-model.js";
import { checkStamps, stampsIntact } from "../../devices/stamp.js";
import { enableBusMaster } from "../../devices/workload.js";
import { MiB } from "../../memory/address.js";
import { createGuestMemory } from "../../memory/guest-memory.js";
import {
  BLK,
  bench,
  describeMachine,
  eventually,
  MLX5,
  openBench,
  readAll,
  resuming,
  saving,
  stampsOf,
  VGPU,
} from "./bench.test.helper.js";

describe("an emulated VFIO device", () => {
  it("does DMA once its driver has enabled bus mastering, through its IOMMU, and stops with all of it landed", async () => {
    const { device, memory } = await bench([BLK]);
    const blk = device("blk0");
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect((await blk.counters()).units).toBe(0);
    await enableBusMaster(blk);
    await eventually(async () => (await blk.counters()).units > 150);
    await blk.setState("STOP");
    const stopped = await blk.counters();
    expect(stampsIntact(checkStamps(memory, await stampsOf(blk)))).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect((await blk.counters()).units).toBe(stopped.units);
    expect(stopped.faults).toBe(0);
  });

  it("is blocked, not stopped, while detached, and goes on after an attach", async () => {
    const { device, ioas } = await bench([BLK]);
    const blk = device("blk0");
    await enableBusMaster(blk);
    await eventually(async () => (await blk.counters()).units > 5);
    await blk.detach();
    const { units } = await blk.counters();
    await eventually(async () => (await blk.counters()).faults > 2);
    expect((await blk.counters()).units).toBe(units);
    await blk.attach(ioas);
    await eventually(async () => (await blk.counters()).units > units);
  });

  it("refuses a second bind, and to attach unbound", async () => {
    const { device, iommufd } = await bench([BLK]);
    const blk = device("blk0");
    await expect(blk.bind(iommufd)).rejects.toMatchObject({ code: "EINVAL" });
    await blk[Symbol.asyncDispose]();
    await expect(blk.attach(1)).rejects.toMatchObject({ code: "EBADF" });
  });

  it("refuses accesses outside its regions", async () => {
    const { device } = await bench([BLK]);
    await expect(device("blk0").regionRead(REGION.BAR0, 4094, 4)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(device("blk0").regionRead(REGION.BAR2, 0, 1)).rejects.toMatchObject({ code: "EINVAL" });
  });

  it("says which features it has", async () => {
    const { device } = await bench([BLK, MLX5, VGPU]);
    const of = async (id: string) => ({
      migration: await device(id).supports("MIGRATION"),
      log: await device(id).supports("DMA_LOGGING_START"),
      precopy: await device(id).supports("MIG_PRECOPY_INFOv2"),
      flags: await device(id).trackingFlags(),
    });
    const flags = (tracksInternally: boolean) => ({ tracksInternally, tracksThroughContainer: false });
    expect(await of("blk0")).toEqual({ migration: true, log: false, precopy: false, flags: flags(false) });
    expect(await of("mlx0")).toEqual({ migration: true, log: true, precopy: true, flags: flags(true) });
    expect(await of("vgpu0")).toEqual({ migration: true, log: true, precopy: true, flags: flags(true) });
  });
});

describe("P2P DMA", () => {
  const peer = { ...BLK, id: "blk0", p2pTargets: ["vgpu0"] };

  it("reaches the peer's memory where it is allowed, and is refused where it is not", async () => {
    const { device, bar, allowP2p } = await bench([peer, VGPU]);
    const blk = device("blk0");
    await enableBusMaster(blk);
    await eventually(async () => (await blk.counters()).p2pRefused > 2);
    expect(bar("vgpu0").every((byte) => byte === 0)).toBe(true);
    await allowP2p("blk0", "vgpu0", true);
    await eventually(async () => (await blk.counters()).p2pUnits > 2);
    expect(bar("vgpu0").some((byte) => byte !== 0)).toBe(true);
    await allowP2p("blk0", "vgpu0", false);
    const { p2pUnits, p2pRefused, units } = await blk.counters();
    await eventually(async () => (await blk.counters()).p2pRefused > p2pRefused + 2);
    const after = await blk.counters();
    expect(after.p2pUnits).toBe(p2pUnits);
    expect(after.units).toBeGreaterThan(units);
  });

  it("is over when the device has reached a P2P-quiescent state, and goes with its target's state", async () => {
    const { device, bar, allowP2p } = await bench([peer, VGPU]);
    const [blk, vgpu] = [device("blk0"), device("vgpu0")];
    await allowP2p("blk0", "vgpu0", true);
    await enableBusMaster(blk);
    await eventually(async () => (await blk.counters()).p2pUnits > 3);
    for (const each of [vgpu, blk]) await each.setState("RUNNING_P2P");
    const { p2pUnits, units } = await blk.counters();
    const stream = saving(await vgpu.setState("STOP_COPY"));
    const written = bar("vgpu0").slice();
    await eventually(async () => (await blk.counters()).units > units + 30);
    expect((await blk.counters()).p2pUnits).toBe(p2pUnits);
    expect(Buffer.compare(bar("vgpu0"), written)).toBe(0);

    const parts = await readAll(stream);
    await vgpu.reset();
    expect(bar("vgpu0").every((byte) => byte === 0)).toBe(true);
    const target = resuming(await vgpu.setState("RESUMING"));
    for (const part of parts) await target.write(part);
    await vgpu.setState("STOP");
    expect(Buffer.compare(bar("vgpu0"), written)).toBe(0);
  });
});

describe("a device thread", () => {
  it("that dies fails its devices and says so once", async () => {
    const { device, threads, deaths } = await bench([BLK, VGPU]);
    await enableBusMaster(device("blk0"));
    await threads.kill(0);
    await eventually(() => deaths.length > 0);
    expect(deaths.map((death) => death.message)).toEqual(["the thread of blk0, vgpu0 has ended"]);
    await expect(device("blk0").setState("STOP")).rejects.toMatchObject({ code: "EIO" });
    expect(await device("blk0").state()).toBe("ERROR");
    await expect(device("vgpu0").counters()).rejects.toMatchObject({ code: "DEVICE_THREAD_ENDED" });
  });

  it("whose disk file is cut short fails that device alone, until it is reset", async () => {
    const folder = await mkdtemp(join(tmpdir(), "dirtmap-test-"));
    const file = join(folder, "disk.img");
    await writeFile(file, Buffer.alloc(1 << 20, 5));
    const { device } = await bench([{ ...BLK, file }, VGPU]);
    await enableBusMaster(device("blk0"));
    await eventually(async () => (await device("blk0").counters()).units > 5);
    await truncate(file, 0);
    await eventually(async () => (await device("blk0").counters()).failed === 1);
    await expect(device("blk0").setState("RUNNING_P2P")).rejects.toThrow(/became shorter/);
    expect(await device("blk0").state()).toBe("ERROR");
    await device("vgpu0").setState("STOP");
    await device("blk0").reset();
    expect((await device("blk0").counters()).failed).toBe(0);
    await rm(folder, { recursive: true });
  });

  it("goes on with a device that has failed once its guest has reset it", async () => {
    const folder = await mkdtemp(join(tmpdir(), "dirtmap-test-"));
    const file = join(folder, "disk.img");
    await writeFile(file, Buffer.alloc(1 << 20, 5));
    const { device } = await bench([{ ...BLK, file }]);
    const blk = device("blk0");
    const status = async () => (await blk.regionRead(REGION.BAR0, REGISTER.STATUS, 1))[0];
    await enableBusMaster(blk);
    await eventually(async () => (await blk.counters()).units > 5);
    await truncate(file, 0);
    await eventually(async () => (await blk.counters()).failed === 1);
    expect(await status()).toBe(STATUS.FAILED);
    await truncate(file, 1 << 20);
    await blk.regionWrite(REGION.BAR0, REGISTER.STATUS, Uint8Array.of(STATUS.RESET));
    expect([await status(), (await blk.counters()).failed]).toEqual([0, 0]);
    await enableBusMaster(blk);
    const before = (await blk.counters()).units;
    await eventually(async () => (await blk.counters()).units > before);
    await blk.setState("STOP");
    expect(await blk.state()).toBe("STOP");
    await rm(folder, { recursive: true });
  });

  it("ends with the bench, and what its devices were is refused afterwards", async () => {
    const opened = await openBench(describeMachine([BLK]), { memory: createGuestMemory(8 * MiB) });
    const blk = opened.device("blk0");
    await enableBusMaster(blk);
    await opened[Symbol.asyncDispose]();
    await expect(blk.setState("STOP")).rejects.toMatchObject({ code: "EBADF" });
    expect(opened.deaths).toEqual([]);
  });
});
