import { describe, expect, it } from "vitest";
import type { FeedHeader } from "../feed/schema.js";
import { LabelBound } from "./label-bound.js";
import { RunMetrics } from "./metrics.js";
import { parseMetrics } from "./parse.test.helper.js";

const header = (run: string, scenario = "mixed"): FeedHeader => ({
  schemaVersion: 1,
  run,
  kind: "migration",
  scenario,
  host: "emulated",
  startedAt: "2026-01-02T03:04:05.000Z",
  devices: [
    { id: "vf0", model: "mlx5", tracker: "device", granule: 4096, domain: null },
    { id: "nic0", model: "nic", tracker: "iommu", granule: 4096, domain: "shared" },
  ],
  memoryBytes: 2 ** 28,
  downtimeLimitMs: 300,
});

const read = (owners: Record<string, number>) => ({
  type: "read" as const,
  atMs: 1,
  round: 0,
  elapsedMs: 500,
  owners: Object.fromEntries(
    Object.entries(owners).map(([owner, reported]) => [owner, { reported, exclusive: 1, readMs: 250, heat: [] }]),
  ),
});

const round = {
  round: 0,
  phase: "pre-copy" as const,
  pages: 7,
  zeroPages: 1,
  bytes: 1000,
  ms: 5,
  remaining: 400,
  byDevice: {},
};

describe("the metrics", () => {
  it("are what a parser of Prometheus' format reads, each with a unit in its name, a type and help", async () => {
    const metrics = new RunMetrics();
    metrics.begin(header("a"));
    metrics.note(header("a"), read({ vf0: 10, "domain:nic0+disk0": 20, cpu: 5 }));
    const families = parseMetrics(await metrics.registry.metrics());
    for (const { name, help, type } of families) {
      expect(name).toMatch(/^dirtmap_[a-z_]+$/);
      expect(help).toMatch(/^[A-Z4].{8,}/);
      expect(name.endsWith("_total")).toBe(type === "COUNTER");
      expect(name).toMatch(/_(total|seconds|bytes|bytes_per_second|round|in_progress)$/);
    }
    expect(new Set(families.map(({ name }) => name)).size).toBe(families.length);
  });

  it("add up what each tracker reported, with the device and its tracker as labels", async () => {
    const metrics = new RunMetrics();
    metrics.begin(header("a"));
    metrics.note(header("a"), read({ vf0: 10, "domain:nic0+disk0": 20, cpu: 5 }));
    metrics.note(header("a"), read({ vf0: 30 }));
    const value = valuesOf(await metrics.registry.metrics());
    const vf0 = { scenario: "mixed", device: "vf0", tracker: "device" };
    expect(value("dirtmap_dirty_pages_total", vf0)).toBe(40);
    expect(value("dirtmap_tracker_reads_total", vf0)).toBe(2);
    expect(value("dirtmap_tracker_read_seconds_total", vf0)).toBe(0.5);
    expect(value("dirtmap_dirty_bytes_per_second", vf0)).toBe(30 * 4096 * 2);
    expect(value("dirtmap_dirty_pages_total", { device: "domain:nic0+disk0", tracker: "iommu" })).toBe(20);
    expect(value("dirtmap_dirty_pages_total", { device: "cpu", tracker: "cpu" })).toBe(5);
  });

  it("show a run while it goes on, and keep what it adds up to once it is over", async () => {
    const metrics = new RunMetrics();
    metrics.begin(header("a"));
    metrics.note(header("a"), { type: "round", round });
    metrics.note(header("a"), read({ vf0: 10 }));
    metrics.note(header("a"), { type: "lost", events: 3 });
    metrics.note(header("a"), {
      type: "progress",
      atMs: 1,
      round: 1,
      sentBytes: 1,
      remainingBytes: 50,
      bytesPerSecond: 9,
      expectedDowntimeMs: 40,
      dirtyBytesPerSecond: {},
    });
    const whileRunning = valuesOf(await metrics.registry.metrics());
    expect(whileRunning("dirtmap_runs_in_progress")).toBe(1);
    expect(whileRunning("dirtmap_run_remaining_bytes", { scenario: "mixed" })).toBe(50);
    expect(whileRunning("dirtmap_run_expected_downtime_seconds", { scenario: "mixed" })).toBe(0.04);
    metrics.end(header("a"), { result: "completed", totalMs: 3000, downtimeMs: 60 });
    const atTheEnd = valuesOf(await metrics.registry.metrics());
    expect(atTheEnd("dirtmap_runs_in_progress")).toBe(0);
    expect(atTheEnd("dirtmap_run_remaining_bytes")).toBeUndefined();
    expect(atTheEnd("dirtmap_dirty_bytes_per_second")).toBeUndefined();
    expect(atTheEnd("dirtmap_sent_bytes_total", { scenario: "mixed" })).toBe(1000);
    expect(atTheEnd("dirtmap_feed_lost_events_total")).toBe(3);
    expect(atTheEnd("dirtmap_runs_total", { scenario: "mixed", result: "completed" })).toBe(1);
    expect(await metrics.registry.metrics()).toMatch(
      /dirtmap_migration_downtime_seconds_sum\{scenario="mixed"\} 0\.06/,
    );
  });

  it("go on showing a scenario of which another run is still in progress", async () => {
    const metrics = new RunMetrics();
    metrics.begin(header("a"));
    metrics.begin(header("b"));
    metrics.end(header("a"), null);
    expect(valuesOf(await metrics.registry.metrics())("dirtmap_run_memory_bytes", { scenario: "mixed" })).toBe(2 ** 28);
  });

  it("stay bounded however many scenarios and devices there are", async () => {
    const metrics = new RunMetrics();
    for (let i = 0; i < 100; i++) {
      const one = header(`run${i}`, `scenario-${i}`);
      metrics.begin(one);
      metrics.note(one, read({ vf0: 1 }));
      metrics.end(one, null);
    }
    const [pages] = parseMetrics(await metrics.registry.metrics()).filter(
      ({ name }) => name === "dirtmap_dirty_pages_total",
    );
    expect(pages.metrics).toHaveLength(65);
    const bound = new LabelBound(2);
    expect(["a", "b", "c", "a"].map((value) => bound.label(value))).toEqual(["a", "b", "(other)", "a"]);
    expect(new LabelBound(1).label("x".repeat(500))).toHaveLength(128);
  });
});

/** The value of the first sample with these labels. */
function valuesOf(text: string) {
  const families = parseMetrics(text);
  return (name: string, labels: Readonly<Record<string, string>> = {}): number | undefined => {
    const samples = families.find((family) => family.name === name)?.metrics ?? [];
    const sample = samples.find((candidate) =>
      Object.entries(labels).every(([key, value]) => candidate.labels?.[key] === value),
    );
    return sample?.value === undefined ? undefined : Number(sample.value);
  };
}
