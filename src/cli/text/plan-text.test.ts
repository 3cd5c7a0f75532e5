import { describe, expect, it } from "vitest";
import type { DeviceCapabilities } from "../../tracking/capabilities.js";
import { DEFAULT_POLICY } from "../../tracking/choice.js";
import { chooseTrackers } from "../../tracking/policy.js";
import { planText, probeText } from "./plan-text.js";

const everything = { available: true, pageSizes: [], readableWhen: "always", what: "no tracker" } as const;

const VF: DeviceCapabilities = {
  id: "vf0",
  model: "mlx5",
  mdev: false,
  flags: { tracksInternally: true, tracksThroughContainer: false },
  migration: { stopCopy: true, p2p: true, preCopy: true },
  iommu: { type: "amd", dirtyTracking: true, pageSizes: [4096, 2 ** 21] },
  trackers: {
    iommu: {
      available: true,
      pageSizes: [4096, 2 ** 21],
      readableWhen: "always",
      what: "dirty bits in its page table",
    },
    device: { available: true, pageSizes: [4096, 65536], readableWhen: "always", what: "the device's own DMA log" },
    pinned: { available: false, why: "it is no mdev" },
    everything,
  },
};

const GPU: DeviceCapabilities = {
  ...VF,
  id: "gpu0",
  model: "vgpu",
  mdev: true,
  flags: { tracksInternally: true, tracksThroughContainer: true },
  migration: null,
  iommu: null,
  trackers: { ...VF.trackers, pinned: { ...everything, what: "its pins" } },
};

describe("what probe prints", () => {
  it("has both capability flags, and a line for every tracker that the device has or lacks, with why", () => {
    const text = probeText([VF]);
    expect(text).toContain("vf0: mlx5, behind amd");
    expect(text).toContain("migration: STOP_COPY, P2P, PRE_COPY");
    expect(text).toContain("internal dirty track supported: yes");
    expect(text).toContain("real dirty track through attached container supported: no");
    expect(text).toMatch(/^ +iommu +yes +4K 2M +dirty bits in its page table$/m);
    expect(text).toMatch(/^ +pinned +no +it is no mdev$/m);
  });

  it("has the IOMMU's page sizes, as a range where it has any power of two", () => {
    const withSizes = (pageSizes: readonly number[]) =>
      probeText([{ ...VF, iommu: { type: "amd", dirtyTracking: true, pageSizes } }]);
    expect(probeText([VF])).toContain("its IOMMU: dirty tracking yes, page sizes 4K 2M");
    const all = Array.from({ length: 12 }, (_, index) => 2 ** (12 + index));
    expect(withSizes(all)).toContain("page sizes all powers of two from 4K to 8M");
    expect(withSizes(all.filter((size) => size !== 65536))).toContain("most powers of two from 4K to 8M");
    expect(withSizes([])).toContain("page sizes not told");
  });

  it("says of an mdev that there is no system IOMMU, and of a device that it can't migrate", () => {
    const text = probeText([VF, GPU]);
    expect(text).toContain("gpu0: vgpu (mdev), no system IOMMU");
    expect(text).toContain("migration: can't migrate");
    expect(text.split("\n\n")).toHaveLength(2);
  });
});

describe("what plan prints", () => {
  it("has the choice per device with its reason, and every alternative with why it was passed over", () => {
    const choices = chooseTrackers([VF], { ...DEFAULT_POLICY, trackers: { vf0: "device" } });
    const text = planText(choices, DEFAULT_POLICY);
    const [choice] = choices;
    expect(text).toMatch(/^vf0 +device +4K +\S+ \(hwpt, dirty tracking off\)/m);
    expect(text).toContain(`vf0: ${choice.reason}`);
    expect(choice.alternatives.length).toBeGreaterThan(0);
    for (const { tracker, why } of choice.alternatives) expect(text).toContain(`  not ${tracker}: ${why}`);
  });

  it("names the devices that are suspended meanwhile", () => {
    const lacking = { available: false, why: "no" } as const;
    const bare = { ...VF, trackers: { ...VF.trackers, iommu: lacking, device: lacking } };
    const text = planText(chooseTrackers([bare], { ...DEFAULT_POLICY, untracked: "suspend" }), DEFAULT_POLICY);
    expect(text).toMatch(/^vf0 .*suspended meanwhile$/m);
  });
});
