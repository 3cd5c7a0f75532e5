import { MiB } from "../../memory/address.js";
import { device as capabilitiesOf } from "../../tracking/fake-capabilities.test.helper.js";
import { summarize } from "../statistics.js";
import type { BenchedDevice, TrackerBenchmark, TrackerFigures } from "../trackers/result.js";

/*
 * Benchmarks with figures that a test makes up.
 */

export const MEMORY = 256 * MiB;

/** What a test says of a tracker; the rest is that of a good one. */
export interface FakeTracker {
  readonly tracker: TrackerFigures["tracker"];
  readonly granule?: number | null;
  readonly problem?: string;
  readonly readableWhen?: "always" | "quiesced";
  /** Milliseconds of reads, clean; those that find a tenth dirty take twice as long. */
  readonly readMs?: readonly number[];
  /** Writes while tracked, of those while not: median, and the range; null: not measured. */
  readonly dma?: { readonly ratio: number; readonly low?: number; readonly high?: number } | null;
  /** Pages named per page written; null: not measured. */
  readonly names?: number | null;
}

export function fakeTracker(fake: FakeTracker): TrackerFigures {
  const { tracker, granule = 4096, problem = null, readableWhen = "always", readMs = [0.5], dma = { ratio: 1 } } = fake;
  const { names = 1 } = fake;
  const time = summarize([0.1]);
  const measured = problem === null;
  const tenth = Math.floor(MEMORY / 4096 / 10);
  const reads = [
    { dirtyShare: 0, writtenPages: 0, reportedPages: 0, times: readMs },
    { dirtyShare: 0.1, writtenPages: tenth, reportedPages: tenth * (names ?? 1), times: readMs.map((ms) => ms * 2) },
  ];
  const known = names !== null;
  return {
    tracker,
    granule: tracker === "everything" ? null : granule,
    foundGranule: measured && tracker !== "everything" ? granule : null,
    readableWhen,
    problem,
    attach: measured ? time : null,
    start: measured ? time : null,
    stop: measured ? time : null,
    reads: (measured ? reads : [])
      .slice(0, known ? 2 : 1)
      .map(({ times, dirtyShare, writtenPages, reportedPages }) => ({
        memoryBytes: MEMORY,
        dirtyShare: known ? dirtyShare : null,
        writtenPages: known ? writtenPages : null,
        reportedPages: Math.round(reportedPages),
        ms: summarize(times),
      })),
    dma:
      dma === null || !measured
        ? null
        : {
            pairs: 16,
            ratio: dma.ratio,
            low: dma.low ?? dma.ratio,
            high: dma.high ?? dma.ratio,
            p: 0.001,
            decides: (dma.high ?? dma.ratio) < 1 || (dma.low ?? dma.ratio) > 1,
          },
    precision:
      !known || !measured || tracker === "everything"
        ? []
        : [100, 1000].map((pages) => ({
            ms: pages / 10,
            writtenPages: pages,
            reportedPages: Math.round(pages * names),
          })),
  };
}

/** A device that writes ten pages a millisecond, if anybody knows. */
export function fakeDevice(id: string, trackers: readonly FakeTracker[], { mdev = false } = {}): BenchedDevice {
  const has = (kind: string) => trackers.some(({ tracker }) => tracker === kind);
  return {
    id,
    model: "test",
    iommuGroup: null,
    capabilities: capabilitiesOf(id, { mdev, iommu: has("iommu"), own: has("device") || has("pinned") }),
    stateBytes: 1000,
    writes: [
      { ms: 10, pages: 100 },
      { ms: 1000, pages: 10_000 },
    ],
    trackers: [...trackers, { tracker: "everything" as const }].map(fakeTracker),
  };
}

export function fakeBenchmark(
  devices: readonly BenchedDevice[],
  more: Partial<TrackerBenchmark> = {},
): TrackerBenchmark {
  return {
    schemaVersion: 1,
    kind: "trackers",
    takenAt: "2026-01-02T03:04:05.000Z",
    quick: false,
    machine: {
      cpu: "a processor",
      cores: 2,
      memoryBytes: 2 ** 33,
      node: "v20",
      kernel: "Linux 7",
      load: 0,
      stealShare: 0,
    },
    host: "emulated",
    scenario: "made-up",
    measures: "a test's figures",
    memoryBytes: MEMORY,
    devices,
    sharing: [],
    leftOut: [],
    ...more,
  };
}
