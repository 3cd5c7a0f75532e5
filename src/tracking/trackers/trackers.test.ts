import { describe, expect, test } from "vitest";
import { fakeMachine } from "../../../test/support/fake-host/machine.js";
import type { ContainerTracking } from "../../host/designs.js";
import { writeableAreas } from "../areas.js";
import { deviceOwner } from "../owner.js";
import type { DirtyTracker } from "../tracker.js";
import { containerTracker } from "./container.js";
import { cpuTracker } from "./cpu.js";
import { deviceTracker } from "./device.js";
import { everythingTracker } from "./everything.js";
import { iommuTracker } from "./iommu.js";
import { pinnedTracker } from "./pinned.js";

/** Of a container: switched on and off, and read, when a test lets it. */
function fakeContainer(): ContainerTracking {
  return {
    reportsEverything: true,
    readableWhen: "quiesced",
    start: async () => {},
    getBitmap: async ({ into }) => into.set(3),
    stop: async () => {},
    [Symbol.asyncDispose]: async () => {},
  };
}

async function setUp() {
  const machine = await fakeMachine([
    { id: "mlx0", log: { maxRanges: 1 } },
    { id: "vgpu0", mdev: true, log: {} },
  ]);
  const { iommufd, ioas } = machine;
  const { deviceId } = machine.device("mlx0");
  const hwpt = await iommufd.allocHwpt({ device: deviceId, ioas, dirtyTracking: true });
  await machine.device("mlx0").attach(hwpt);
  return { machine, hwpt, container: fakeContainer(), ranges: writeableAreas(machine.memory) };
}

type Setup = Awaited<ReturnType<typeof setUp>>;

const trackers: [string, (setup: Setup) => DirtyTracker][] = [
  ["iommu", ({ machine, hwpt }) => iommuTracker({ iommufd: machine.iommufd, hwpt, owner: deviceOwner("mlx0") })],
  ["device", ({ machine }) => deviceTracker(machine.device("mlx0"))],
  ["pinned", ({ machine }) => pinnedTracker(machine.device("vgpu0"))],
  ["cpu", ({ machine }) => cpuTracker(machine.vcpus)],
  ["container", ({ container }) => containerTracker(container)],
];

/** What each of them asks of its source: to be switched on, and to be read. */
const sources: Record<string, (setup: Setup) => [source: object, start: string, read: string]> = {
  iommu: ({ machine }) => [machine.iommufd, "setDirtyTracking", "getDirtyBitmap"],
  device: ({ machine }) => [machine.device("mlx0"), "startDmaLogging", "reportDmaLogging"],
  pinned: ({ machine }) => [machine.device("vgpu0"), "startDmaLogging", "reportDmaLogging"],
  cpu: ({ machine }) => [machine.vcpus, "startDirtyLog", "readAndClearDirtyLog"],
  container: ({ container }) => [container, "start", "getBitmap"],
};

/** Makes the next call of a method wait; returns what lets it go on. */
function hold(source: object, method: string): () => void {
  const methods = source as Record<string, (...args: unknown[]) => Promise<unknown>>;
  const original = methods[method];
  let letGo = () => {};
  const gate = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  methods[method] = async (...args) => {
    methods[method] = original;
    await gate;
    return original.apply(source, args);
  };
  return letGo;
}

/** Whether it has settled after a few turns of the event loop. */
async function settles(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  const note = () => {
    settled = true;
  };
  promise.then(note, note);
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
  return settled;
}

