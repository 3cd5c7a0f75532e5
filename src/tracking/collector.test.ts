import { describe, expect, test, vi } from "vitest";
import { changesOf, type FakeMachine, fakeMachine, markedPages } from "../../test/support/fake-host/machine.js";
import { writeableAreas } from "./areas.js";
import { Collector, type CollectorHooks } from "./collector.js";
import { deviceOwner } from "./owner.js";
import type { DirtyTracker } from "./tracker.js";
import { cpuTracker } from "./trackers/cpu.js";
import { deviceTracker } from "./trackers/device.js";
import { everythingTracker } from "./trackers/everything.js";
import { iommuTracker } from "./trackers/iommu.js";

const MLX5 = { id: "mlx0", log: {} };
const ALL_WRITEABLE = 160 + (8 * 256 - 256);

function open(
  machine: FakeMachine,
  trackers: readonly DirtyTracker[],
  { hooks, granule = null }: { hooks?: CollectorHooks; granule?: number | null } = {},
): Collector {
  const requests = trackers.map((tracker) => ({ tracker, granule }));
  return new Collector(machine.memory, requests, hooks === undefined ? {} : { hooks });
}

async function ownDomain(machine: FakeMachine, id: string): Promise<DirtyTracker> {
  const { iommufd, ioas } = machine;
  const { deviceId } = machine.device(id);
  const hwpt = await iommufd.allocHwpt({ device: deviceId, ioas, dirtyTracking: true });
  await machine.device(id).attach(hwpt);
  return iommuTracker({ iommufd, hwpt, owner: deviceOwner(id) });
}

describe("a read", () => {
  test("is the union of trackers that know nothing of each other, and the ledger says who reported what", async () => {
    const machine = await fakeMachine([MLX5]);
    await using collector = open(machine, [cpuTracker(machine.vcpus), deviceTracker(machine.device("mlx0"))]);
    await collector.start();
    machine.vcpus.write(300);
    machine.vcpus.write(301);
    await machine.device("mlx0").write(301);
    await machine.device("mlx0").write(302);
    const { dirty, byOwner, always } = await collector.read({ quiesced: false });
    expect(markedPages(dirty)).toEqual([300, 301, 302]);
    expect(byOwner.cpu).toMatchObject({ reported: 2, exclusive: 1 });
    expect(byOwner.mlx0).toMatchObject({ reported: 2, exclusive: 1 });
    expect(always).toBeNull();
  });

  test("takes what it reports: the next one has only what was written since", async () => {
    const machine = await fakeMachine([MLX5]);
    await using collector = open(machine, [deviceTracker(machine.device("mlx0"))]);
    await collector.start();
    await machine.device("mlx0").write(300);
    await collector.read({ quiesced: false });
    await machine.device("mlx0").write(500);
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([500]);
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([]);
  });

  test("reports pages on both sides of a hole in the mapping", async () => {
    const machine = await fakeMachine([{ id: "nic0" }]);
    await using collector = open(machine, [await ownDomain(machine, "nic0")]);
    await collector.start();
    await machine.device("nic0").write(3);
    await machine.device("nic0").write(256);
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([3, 256]);
  });

  test("rounds a large leaf outwards, and tells the largest leaf size that was found", async () => {
    const machine = await fakeMachine([{ id: "nic0" }]);
    await using collector = open(machine, [await ownDomain(machine, "nic0")]);
    await collector.start();
    await machine.device("nic0").write(700);
    const { dirty } = await collector.read({ quiesced: false });
    expect(markedPages(dirty)).toEqual(Array.from({ length: 512 }, (_, i) => 512 + i));
    expect(collector.granuleOf("nic0")).toBe(2 ** 21);
    expect(dirty.count()).toBe(512);
  });

  test("leaves writes to a peer's BAR out: it is no RAM", async () => {
    const machine = await fakeMachine([{ id: "nic0" }]);
    await using collector = open(machine, [await ownDomain(machine, "nic0")]);
    await collector.start();
    await machine.device("nic0").write(0xe000_0000 / 4096);
    expect((await collector.read({ quiesced: true, final: true })).dirty.count()).toBe(0);
  });

  test("names all that an untracked device may write, at every read, apart from what trackers tell", async () => {
    const machine = await fakeMachine([{ id: "nic0" }, MLX5]);
    await using collector = open(machine, [everythingTracker("nic0"), deviceTracker(machine.device("mlx0"))]);
    await collector.start();
    await machine.device("mlx0").write(400);
    for (let read = 0; read < 2; read++) {
      const { dirty, always, byOwner } = await collector.read({ quiesced: false });
      expect(dirty.count()).toBe(ALL_WRITEABLE);
      expect(always?.count()).toBe(ALL_WRITEABLE);
      expect(byOwner.nic0.reported).toBe(ALL_WRITEABLE);
    }
    expect(collector.ledger.totals().mlx0).toMatchObject({ reported: 1, exclusive: 0 });
    expect(collector.granuleOf("nic0")).toBeNull();
  });

  test("waits with a log that is readable only when quiesced until it is, and loses nothing", async () => {
    const machine = await fakeMachine([{ id: "mlx0", log: { readableWhen: "quiesced" } }]);
    await using collector = open(machine, [deviceTracker(machine.device("mlx0"))]);
    await collector.start();
    await machine.device("mlx0").write(300);
    const running = await collector.read({ quiesced: false });
    expect(running.unread).toEqual(["mlx0"]);
    expect(running.byOwner).toEqual({});
    expect(running.dirty.count()).toBe(0);
    await machine.device("mlx0").setState("STOP");
    const stopped = await collector.read({ quiesced: true, final: true });
    expect(markedPages(stopped.dirty)).toEqual([300]);
    expect(stopped.unread).toEqual([]);
  });
});

