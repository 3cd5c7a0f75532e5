import { expect, it } from "vitest";
import { GiB, MiB } from "../../src/memory/address.js";
import { LOAD, machineOf } from "../support/machines.js";
import { Rig } from "../support/migration.js";

/* Guest memory is committed when it is written, so that a large guest costs a test only the time to look at its zeros. */

it("one page written in a 1 GiB leaf makes all of the leaf dirty, and the destination is equal", async () => {
  const description = machineOf(
    [
      // Does nothing; its buffers fill RAM up to the next device's, which then lie between 1 and 2 GiB.
      { id: "idle0", model: "mlx5", iommu: "iommu0", load: { rate: 0, footprint: GiB + 256 * MiB } },
      { id: "nic0", model: "nic", iommu: "iommu0", load: LOAD },
    ],
    {
      memory: 2 * GiB + 64 * MiB,
      fill: 0,
      iommus: [{ id: "iommu0", format: "vtd-ss" }],
      vcpus: { count: 0 },
    },
  );
  await using rig = await Rig.start(description);
  const { report, received } = await rig.migrate({
    policy: { trackers: { idle0: "device" }, granules: { nic0: GiB } },
    downtimeLimitMs: 60_000,
  });
  expect(report.error).toBeUndefined();
  expect(report).toMatchObject({ result: "completed", verified: true, memory: { pagesDifferent: 0 } });
  expect(received.outcome).toBe("running");
  expect(report.destination?.stamps?.problems).toEqual([]);
  expect(report.devices).toMatchObject([{ id: "idle0" }, { id: "nic0", tracker: "iommu", granule: GiB }]);
  expect(report.rounds.at(-1)?.byDevice.nic0.reported).toBe(GiB / 4096);
  expect(report.bytes).toBeLessThan(64 * MiB);
});
