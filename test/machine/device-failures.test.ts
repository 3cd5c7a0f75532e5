import { describe, expect, it } from "vitest";
import type { Arc } from "../../src/devices/variant-driver/mig-state.js";
import { enableBusMaster } from "../../src/devices/workload.js";
import type { EmulatedMachine } from "../../src/emulated/machine.js";
import { EmulatedVfioDevice } from "../../src/emulated/vfio/device.js";
import { machineOf, NIC, VF } from "../support/machines.js";
import { expectMoved, expectRunning, Rig } from "../support/migration.js";

const arc = (from: Arc["from"], to: Arc["to"]): Arc => ({ from, to });
/** Several migrations in one test, on a computer that may be busy. */
const LONG = { timeout: 120_000 };

const description = machineOf([VF, NIC]);
const policy = { trackers: { vf0: "device" } } as const;

function deviceOf({ devices }: EmulatedMachine, id: string) {
  const device = devices.find((candidate) => candidate.id === id);
  if (device === undefined) throw new Error(`there is no ${id}`);
  if (!(device.vfio instanceof EmulatedVfioDevice)) throw new Error(`${id} runs in another process`);
  return device.vfio;
}

/** What a guest's driver does when it learns that its device was reset. */
async function restartDrivers({ devices }: EmulatedMachine): Promise<void> {
  for (const { vfio } of devices) await enableBusMaster(vfio);
}

describe("a device of the source that goes to ERROR", () => {
  it("in whatever phase fails the migration by name; the machine runs on, and can migrate later", LONG, async () => {
    await using rig = await Rig.start(description);
    for (const [id, failing] of [
      ["vf0", arc("RUNNING", "PRE_COPY")],
      ["vf0", arc("PRE_COPY", "PRE_COPY_P2P")],
      ["nic0", arc("RUNNING", "RUNNING_P2P")],
      ["vf0", arc("PRE_COPY_P2P", "STOP_COPY")],
      ["nic0", arc("RUNNING_P2P", "STOP")],
      ["nic0", arc("STOP", "STOP_COPY")],
    ] as const) {
      deviceOf(rig.source, id).failNext(failing);
      const { report, received } = await rig.migrate({ policy });
      expect(report).toMatchObject({ result: "failed", error: { code: "DEVICE_FAILED" } });
      expect(report.error?.message).toContain(id);
      expect(report.warnings).toEqual([expect.stringMatching(new RegExp(`^${id} was reset`))]);
      expect(received.outcome).toBe("discarded");
      await restartDrivers(rig.source);
      await expectRunning(rig.source);
    }
    expectMoved(await rig.migrate({ policy }));
  });
});

describe("a device of the destination that goes to ERROR", () => {
  it("before GO, when it is to load its state, fails the migration, and the source runs on", async () => {
    await using rig = await Rig.start(description);
    const { report, received } = await rig.migrate({
      policy,
      onDestination: (machine) => deviceOf(machine, "nic0").failNext(arc("RESUMING", "STOP")),
    });
    expect(report.result).toBe("failed");
    expect(report.error?.message).toContain("nic0");
    expect(received.outcome).toBe("discarded");
    expect(rig.journal(report, "destination")).toBe("discarded");
    await expectRunning(rig.source);
  });

  it.each([
    ["RUNNING_P2P", arc("STOP", "RUNNING_P2P")],
    ["RUNNING", arc("RUNNING_P2P", "RUNNING")],
  ])("after GO, on its way to %s, leaves the outcome to the operator: neither side runs", async (_, failing) => {
    await using rig = await Rig.start(description);
    const { report, received, destination } = await rig.migrate({
      policy,
      onDestination: (machine) => deviceOf(machine, "nic0").failNext(failing),
    });
    expect(report.result).toBe("indeterminate");
    expect(received.outcome).toBe("run-failed");
    expect(rig.journal(report, "source")).toBe("given-up");
    for (const machine of [rig.source, destination]) {
      for (const { vfio } of machine?.devices ?? []) expect(await vfio.state()).not.toMatch(/^(RUNNING|PRE_COPY)/);
    }
  });
});

describe("a device thread that dies", () => {
  it.each(["tracking", "pausing"] as const)(
    "before %s fails the migration, and says whose thread it was",
    async (at) => {
      await using rig = await Rig.start(description);
      const { report, received } = await rig.migrate({
        policy,
        hooks: {
          beforePhase: async (phase) => {
            if (phase === at) await rig.source.host.killThread(0);
          },
        },
      });
      expect(report.result).toBe("failed");
      expect(report.error?.message).toMatch(/vf0|nic0/);
      expect(received.outcome).toBe("discarded");
      expect(rig.source.failure?.message).toMatch(/the thread of vf0, nic0 has ended/);
    },
  );

  it("at the destination before GO fails the migration, and the source runs on", async () => {
    await using rig = await Rig.start(description);
    let there: EmulatedMachine | undefined;
    const { report, received } = await rig.migrate({
      policy,
      onDestination: (machine) => {
        there = machine;
      },
      hooks: {
        beforePhase: async (phase) => {
          if (phase === "stop-copy") await there?.host.killThread(0);
        },
      },
    });
    expect(report.result).toBe("failed");
    expect(received.outcome).toBe("discarded");
    await expectRunning(rig.source);
  });
});