test("a read tells how long it took, as a whole and by tracker", async () => {
  const machine = await fakeMachine([MLX5]);
  await using collector = open(machine, [cpuTracker(machine.vcpus), deviceTracker(machine.device("mlx0"))]);
  await collector.start();
  // Each look at the clock finds it a second on: at the start, before and after each tracker, and at the end.
  let seconds = 1000;
  const now = vi.spyOn(performance, "now").mockImplementation(() => seconds++ * 1000);
  const { ms, byOwner } = await collector.read({ quiesced: false });
  now.mockRestore();
  expect([ms, byOwner.cpu.readMs, byOwner.mlx0.readMs]).toEqual([5000, 1000, 1000]);
});

describe("a granule that is larger than the areas are aligned to", () => {
  const log = { pageSizes: [4096, 2 ** 21] };

  test("is read once: no area's bit is lost by reading its neighbour", async () => {
    const machine = await fakeMachine([{ id: "mlx0", log }]);
    await using collector = open(machine, [deviceTracker(machine.device("mlx0"))], { granule: 2 ** 21 });
    await collector.start();
    // The first granule holds both the RAM below 640 KiB and the RAM above 1 MiB.
    await machine.device("mlx0").write(300);
    const { dirty } = await collector.read({ quiesced: false });
    const granule = Array.from({ length: 512 }, (_, i) => i).filter((page) => page < 160 || page >= 256);
    expect(markedPages(dirty)).toEqual(granule);
    expect(collector.granuleOf("mlx0")).toBe(2 ** 21);
  });

  test("chosen by the device against what was asked for, is kept to as well", async () => {
    const machine = await fakeMachine([{ id: "mlx0", log: { pageSizes: [2 ** 21] } }]);
    await using collector = open(machine, [deviceTracker(machine.device("mlx0"))], { granule: 4096 });
    await collector.start();
    await machine.device("mlx0").write(3);
    expect((await collector.read({ quiesced: false })).dirty.count()).toBe(512 - 96);
  });
});

