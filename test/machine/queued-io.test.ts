import { afterEach, describe, expect, it } from "vitest";
import { withDisks } from "../../src/cli/sites/emulated/disks.js";
import type { EmulatedMachine } from "../../src/emulated/machine.js";
import type { MachineDescription } from "../../src/host/description.js";
import { machineOf, VF } from "../support/machines.js";
import { expectMoved, expectRunning, type Migrated, Rig } from "../support/migration.js";

/*
 * Devices that move while their drivers have requests in their queues, by the migration itself.
 */

/** Processes are started, on a computer that may be busy. */
const LONG = { timeout: 120_000 };

/** Several requests in each of a vCPU's turns: some are always open. */
const LOAD = { rate: 6, footprint: 2 ** 20 };
/** Requests dirty memory as fast as they can: on a computer that is busy with other things, that is much in a downtime. */
const downtimeLimitMs = 10_000;
const DISK = { id: "disk0", model: "nvme", load: LOAD } as const;
const ENGINE = { id: "dma0", model: "dma-engine", memory: 512 * 1024, load: LOAD } as const;
const IOMMU = { iommu: "iommu0" };
const ROOMY = { memory: 32 * 2 ** 20 };

const disposables: Disposable[] = [];
afterEach(() => {
  for (const disposable of disposables.splice(0)) disposable[Symbol.dispose]();
});

function machine(devices: Parameters<typeof machineOf>[0]): MachineDescription {
  const disks = withDisks(machineOf(devices, ROOMY));
  disposables.push(disks);
  return disks.description;
}

interface SavedDriver {
  readonly device: string;
  readonly queued: number;
  readonly completed: number;
  readonly own: { open: { cid?: number; tag?: number }[]; nextCid?: number; nextTag?: number };
}

/** What the drivers of a machine whose vCPUs stand still know. */
async function driversOf({ vcpus }: EmulatedMachine): Promise<SavedDriver[]> {
  return (JSON.parse(new TextDecoder().decode(await vcpus.saveState())) as { drivers: SavedDriver[] }).drivers;
}

/** Has a destination's drivers believe something else of their requests than those of the source did. */
function deceive(destination: EmulatedMachine, change: (driver: SavedDriver) => void): void {
  const { vcpus } = destination;
  const load = vcpus.loadState.bind(vcpus);
  vcpus.loadState = async (state) => {
    const saved = JSON.parse(new TextDecoder().decode(state)) as { drivers: SavedDriver[] };
    for (const driver of saved.drivers) change(driver);
    await load(new TextEncoder().encode(JSON.stringify(saved)));
  };
}

/** The source's requests were not all done when it stopped, and the destination has done these. */
async function expectInTheMiddle({ source }: Rig, { report }: Migrated): Promise<void> {
  let open = 0;
  for (const { device, queued, completed, own } of await driversOf(source)) {
    expect([device, queued]).toEqual([device, completed + own.open.length]);
    expect(report.destination?.written[device]).toBeGreaterThanOrEqual(own.open.length);
    open += own.open.length;
  }
  expect(open).toBeGreaterThan(0);
  expect(report.destination?.requests?.checked).toBeGreaterThanOrEqual(open);
}

describe("devices that move in the middle of queued I/O", () => {
  it("in this process: each request is done and completed once", LONG, async () => {
    const description = machine([
      { ...DISK, ...IOMMU },
      { ...ENGINE, ...IOMMU },
    ]);
    await using rig = await Rig.start(description);
    const moved = await rig.migrate({ downtimeLimitMs, policy: { trackers: { disk0: "device" } } });
    expectMoved(moved);
    expect(moved.report.devices.map(({ tracker }) => tracker)).toEqual(["device", "iommu"]);
    await expectInTheMiddle(rig, moved);
    if (moved.destination === undefined) throw new Error("there is no destination");
    await expectRunning(moved.destination);
  });

  it("in other processes: each request is done and completed once", LONG, async () => {
    const description = machine([
      { ...DISK, serve: true },
      { ...DISK, id: "disk1", serve: true, dma: "messages", load: { ...LOAD, rate: 1 } },
      { ...ENGINE, serve: true },
    ]);
    await using rig = await Rig.startServed(description);
    const moved = await rig.migrate({ downtimeLimitMs });
    expectMoved(moved);
    expect(moved.report.devices.map(({ tracker }) => tracker)).toEqual(["device", "iommu", "device"]);
    await expectInTheMiddle(rig, moved);
  });

  it("go on at the source where the migration was given up", LONG, async () => {
    const description = machine([
      { ...DISK, ...IOMMU },
      { ...ENGINE, ...IOMMU },
    ]);
    await using rig = await Rig.start(description);
    const { report } = await rig.migrate({
      hooks: {
        beforePhase(phase) {
          if (phase === "handover") throw new Error("given up by the test");
        },
      },
    });
    expect(report.result).not.toBe("completed");
    await expectRunning(rig.source);
  });
});

describe("a request that a migration", () => {
  it("loses is found: the migration is not verified", LONG, async () => {
    await using rig = await Rig.start(machine([VF, { ...ENGINE, ...IOMMU }]));
    const moved = await rig.migrate({
      downtimeLimitMs,
      onDestination(destination) {
        // A request that the driver has queued, and the device knows nothing of.
        deceive(destination, ({ own }) => {
          const [first] = own.open;
          own.open.pop();
          own.open.push({ ...first, tag: (own.nextTag ?? 0) + 1_000_000 });
        });
      },
    });
    expect(moved.report).toMatchObject({ result: "completed", verified: false, memory: { pagesDifferent: 0 } });
    const problems = moved.report.destination?.requests?.problems ?? [];
    expect(problems).toContainEqual({ owner: "dma0", kind: "lost", count: 1 });
    expect(problems).toContainEqual({ owner: "dma0", kind: "completed twice", count: 1 });
  });

  it("repeats is found: the migration is not verified", LONG, async () => {
    await using rig = await Rig.start(machine([VF, { ...DISK, ...IOMMU }]));
    const moved = await rig.migrate({
      downtimeLimitMs,
      onDestination(destination) {
        // The driver has its completion already; the device will do it once more.
        deceive(destination, ({ own }) => void own.open.pop());
      },
    });
    expect(moved.report).toMatchObject({ result: "completed", verified: false });
    const problems = moved.report.destination?.requests?.problems ?? [];
    expect(problems).toContainEqual({ owner: "disk0", kind: "completed twice", count: 1 });
  });
});