describe.each(trackers)("the session of the tracker '%s'", (kind, make) => {
  test("is there when its source is on, and a read when its source was read", async () => {
    const setup = await setUp();
    const { ranges } = setup;
    const [source, start, read] = sources[kind](setup);
    const letStart = hold(source, start);
    const starting = make(setup).start({ ranges });
    expect(await settles(starting)).toBe(false);
    letStart();
    const session = await starting;
    const letRead = hold(source, read);
    const reading = session.readAndClear(session.plan(ranges).reads[0]);
    expect(await settles(reading)).toBe(false);
    letRead();
    await reading;
    await session[Symbol.asyncDispose]();
  });

  test("is not there, and its source is off again, where the start is aborted in the midst of it", async () => {
    const setup = await setUp();
    const { ranges } = setup;
    const [source, start] = sources[kind](setup);
    const letStart = hold(source, start);
    const abort = new AbortController();
    const starting = make(setup).start({ ranges, signal: abort.signal });
    abort.abort();
    letStart();
    await expect(starting).rejects.toThrow(/abort/i);
    await using session = await make(setup).start({ ranges });
    await session.readAndClear(session.plan(ranges).reads[0]);
  });

  test("says whose it is, and of what kind", async () => {
    const setup = await setUp();
    const tracker = make(setup);
    await using session = await tracker.start({ ranges: setup.ranges });
    expect(tracker.kind).toBe(kind);
    expect(session.kind).toBe(kind);
  });
});

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

describe("the tracker 'container'", () => {
  test("says what its container does: when it can be read, and whether it names everything", async () => {
    const setup = await setUp();
    await using session = await containerTracker(setup.container).start({ ranges: setup.ranges });
    expect(session).toMatchObject({ readableWhen: "quiesced", namesAll: true, granule: 4096 });
    expect(session.plan(setup.ranges)).toEqual({ reads: setup.ranges, uncovered: [] });
    const bits = await session.readAndClear(setup.ranges[0]);
    expect([bits.iova, bits.count(), bits.get(3)]).toEqual([setup.ranges[0].iova, 1, true]);
  });
});

describe("the tracker 'everything'", () => {
  test("names all of what is mapped, at every read, and needs no source", async () => {
    const tracker = everythingTracker("nic0");
    await expect(tracker.start({ ranges: [], signal: AbortSignal.abort() })).rejects.toThrow(/abort/i);
    const { ranges } = await setUp();
    await using session = await tracker.start({ ranges });
    expect(session).toMatchObject({ kind: "everything", namesAll: true });
    for (let read = 0; read < 2; read++) {
      const bits = await session.readAndClear(ranges[0]);
      expect(bits.count()).toBe(Number(ranges[0].length / 4096n));
    }
  });
});

describe("the tracker 'iommu'", () => {
  test("looks without clearing", async () => {
    const setup = await setUp();
    const [below] = setup.ranges;
    const session = await iommuTracker({
      iommufd: setup.machine.iommufd,
      hwpt: setup.hwpt,
      owner: deviceOwner("mlx0"),
    }).start({
      ranges: setup.ranges,
    });
    await setup.machine.device("mlx0").write(9);
    expect((await session.peek?.(below))?.count()).toBe(1);
    expect((await session.readAndClear(below)).get(9)).toBe(true);
    expect((await session.peek?.(below))?.count()).toBe(0);
    await session[Symbol.asyncDispose]();
  });

  test("once a read has failed, answers none: nobody knows which bits were taken", async () => {
    const setup = await setUp();
    const [below] = setup.ranges;
    const session = await iommuTracker({
      iommufd: setup.machine.iommufd,
      hwpt: setup.hwpt,
      owner: deviceOwner("mlx0"),
    }).start({
      ranges: setup.ranges,
    });
    setup.machine.iommufd.script.fail("getDirtyBitmap", "EFAULT");
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
    expect(device.script.done("startDmaLogging")[0][0].ranges).toEqual([{ iova: 0n, length: 8n * 2n ** 20n }]);
    const { reads, uncovered } = session.plan(ranges);
    expect(reads).toEqual(device.script.done("startDmaLogging")[0][0].ranges);
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
    await vgpu.write(300, { keepPinned: true });
    expect(await read()).toBe(1);
    expect(await read()).toBe(1);
    await vgpu.unpin();
    await vgpu.write(300);
    expect(await read()).toBe(1);
    expect(await read()).toBe(0);
    await session[Symbol.asyncDispose]();
  });
});
