import { describe, expect, it } from "vitest";
import { type FakeTracker, fakeBenchmark, fakeDevice, MEMORY } from "../recommend/fake-benchmark.test.helper.js";
import { estimateMigration, type MigrationEstimate } from "./estimate.js";

const LINK = { bandwidth: 1e9, downtimeLimitMs: 100 };

function estimate(fake: FakeTracker, link = LINK): MigrationEstimate {
  const device = fakeDevice("vf0", [fake]);
  const found = estimateMigration(fakeBenchmark([device]), device, device.trackers[0], link);
  if (found === null) throw new Error("nothing was estimated");
  return found;
}

describe("a migration whose only writer is the device", () => {
  it("sends all of the memory once, and then what was written meanwhile", () => {
    const { converges, rounds, totalMs, downtimeMs } = estimate({ tracker: "iommu" });
    const copyMs = (MEMORY * 1000) / LINK.bandwidth;
    expect({ converges, rounds }).toEqual({ converges: true, rounds: 1 });
    // Ten pages a millisecond, over a link of a gigabyte a second, besides what stopping takes.
    expect(downtimeMs).toBeGreaterThan((copyMs * 10 * 4096) / 1e6 + 30);
    expect(downtimeMs).toBeLessThan(((copyMs + 20) * 10 * 4096) / 1e6 + 35);
    expect(totalMs).toBeGreaterThan(copyMs + downtimeMs);
  });

  it("takes more rounds, and does not end, the slower the link is", () => {
    expect(estimate({ tracker: "iommu" }, { ...LINK, bandwidth: 100e6 })).toMatchObject({ converges: true, rounds: 5 });
    const stuck = estimate({ tracker: "iommu" }, { ...LINK, bandwidth: 20e6 });
    expect(stuck.converges).toBe(false);
    expect(stuck.downtimeMs).toBeGreaterThan(LINK.downtimeLimitMs);
  });

  it("sends what a tracker names besides what was written, and waits for its reads", () => {
    const exact = estimate({ tracker: "iommu" });
    expect(estimate({ tracker: "iommu", names: 4 }).downtimeMs).toBeGreaterThan(exact.downtimeMs + 30);
    expect(estimate({ tracker: "iommu", readMs: [10] }).downtimeMs).toBeGreaterThan(exact.downtimeMs + 9);
  });

  it("says what it would be with the fastest reads, since what disturbs a read only adds to it", () => {
    const exact = estimate({ tracker: "iommu", readMs: [10] });
    expect(exact).toMatchObject({ downtimeAtLeastMs: exact.downtimeMs, totalAtLeastMs: exact.totalMs });
    const disturbed = estimate({ tracker: "iommu", readMs: [10, 20, 30] });
    expect(disturbed.downtimeMs).toBeGreaterThan(exact.downtimeMs);
    expect(disturbed).toMatchObject({ downtimeAtLeastMs: exact.downtimeMs, totalAtLeastMs: exact.totalMs });
  });

  it("sends all that was written since the start at the end, of a log that can't be read before", () => {
    const { rounds, downtimeMs } = estimate(
      { tracker: "device", readableWhen: "quiesced" },
      { bandwidth: 100e6, downtimeLimitMs: 100 },
    );
    expect(rounds).toBe(1);
    const copyMs = (MEMORY * 1000) / 100e6;
    expect(downtimeMs).toBeGreaterThan((copyMs * 10 * 4096) / 100e3);
  });

  it("sends everything again without a tracker", () => {
    const device = fakeDevice("vf0", []);
    const found = estimateMigration(fakeBenchmark([device]), device, device.trackers[0], LINK);
    expect(found?.converges).toBe(false);
    expect(found?.downtimeMs).toBeGreaterThan((MEMORY * 1000) / LINK.bandwidth);
  });

  it("is not estimated where nobody knows what the device writes, or the tracker was refused", () => {
    const unknown = { ...fakeDevice("vf0", [{ tracker: "iommu", names: null }]), writes: null };
    expect(estimateMigration(fakeBenchmark([unknown]), unknown, unknown.trackers[0], LINK)).toBeNull();
    const refused = fakeDevice("vf0", [{ tracker: "iommu", problem: "no" }]);
    expect(estimateMigration(fakeBenchmark([refused]), refused, refused.trackers[0], LINK)).toBeNull();
  });
});
