import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MiB } from "../../memory/address.js";
import { layoutRegions } from "../../memory/guest-memory.js";
import type { TraceHeader } from "./format.js";
import type { TraceInterval } from "./interval.js";
import { schedulesOf } from "./schedule.js";

const REGIONS = layoutRegions(16 * MiB);
const OWNERS = ["cpu", "vf0", "nic0"];
const HEADER: TraceHeader = {
  memoryBytes: 16 * MiB,
  platform: "pc",
  intervalMs: 100,
  startedAt: "2026-01-02T03:04:05.000Z",
  host: "emulated",
  scenario: null,
  zeroShare: null,
  deviceStateBytes: null,
  owners: [
    ...OWNERS.map((owner) => ({ owner, tracker: "iommu", granule: 4096, devices: [] })),
    { owner: "old0", tracker: "everything", granule: null, devices: [] },
  ],
  unread: [],
};

const pages = fc.uniqueArray(fc.integer({ min: 256, max: 300 }), { maxLength: 12 });
const interval = fc.record({
  elapsedMs: fc.integer({ min: 1, max: 500 }),
  owners: fc
    .tuple(pages, pages, pages)
    .map(
      (lists) =>
        new Map(
          lists.map((list, i) => [
            OWNERS[i],
            Uint32Array.from(list.sort((a, b) => a - b).flatMap((page) => [page, 1])),
          ]),
        ),
    ),
});

describe("the schedules of a trace", () => {
  it("write in each interval just the pages that any owner dirtied, each page by one device and once", () => {
    fc.assert(
      fc.property(fc.array(interval, { maxLength: 8 }), (intervals: TraceInterval[]) => {
        const schedules = schedulesOf("t", { header: HEADER, intervals }, OWNERS, REGIONS);
        const writerOf = new Map<number, string>();
        intervals.forEach(({ owners }, i) => {
          const expected = new Set([...owners.values()].flatMap((runs) => [...runs].filter((_, at) => at % 2 === 0)));
          const written: number[] = [];
          for (const [owner, { pages, writes }] of schedules) {
            for (const page of pages.subarray(writes[i - 1] ?? 0, writes[i])) {
              written.push(page);
              expect(writerOf.get(page) ?? owner).toBe(owner);
              writerOf.set(page, owner);
            }
          }
          expect(written.sort()).toEqual([...expected].sort());
        });
        for (const { endsUs } of schedules.values()) expect(endsUs.length).toBe(intervals.length);
      }),
      { numRuns: 100 },
    );
  });

  it("are refused for pages that the machine has no RAM at, with what memory it would take", () => {
    const intervals = [{ elapsedMs: 1, owners: new Map([["vf0", Uint32Array.of(8192, 1)]]) }];
    expect(() =>
      schedulesOf("t", { header: { ...HEADER, memoryBytes: 64 * MiB }, intervals }, OWNERS, REGIONS),
    ).toThrow(expect.objectContaining({ code: "TRACE_DOES_NOT_FIT", remedy: expect.stringContaining("64M") }));
  });

  it("are refused for an owner that the trace has not, or that nothing tracked", () => {
    for (const owner of ["gpu9", "old0"]) {
      expect(() => schedulesOf("t", { header: HEADER, intervals: [] }, [owner], REGIONS)).toThrow(
        expect.objectContaining({ code: "NO_SUCH_OWNER", remedy: expect.stringContaining("cpu, vf0, nic0") }),
      );
    }
  });
});
