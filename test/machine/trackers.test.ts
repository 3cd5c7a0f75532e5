import { describe, expect, it } from "vitest";
import { DISK, expectMoved, GPU, machineOf, NIC, Rig, VF } from "../support/migration.js";

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
