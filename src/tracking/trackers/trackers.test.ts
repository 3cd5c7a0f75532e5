import { describe, expect, test } from "vitest";
import { writeableAreas } from "../areas.js";
import { fakeMachine } from "../fake-machine.test.helper.js";
import type { DirtyTracker } from "../tracker.js";
import { cpuTracker } from "./cpu.js";
import { deviceTracker } from "./device.js";
import { iommuTracker } from "./iommu.js";
import { pinnedTracker } from "./pinned.js";

async function setUp() {
  const machine = await fakeMachine([
    { id: "mlx0", log: { maxRanges: 1 } },
    { id: "vgpu0", mdev: true, log: {} },
  ]);
  const { iommufd, ioas } = machine;
  const { deviceId } = machine.device("mlx0");
  const hwpt = await iommufd.allocHwpt({ device: deviceId, ioas, dirtyTracking: true });
  await machine.device("mlx0").attach(hwpt);
  return { machine, hwpt, ranges: writeableAreas(machine.memory) };
}

const trackers: [string, (setup: Awaited<ReturnType<typeof setUp>>) => DirtyTracker][] = [
  ["iommu", ({ machine, hwpt }) => iommuTracker({ iommufd: machine.iommufd, hwpt, owner: "mlx0" })],
  ["device", ({ machine }) => deviceTracker(machine.device("mlx0"))],
  ["pinned", ({ machine }) => pinnedTracker(machine.device("vgpu0"))],
  ["cpu", ({ machine }) => cpuTracker(machine.vcpus)],
];

describe.each(trackers)("one reader of the tracker '%s'", (_kind, make) => {
  test("a second start is refused, whoever asks, until the first session ends", async () => {
    const setup = await setUp();
    const { ranges } = setup;
    const first = await make(setup).start({ ranges });
    await expect(make(setup).start({ ranges })).rejects.toMatchObject({ code: "TRACKER_BUSY" });
    await first[Symbol.asyncDispose]();
    await first[Symbol.asyncDispose]();
    const second = await make(setup).start({ ranges });
    await second[Symbol.asyncDispose]();
  });

  test("a start that is refused by a signal leaves it free", async () => {
    const setup = await setUp();
    const { ranges } = setup;
    await expect(make(setup).start({ ranges, signal: AbortSignal.abort() })).rejects.toThrow(/abort/i);
    const session = await make(setup).start({ ranges });
    await session[Symbol.asyncDispose]();
  });

  test("a session that is over answers no read", async () => {
    const setup = await setUp();
    const { ranges } = setup;
    const session = await make(setup).start({ ranges });
    await session[Symbol.asyncDispose]();
    await expect(session.readAndClear(ranges[0])).rejects.toMatchObject({ code: "TRACKER_OFF" });
  });
});

describe("the tracker 'iommu'", () => {
  test("looks without clearing", async () => {
    const setup = await setUp();
    const [below] = setup.ranges;
    const session = await iommuTracker({ iommufd: setup.machine.iommufd, hwpt: setup.hwpt, owner: "mlx0" }).start({
      ranges: setup.ranges,
    });
    setup.machine.device("mlx0").write(9);
    expect((await session.peek?.(below))?.count()).toBe(1);
    expect((await session.readAndClear(below)).get(9)).toBe(true);
    expect((await session.peek?.(below))?.count()).toBe(0);
    await session[Symbol.asyncDispose]();
  });

  test("once a read has failed, answers none: nobody knows which bits were taken", async () => {
    const setup = await setUp();
    const [below] = setup.ranges;
    const session = await iommuTracker({ iommufd: setup.machine.iommufd, hwpt: setup.hwpt, owner: "mlx0" }).start({
      ranges: setup.ranges,
    });
    setup.machine.iommufd.failReads.push("EFAULT");
    await expect(session.readAndClear(below)).rejects.toMatchObject({ code: "EFAULT" });
    await expect(session.readAndClear(below)).rejects.toMatchObject({ code: "TRACKER_BROKEN" });
    await session[Symbol.asyncDispose]();
  });
});

describe("the tracker 'device'", () => {
  test("joins ranges outwards where there are more than the device takes, and reads the joined one", async () => {
    const { machine, ranges } = await setUp();
    const device = machine.device("mlx0");
    const session = await deviceTracker(device).start({ ranges });
    expect(device.starts[0].ranges).toEqual([{ iova: 0n, length: 8n * 2n ** 20n }]);
    const { reads, uncovered } = session.plan(ranges);
    expect(reads).toEqual(device.starts[0].ranges);
    expect(uncovered).toEqual([]);
    await session[Symbol.asyncDispose]();
  });

  test("refuses memory that lies beyond its address width", async () => {
    const machine = await fakeMachine([{ id: "mlx0", log: { addressWidth: 22 } }]);
    const starting = deviceTracker(machine.device("mlx0")).start({ ranges: writeableAreas(machine.memory) });
    await expect(starting).rejects.toMatchObject({ code: "OUT_OF_REACH" });
    expect(machine.device("mlx0").logging).toBe(false);
  });

  test("uses the smallest page size of the log unless another is asked for", async () => {
    const machine = await fakeMachine([{ id: "mlx0", log: { pageSizes: [65536, 2 ** 21] } }]);
    const ranges = writeableAreas(machine.memory);
    await using session = await deviceTracker(machine.device("mlx0")).start({ ranges });
    expect(session.granule).toBe(65536);
  });
});

describe("the tracker 'pinned'", () => {
  test("reports pages that are pinned, and those that were since the last read", async () => {
    const { machine, ranges } = await setUp();
    const [, low] = ranges;
    const vgpu = machine.device("vgpu0");
    const session = await pinnedTracker(vgpu).start({ ranges });
    const read = async () => {
      const bits = await session.readAndClear(low);
      return bits.get(300 - 256) ? 1 : 0;
    };
    vgpu.write(300, { keepPinned: true });
    expect(await read()).toBe(1);
    expect(await read()).toBe(1);
    vgpu.pinned.clear();
    vgpu.write(300);
    expect(await read()).toBe(1);
    expect(await read()).toBe(0);
    await session[Symbol.asyncDispose]();
  });
});
