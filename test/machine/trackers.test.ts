import { describe, expect, it } from "vitest";
import { DISK, GPU, machineOf, NIC, VF } from "../support/machines.js";
import { expectMoved, Rig } from "../support/migration.js";

describe("all trackers in one migration", () => {
  it("each report what they follow, and nothing is lost", async () => {
    const old = { id: "old0", model: "nic", iommu: "iommu1", load: { rate: 1, footprint: 64 * 1024 } } as const;
    const description = machineOf([VF, NIC, DISK, GPU, old], {
      iommus: [
        { id: "iommu0", format: "amd-v1" },
        { id: "iommu1", format: "amd-v1", dirtyTracking: false },
      ],
    });
    await using rig = await Rig.start(description);
    const moved = await rig.migrate({ policy: { trackers: { vf0: "device" } } });
    expectMoved(moved);
    const { devices, rounds } = moved.report;
    expect(Object.fromEntries(devices.map(({ id, tracker }) => [id, tracker]))).toEqual({
      vf0: "device",
      nic0: "iommu",
      disk0: "iommu",
      gpu0: "pinned",
      old0: "everything",
    });
    for (const owner of ["cpu", "vf0", "nic0", "disk0", "gpu0", "old0"]) {
      expect(rounds.reduce((sum, { byDevice }) => sum + (byDevice[owner]?.reported ?? 0), 0)).toBeGreaterThan(0);
    }
  });
});

const formats = [
  ["amd-v1", 2 ** 31],
  ["vtd-ss", 2 ** 30],
  ["arm-s1", 2 ** 30],
] as const;

describe("a machine behind the page tables of", () => {
  it.each(formats)("%s is moved whole, with small and with large leaves", async (format, large) => {
    const description = machineOf([NIC, DISK], { iommus: [{ id: "iommu0", format }] });
    await using rig = await Rig.start(description);
    const moved = await rig.migrate({ policy: { granules: { nic0: 4096, disk0: large } } });
    expectMoved(moved);
    const [nic, disk] = moved.report.devices;
    expect(nic.granule).toBe(4096);
    // The largest leaf that fits the mapping.
    expect(disk.granule).toBeGreaterThanOrEqual(2 ** 21);
  });
});

describe("an Arm virt machine", () => {
  it("keeps its RAM from 1 GiB on, and all kinds of devices are moved there", async () => {
    await using rig = await Rig.start(
      machineOf([VF, NIC, DISK, GPU], { iommus: [{ id: "iommu0", format: "arm-s1" }] }),
    );
    expect(rig.source.memory.regions.find(({ name }) => name === "ram-low")?.firstPage).toBe(2 ** 30 / 4096);
    expectMoved(await rig.migrate({ policy: { trackers: { vf0: "device" } } }));
  });
});

describe("a log that can be read only when its device is quiesced", () => {
  it("is read once the device has stopped, and nothing is lost", async () => {
    const vf = { ...VF, dmaLogging: { readableWhen: "quiesced" } } as const;
    await using rig = await Rig.start(machineOf([vf, NIC]));
    const moved = await rig.migrate({ policy: { trackers: { vf0: "device" } } });
    expectMoved(moved);
    const { rounds, warnings } = moved.report;
    for (const { phase, byDevice } of rounds) expect("vf0" in byDevice).toBe(phase === "stop-copy");
    expect(rounds.at(-1)?.byDevice.vf0.reported).toBeGreaterThan(0);
    expect(warnings).toEqual([expect.stringContaining("the log of vf0 can be read only once it is stopped")]);
  });
});

describe("the thread's case c", () => {
  const description = machineOf([VF, NIC], { iommus: [{ id: "iommu0", format: "amd-v1", dirtyTracking: false }] });
  const policy = { trackers: { vf0: "device" }, untracked: "suspend" } as const;
  const allPages = (16 * 2 ** 20 - 128 * 1024) / 4096;

  it.each([
    ["split", false],
    ["aggregated", false],
    ["type1", true],
    ["iterating", true],
  ] as const)("is moved whole by %s", async (design, allDirty) => {
    await using rig = await Rig.start(description);
    const moved = await rig.migrate({ policy, design });
    expectMoved(moved);
    const [, nic] = moved.report.devices;
    expect(nic.suspendedMs).toBeGreaterThan(0);
    const [{ remaining }] = moved.report.rounds;
    if (allDirty) expect(remaining / 4096).toBeGreaterThanOrEqual(allPages - 128);
    else expect(remaining / 4096).toBeLessThan(allPages / 2);
  });
});

describe("a tracker that fails", () => {
  it.each([
    ["first", "pre-copy"],
    ["last", "pausing"],
  ] as const)("in its %s read makes all that its device may write dirty, and nothing is lost", async (_, before) => {
    await using rig = await Rig.start(machineOf([VF, NIC]));
    const [{ vfio }] = rig.source.devices;
    const moved = await rig.migrate({
      policy: { trackers: { vf0: "device" } },
      hooks: {
        beforePhase: async (phase) => {
          // The log ends behind its reader's back: the next read of it is refused.
          if (phase === before) await vfio.stopDmaLogging();
        },
      },
    });
    expectMoved(moved);
    const { warnings, rounds } = moved.report;
    expect(warnings).toEqual([
      expect.stringMatching(/^the tracker of vf0 failed in round \d+, all that it covers counted as dirty/),
    ]);
    // Once: where it failed. Of 16 MiB, all but a hole and a read-only shadow can be written.
    expect(rounds.filter(({ byDevice }) => byDevice.vf0.reported > 3900)).toHaveLength(1);
  });
});
