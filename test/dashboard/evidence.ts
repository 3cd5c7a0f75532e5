import { fakeBenchmark, fakeDevice } from "../../src/evidence/recommend/fake-benchmark.test.helper.js";
import type { NewBenchmark, NewRun } from "../../src/evidence/store/store.js";
import type { MigrationEvent, ReadEvent } from "../../src/migration/events.js";
import { fakeReport } from "../../src/migration/fake-report.test.helper.js";
import type { MigrationReport } from "../../src/migration/report.js";
import type { RunConditions } from "../../src/observe/conditions.js";
import { CONDITIONS } from "../../src/observe/conditions.test.helper.js";
import type { RunHeader } from "../../src/observe/feed/schema.js";

/* Runs and benchmarks to show: made up, of the shape of real ones. */

const BUCKETS = 256;
const MEMORY = 2 ** 30;

/** A header of a machine with so many devices. */
export function header(run: string, devices: number, scenario = "mixed"): RunHeader {
  const models = ["mlx5", "nic", "blk", "vgpu"];
  const trackers = ["device", "iommu", "iommu", "pinned"];
  return {
    run,
    kind: "migration",
    scenario,
    host: "emulated",
    startedAt: "2026-01-02T03:04:05.000Z",
    devices: Array.from({ length: devices }, (_, i) => ({
      id: `dev${i}`,
      model: models[i % 4],
      tracker: trackers[i % 4],
      granule: 4096,
      domain: i % 4 === 3 ? null : `own:dev${i}`,
    })),
    memoryBytes: MEMORY,
    downtimeLimitMs: 300,
  };
}

/** A read: each owner dirties a stretch of its own, that wanders. */
export function read(index: number, owners: readonly string[], elapsedMs = 100): ReadEvent {
  const entries = owners.map((owner, o) => {
    const centre = (o * BUCKETS) / owners.length + 8 * Math.sin(index / 9 + o);
    const heat = Array.from({ length: BUCKETS }, (_, bucket) =>
      Math.max(0, Math.round(90 * Math.exp(-(((bucket - centre) / 5) ** 2)) * (1 + Math.sin(index / 5 + o)))),
    );
    const reported = heat.reduce((sum, pages) => sum + pages, 0);
    return [owner, { reported, exclusive: Math.round(reported * 0.9), readMs: 0.4 + o / 10, heat }] as const;
  });
  return { type: "read", atMs: 900 + index * elapsedMs, round: index, elapsedMs, owners: Object.fromEntries(entries) };
}

export const OWNERS = ["cpu", "dev0", "dev1", "dev2", "dev3"];

/** What a migration tells until its rounds are under way. */
export function story(rounds: number): MigrationEvent[] {
  const events: MigrationEvent[] = [
    { type: "phase", phase: "connecting", atMs: 0 },
    { type: "phase", phase: "pre-copy", atMs: 800 },
  ];
  for (let round = 0; round < rounds; round++) {
    const remaining = Math.round(60e6 / (round + 1));
    const event = read(round, OWNERS);
    events.push({
      type: "round",
      round: {
        round,
        phase: "pre-copy",
        pages: Math.round(30_000 / (round + 1)),
        zeroPages: 900,
        bytes: Math.round(110e6 / (round + 1)),
        ms: 400 / (round + 1),
        remaining,
        byDevice: {},
      },
    });
    events.push(event);
    events.push({
      type: "progress",
      atMs: event.atMs,
      round: round + 1,
      sentBytes: remaining * 0.4,
      remainingBytes: remaining * 0.6,
      bytesPerSecond: 1.2e9,
      expectedDowntimeMs: 400 / (round + 1),
      dirtyBytesPerSecond: {},
    });
  }
  return events;
}

/** A run that is over. */
export function pastRun(
  name: string,
  more: {
    scenario?: string;
    result?: MigrationReport["result"];
    rounds?: number;
    downtimeMs?: number | null;
    conditions?: Partial<RunConditions>;
  } = {},
): NewRun {
  const { scenario = "mixed", result = "completed", rounds = 6, downtimeMs = 61.5 } = more;
  const events = story(rounds);
  const reads = events.filter((event) => event.type === "read");
  return {
    kind: "migration",
    name,
    scenario,
    host: "emulated",
    startedAt: "2026-01-02T03:04:05.000Z",
    result,
    header: header(name, 4, scenario),
    report: fakeReport({
      migration: name,
      result,
      verified: result === "completed",
      totalMs: 3290.5,
      downtimeMs,
      bytes: 303e6,
      phases: [
        { phase: "connecting", ms: 1550 },
        { phase: "tracking", ms: 35 },
        { phase: "pre-copy", ms: 983 },
        { phase: "pausing", ms: 19 },
        { phase: "stop-copy", ms: 28 },
        { phase: "handover", ms: 15 },
        { phase: "verifying", ms: 79 },
        { phase: "auditing", ms: 575 },
      ],
      rounds: events.flatMap((event) => (event.type === "round" ? [event.round] : [])),
      devices: (["device", "iommu", "iommu", "pinned"] as const).map((tracker, i) => ({
        id: `dev${i}`,
        model: ["mlx5", "nic", "blk", "vgpu"][i],
        tracker,
        granule: 4096,
        reason: "iommu-first: the iommu_domain is asked first, and has dirty bits in its page table (amd)",
        alternatives: [],
        pagesReported: 2000 + i,
        pagesExclusive: 1900,
        readMs: 5 + i,
        suspendedMs: 0,
      })),
      predicted: { converges: true, rounds: 5, downtimeMs: 66, movingMs: 1100, inTheWay: [], observedMs: 500 },
      warnings: result === "completed" ? [] : ["the log of dev0 can be read only once it is stopped"],
      ...(result === "completed"
        ? {}
        : { error: { code: "CANCELLED", message: "the migration was cancelled; the source goes on running" } }),
    }),
    reads,
    conditions: { ...CONDITIONS, ...more.conditions },
  };
}

const RESULT = fakeBenchmark([
  fakeDevice("dev0", [
    { tracker: "device", readMs: [1.5] },
    { tracker: "iommu", granule: 2 ** 31, readMs: [0.3], names: 51.2 },
  ]),
]);

export const BENCHMARK: NewBenchmark = {
  kind: "trackers",
  host: "emulated",
  scenario: "mixed",
  machine: RESULT.machine,
  takenAt: RESULT.takenAt,
  result: RESULT,
};