describe("a tracker that fails", () => {
  test("makes all that it covers dirty, is restarted, and goes on without losing a write", async () => {
    const machine = await fakeMachine([MLX5]);
    await using collector = open(machine, [cpuTracker(machine.vcpus), deviceTracker(machine.device("mlx0"))]);
    await collector.start();
    await machine.device("mlx0").write(300);
    machine.device("mlx0").script.fail("reportDmaLogging", "EIO");
    const failed = await collector.read({ quiesced: false });
    expect(failed.failures).toMatchObject([{ owner: "mlx0", error: { code: "EIO" } }]);
    expect(failed.dirty.count()).toBe(ALL_WRITEABLE);
    expect(failed.always).toBeNull();
    expect(failed.byOwner.cpu.reported).toBe(0);
    await machine.device("mlx0").write(301);
    const next = await collector.read({ quiesced: false });
    expect(markedPages(next.dirty)).toEqual([301]);
    expect(next.failures).toEqual([]);
    expect(machine.device("mlx0").script.done("startDmaLogging")).toHaveLength(2);
  });

  test("is not restarted by the last read, which still counts all that it covers", async () => {
    const machine = await fakeMachine([MLX5]);
    await using collector = open(machine, [deviceTracker(machine.device("mlx0"))]);
    await collector.start();
    machine.device("mlx0").script.fail("reportDmaLogging", "EIO");
    const { dirty, failures } = await collector.read({ quiesced: true, final: true });
    expect(failures).toHaveLength(1);
    expect(dirty.count()).toBe(ALL_WRITEABLE);
    expect(machine.device("mlx0").script.done("startDmaLogging")).toHaveLength(1);
  });

  test("and can't be restarted, ends the migration", async () => {
    const machine = await fakeMachine([MLX5]);
    await using collector = open(machine, [deviceTracker(machine.device("mlx0"))]);
    await collector.start();
    machine.device("mlx0").script.fail("reportDmaLogging", "EIO");
    machine.device("mlx0").script.fail("startDmaLogging", "ENOMEM");
    await expect(collector.read({ quiesced: false })).rejects.toMatchObject({ code: "TRACKER_LOST" });
  });

  test("can be made to fail by a test's hook, in the read that it wants", async () => {
    const machine = await fakeMachine([{ id: "nic0" }]);
    const hooks: CollectorHooks = {
      beforeRead: (owner, read) => {
        if (owner === "nic0" && read === 1) throw new Error("on purpose");
      },
    };
    await using collector = open(machine, [await ownDomain(machine, "nic0")], { hooks });
    await collector.start();
    expect((await collector.read({ quiesced: false })).failures).toEqual([]);
    const { failures, dirty } = await collector.read({ quiesced: false });
    expect(failures[0].error.message).toBe("on purpose");
    expect(dirty.count()).toBe(ALL_WRITEABLE);
    expect((await collector.read({ quiesced: false })).dirty.count()).toBe(0);
  });

  test("with something that is no error, is told of as one all the same", async () => {
    const machine = await fakeMachine([{ id: "nic0" }]);
    const hooks: CollectorHooks = { beforeRead: () => Promise.reject("on purpose") };
    await using collector = open(machine, [await ownDomain(machine, "nic0")], { hooks });
    await collector.start();
    const { failures } = await collector.read({ quiesced: false });
    expect(failures[0].error).toEqual(new Error("on purpose"));
  });
});

describe("starting and ending", () => {
  test("a tracker that can't be started leaves none on", async () => {
    const machine = await fakeMachine([MLX5, { id: "mlx1", log: {} }]);
    const trackers = [deviceTracker(machine.device("mlx0")), deviceTracker(machine.device("mlx1"))];
    await using collector = open(machine, trackers);
    machine.device("mlx1").script.fail("startDmaLogging", "ENOMEM");
    await expect(collector.start()).rejects.toMatchObject({ code: "ENOMEM" });
    expect(machine.device("mlx0").logging).toBe(false);
    await collector.start();
    expect(machine.device("mlx0").logging).toBe(true);
  });

  test("an aborted start leaves none on", async () => {
    const machine = await fakeMachine([MLX5]);
    await using collector = open(machine, [deviceTracker(machine.device("mlx0"))]);
    await expect(collector.start(AbortSignal.abort())).rejects.toThrow(/abort/i);
    expect(machine.device("mlx0").logging).toBe(false);
  });

  test("disposing waits until each tracker is off", async () => {
    const machine = await fakeMachine([MLX5]);
    const collector = open(machine, [deviceTracker(machine.device("mlx0"))]);
    await collector.start();
    const device = machine.device("mlx0");
    const stop = device.stopDmaLogging.bind(device);
    device.stopDmaLogging = async () => {
      for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
      await stop();
    };
    await collector[Symbol.asyncDispose]();
    expect(device.logging).toBe(false);
  });

  test("disposing switches all trackers off", async () => {
    const machine = await fakeMachine([MLX5, { id: "nic0" }]);
    const collector = open(machine, [deviceTracker(machine.device("mlx0")), await ownDomain(machine, "nic0")]);
    await collector.start();
    await collector[Symbol.asyncDispose]();
    expect(machine.device("mlx0").logging).toBe(false);
    expect(changesOf(machine.iommufd).at(-1)).toMatch(/^tracking of \d+ off$/);
  });
});

