import fc from "fast-check";
import { expect, test } from "vitest";
import { fakeMachine, markedPages } from "../../test/support/fake-host/machine.js";
import { type MappedArea, writeableAreas } from "./areas.js";
import { Collector } from "./collector.js";
import { deviceOwner } from "./owner.js";
import { cpuTracker } from "./trackers/cpu.js";
import { deviceTracker } from "./trackers/device.js";
import { iommuTracker } from "./trackers/iommu.js";
import { pinnedTracker } from "./trackers/pinned.js";

/*
 * Random histories of writes, reads, failing trackers, remaps and restarts. Whatever happens, each read names every
 * guest page that was written since the one before, through whatever was mapped at that time.
 */

const DEVICES = ["mlx0", "nic0", "vgpu0"] as const;
const OWNERS = [...DEVICES, "cpu"] as const;
const MAX_PAGE = 8 * 256;

type Step =
  | { readonly do: "write"; readonly owner: (typeof OWNERS)[number]; readonly page: number; readonly keep: boolean }
  | { readonly do: "read" }
  | { readonly do: "fail"; readonly device: (typeof DEVICES)[number] }
  | { readonly do: "remap"; readonly guestPage: number; readonly quiesced: boolean }
  | { readonly do: "start over"; readonly owner: (typeof OWNERS)[number]; readonly quiesced: boolean };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("write" as const),
      owner: fc.constantFrom(...OWNERS),
      page: fc.integer({ min: 0, max: MAX_PAGE - 1 }),
      keep: fc.boolean(),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("read" as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("fail" as const), device: fc.constantFrom(...DEVICES) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant("remap" as const),
      guestPage: fc.integer({ min: 256, max: MAX_PAGE - 160 }),
      quiesced: fc.boolean(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant("start over" as const),
      owner: fc.constantFrom(...OWNERS),
      quiesced: fc.boolean(),
    }),
  },
);

test("each read names every page that was written since the one before, whatever fails or is remapped meanwhile", async () => {
  const histories = fc.array(step, { minLength: 1, maxLength: 60 });
  const granules = fc.constantFrom(4096, 2 ** 21);
  await fc.assert(
    fc.asyncProperty(histories, granules, async (steps, granule) => {
      const machine = await fakeMachine([
        { id: "mlx0", log: { pageSizes: [4096, 2 ** 21], maxRanges: 1 } },
        { id: "nic0" },
        { id: "vgpu0", mdev: true, log: {} },
      ]);
      const { iommufd, ioas, memory } = machine;
      const [mlx, nic, vgpu] = DEVICES.map((id) => machine.device(id));
      const hwpt = await iommufd.allocHwpt({ device: nic.deviceId, ioas, dirtyTracking: true });
      await nic.attach(hwpt);
      await using collector = new Collector(memory, [
        { tracker: cpuTracker(machine.vcpus), granule: null },
        { tracker: deviceTracker(mlx), granule },
        { tracker: iommuTracker({ iommufd, hwpt, owner: deviceOwner("nic0") }), granule: null },
        { tracker: pinnedTracker(vgpu), granule: null },
      ]);
      await collector.start();

      const [below, above] = writeableAreas(memory);
      let window: MappedArea = below;
      let expected = new Set<number>();
      const guestPage = (page: number) => {
        for (const { iova, length, guestPage: first } of [window, above]) {
          const offset = page - Number(iova) / 4096;
          if (offset >= 0 && offset < Number(length) / 4096) return first + offset;
        }
        return null;
      };
      const read = async () => {
        const reported = new Set(markedPages((await collector.read({ quiesced: false })).dirty));
        for (const page of expected) expect(reported).toContain(page);
        expected = new Set();
      };

      for (const next of steps) {
        switch (next.do) {
          case "write": {
            if (next.owner === "cpu") {
              if (next.page >= 160 && next.page < 256) break;
              machine.vcpus.write(next.page);
              expected.add(next.page);
              break;
            }
            const page = guestPage(next.page);
            if (page === null) break;
            await machine.device(next.owner).write(next.page, { keepPinned: next.keep && next.owner === "vgpu0" });
            expected.add(page);
            break;
          }
          case "read":
            await read();
            break;
          case "fail":
            if (next.device === "nic0") iommufd.script.fail("getDirtyBitmap", "EIO");
            else machine.device(next.device).script.fail("reportDmaLogging", "EIO");
            break;
          case "remap": {
            const { quiesced } = next;
            const unmap = async () => {
              await iommufd.unmap(ioas, window.iova, window.length);
            };
            await collector.collectBeforeUnmap(window, unmap, { quiesced });
            window = { ...below, guestPage: next.guestPage };
            await machine.map(window);
            await collector.mapped(window);
            break;
          }
          case "start over":
            await collector.startOver(next.owner, { quiesced: next.quiesced });
            break;
        }
      }
      await read();
    }),
    { numRuns: 150 },
  );
});
