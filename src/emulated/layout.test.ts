import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { PageSpan } from "../devices/buffers.js";
import { GiB, MiB, PAGE_SIZE } from "../memory/address.js";
import { layoutRegions } from "../memory/guest-memory.js";
import { layoutWorkload } from "./layout.js";
import { describeMachine } from "./vfio/bench.test.helper.js";

const nic = (id: string, footprint: number, p2pTargets: string[] = []) => ({
  model: "nic",
  id,
  iommu: "iommu0",
  load: { footprint },
  p2pTargets,
});
const vgpu = (id: string, vram: number, footprint = MiB) => ({ model: "vgpu", id, load: { footprint }, vram });

function overlap(a: PageSpan, b: PageSpan): boolean {
  return a.firstPage < b.firstPage + b.pages && b.firstPage < a.firstPage + a.pages;
}

describe("the workload's layout", () => {
  it("gives everyone buffers of its own, of the whole footprint, in writeable RAM above 1 MiB", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 64, max: 128 * 1024 }),
        fc.array(fc.integer({ min: 1, max: 1000 }), { minLength: 1, maxLength: 6 }),
        (memory64K, weights) => {
          const memory = memory64K * 65536;
          const regions = layoutRegions(memory);
          const room = regions.filter((r) => r.writeable && r.firstPage > 0).reduce((sum, r) => sum + r.pages, 0);
          const total = weights.reduce((sum, w) => sum + w, 0);
          const pages = weights.map((weight) => Math.max(1, Math.floor((room * weight) / total)));
          if (pages.reduce((sum, n) => sum + n, 0) > room) return;
          const machine = describeMachine(
            pages.map((n, i) => nic(`nic${i}`, n * PAGE_SIZE)),
            memory,
          );
          const layout = layoutWorkload(machine, regions);
          const spans = [...layout.devices.values()].flatMap(({ buffers }) => buffers);
          pages.forEach((n, i) => {
            const own = layout.devices.get(`nic${i}`)?.buffers ?? [];
            expect(own.reduce((sum, span) => sum + span.pages, 0)).toBe(n);
          });
          for (const [i, span] of spans.entries()) {
            expect(span.firstPage).toBeGreaterThanOrEqual(MiB / PAGE_SIZE);
            const inside = regions.some(
              (r) =>
                r.writeable && span.firstPage >= r.firstPage && span.firstPage + span.pages <= r.firstPage + r.pages,
            );
            expect(inside).toBe(true);
            for (const other of spans.slice(i + 1)) expect(overlap(span, other)).toBe(false);
          }
        },
      ),
      { numRuns: 80 },
    );
  });

  it("puts a part of each into RAM above 4 GiB, where there is some", () => {
    const machine = describeMachine([nic("nic0", 64 * MiB), nic("nic1", 64 * MiB)], 6 * GiB);
    const { devices } = layoutWorkload(machine, layoutRegions(6 * GiB));
    for (const { buffers } of devices.values()) {
      expect(buffers.some(({ firstPage }) => firstPage < (4 * GiB) / PAGE_SIZE)).toBe(true);
      expect(buffers.some(({ firstPage }) => firstPage >= (4 * GiB) / PAGE_SIZE)).toBe(true);
    }
  });

  it("refuses footprints that are larger than the memory", () => {
    const machine = describeMachine([nic("nic0", 8 * MiB)], 8 * MiB);
    expect(() => layoutWorkload(machine, layoutRegions(8 * MiB))).toThrow(
      expect.objectContaining({ code: "MEMORY_DOES_NOT_FIT" }),
    );
  });

  it("places BARs outside RAM, aligned to their size, and gives each peer a corner of its own", () => {
    const machine = describeMachine(
      [
        nic("nic0", MiB, ["vgpu0", "nic1"]),
        nic("nic1", MiB, ["vgpu0"]),
        vgpu("vgpu0", 16 * MiB),
        vgpu("vgpu1", GiB),
        vgpu("vgpu2", 256 * MiB),
      ],
      5 * GiB,
    );
    const regions = layoutRegions(5 * GiB);
    const { bars, devices } = layoutWorkload(machine, regions);
    expect([...bars.keys()].sort()).toEqual(["nic1", "vgpu0", "vgpu1", "vgpu2"]);
    const all = [...bars.values()];
    for (const [i, bar] of all.entries()) {
      expect(bar.firstPage % bar.pages).toBe(0);
      expect(regions.some((region) => overlap(region, bar))).toBe(false);
      // The MSI window of x86.
      expect(overlap(bar, { firstPage: 0xfee00, pages: 0x100 })).toBe(false);
      for (const other of all.slice(i + 1)) expect(overlap(bar, other)).toBe(false);
    }
    const corners = [...devices.values()].flatMap(({ p2p }) => p2p.filter(({ target }) => target === "vgpu0"));
    expect(corners).toHaveLength(2);
    expect(overlap(corners[0].pages, corners[1].pages)).toBe(false);
    const bar = bars.get("vgpu0");
    for (const { pages } of corners) {
      expect(bar !== undefined && pages.firstPage >= bar.firstPage).toBe(true);
      expect(bar !== undefined && pages.firstPage + pages.pages <= bar.firstPage + bar.pages).toBe(true);
    }
  });
});