describe("a mapping that changes", () => {
  async function withNic(log?: object) {
    const machine = await fakeMachine([log === undefined ? { id: "dev0" } : { id: "dev0", log }]);
    const tracker = log === undefined ? await ownDomain(machine, "dev0") : deviceTracker(machine.device("dev0"));
    const collector = open(machine, [cpuTracker(machine.vcpus), tracker]);
    await collector.start();
    const [below] = writeableAreas(machine.memory);
    const unmap = async () => {
      await machine.iommufd.unmap(machine.ioas, below.iova, below.length);
    };
    const map = (guestPage: number) => machine.map({ ...below, guestPage });
    return { machine, device: machine.device("dev0"), collector, below, unmap, map };
  }

  test("IOVA X mapped to A, written, unmapped, mapped to B: the next read names A", async () => {
    const { device, collector, below, unmap, map } = await withNic();
    await device.write(5);
    await collector.collectBeforeUnmap(below, unmap, { quiesced: true });
    await map(1024);
    await collector.mapped({ ...below, guestPage: 1024 });
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([5]);
    await device.write(6);
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([1024 + 6]);
    await collector[Symbol.asyncDispose]();
  });

  test("while DMA to it goes on, counts as dirty whole: also what is written just before the unmap", async () => {
    const { device, collector, below, unmap } = await withNic();
    const writeThenUnmap = async () => {
      await device.write(7);
      await unmap();
    };
    await collector.collectBeforeUnmap(below, writeThenUnmap, { quiesced: false });
    const { dirty, byOwner } = await collector.read({ quiesced: false });
    expect(markedPages(dirty)).toEqual(Array.from({ length: 160 }, (_, page) => page));
    expect(byOwner.dev0.reported).toBe(0);
    await collector[Symbol.asyncDispose]();
  });

  test("vCPUs write to memory that is no longer mapped for DMA, and it is reported", async () => {
    const { machine, collector, below, unmap } = await withNic();
    await collector.collectBeforeUnmap(below, unmap, { quiesced: true });
    machine.vcpus.write(8);
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([8]);
    await collector[Symbol.asyncDispose]();
  });

  test("outside the ranges that a device logs, counts as everything until its log is started over", async () => {
    const { machine, device, collector } = await withNic({});
    const fresh = { iova: 1n << 33n, length: 0x4000n, guestPage: 1024 };
    await machine.map(fresh);
    await collector.mapped(fresh);
    for (let read = 0; read < 2; read++) {
      expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([1024, 1025, 1026, 1027]);
    }
    await device.write(300);
    await collector.startOver("dev0", { quiesced: true });
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([300, 1024, 1025, 1026, 1027]);
    await device.write(Number(fresh.iova) / 4096 + 1);
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([1025]);
    await collector[Symbol.asyncDispose]();
  });

  test("a log that is started over while its device runs counts all that it covers, once", async () => {
    const { device, collector } = await withNic({});
    await device.write(300);
    await collector.startOver("dev0", { quiesced: false });
    expect((await collector.read({ quiesced: false })).dirty.count()).toBe(ALL_WRITEABLE);
    expect((await collector.read({ quiesced: false })).dirty.count()).toBe(0);
    await collector[Symbol.asyncDispose]();
  });

  test("can't be made where another is", async () => {
    const { device, collector, below } = await withNic();
    for (const iova of [below.iova, below.iova + below.length - 4096n]) {
      await expect(collector.mapped({ ...below, iova, guestPage: 1024 })).rejects.toMatchObject({
        code: "MAPPED_ALREADY",
      });
    }
    await device.write(5);
    expect(markedPages((await collector.read({ quiesced: false })).dirty)).toEqual([5]);
    await collector[Symbol.asyncDispose]();
  });

  test("can't be unmapped in part", async () => {
    const { collector, below, unmap } = await withNic();
    const part = { iova: below.iova, length: 4096n };
    await expect(collector.collectBeforeUnmap(part, unmap, { quiesced: true })).rejects.toMatchObject({
      code: "SPLITS_A_MAPPING",
    });
    await collector[Symbol.asyncDispose]();
  });
});
