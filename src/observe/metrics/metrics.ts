import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { PAGE_SIZE } from "../../memory/address.js";
import type { ReadEvent } from "../../migration/events.js";
import type { RoundReport } from "../../migration/report.js";
import type { FeedEvent, FeedHeader } from "../feed/schema.js";
import { LabelBound } from "./label-bound.js";

/*
 * What Prometheus scrapes. Counters count what the followed runs told since this process started; gauges are of runs in
 * progress and go away with them. A run's id is no label, since each run would be series of its own for ever: the
 * scenario is, and where two runs of one scenario go on at once the newest event counts.
 */

const DEVICE = ["scenario", "device", "tracker"] as const;
const SCENARIO = ["scenario"] as const;

/** Different scenarios, and owners in each, before the rest is counted as `(other)`. */
const MAX_SCENARIOS = 64;
const MAX_OWNERS = 320;

/** From a millisecond to minutes. */
const DOWNTIME_BUCKETS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60];
const TOTAL_BUCKETS = [0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];

/** How a run ended, as it was kept. */
export interface EndedRun {
  readonly result: string;
  readonly totalMs: number | null;
  readonly downtimeMs: number | null;
}

/** The metrics of the runs that this process follows. */
export class RunMetrics {
  readonly registry = new Registry();
  readonly #scenarios = new LabelBound(MAX_SCENARIOS);
  readonly #owners = new Map<string, LabelBound>();
  /** Per run in progress, the gauges' labels that it set. */
  readonly #shown = new Map<string, { scenario: string; devices: Set<string> }>();

  readonly #reads = this.#counter("dirtmap_tracker_reads_total", "Reads of a tracker", DEVICE);
  readonly #readSeconds = this.#counter("dirtmap_tracker_read_seconds_total", "Time spent reading a tracker", DEVICE);
  readonly #pages = this.#counter("dirtmap_dirty_pages_total", "4 KiB pages that a tracker reported as dirty", DEVICE);
  readonly #exclusive = this.#counter(
    "dirtmap_exclusive_dirty_pages_total",
    "4 KiB pages that no other tracker reported in the same read",
    DEVICE,
  );
  readonly #rounds = this.#counter("dirtmap_rounds_total", "Rounds of migrations", ["scenario", "phase"]);
  readonly #sentBytes = this.#counter("dirtmap_sent_bytes_total", "Bytes that migrations sent in rounds", SCENARIO);
  readonly #sentPages = this.#counter("dirtmap_sent_pages_total", "4 KiB pages that migrations sent", SCENARIO);
  readonly #runs = this.#counter("dirtmap_runs_total", "Runs that ended, by their result", ["scenario", "result"]);
  readonly #lost = this.#counter("dirtmap_feed_lost_events_total", "Events of live feeds that were left out", []);

  readonly #inProgress = this.#gauge("dirtmap_runs_in_progress", "Runs in progress", []);
  readonly #dirtyRate = this.#gauge(
    "dirtmap_dirty_bytes_per_second",
    "Bytes that a tracker reported as dirty per second between its last two reads",
    DEVICE,
  );
  readonly #round = this.#gauge("dirtmap_run_round", "The round that a migration is in", SCENARIO);
  readonly #remaining = this.#gauge("dirtmap_run_remaining_bytes", "Bytes that this round has yet to send", SCENARIO);
  readonly #throughput = this.#gauge("dirtmap_run_throughput_bytes_per_second", "Bytes sent per second", SCENARIO);
  readonly #expected = this.#gauge(
    "dirtmap_run_expected_downtime_seconds",
    "Downtime if the machine were stopped now",
    SCENARIO,
  );
  readonly #limit = this.#gauge(
    "dirtmap_run_downtime_limit_seconds",
    "Expected downtime at which the machine may be stopped",
    SCENARIO,
  );
  readonly #memory = this.#gauge("dirtmap_run_memory_bytes", "RAM of the machine", SCENARIO);

  readonly #downtime = this.#histogram(
    "dirtmap_migration_downtime_seconds",
    "Downtime of migrations",
    DOWNTIME_BUCKETS,
  );
  readonly #total = this.#histogram("dirtmap_migration_duration_seconds", "Duration of migrations", TOTAL_BUCKETS);

  /** A run was found in progress. */
  begin(header: FeedHeader): void {
    const scenario = this.#scenarios.label(header.scenario);
    this.#shown.set(header.run, { scenario, devices: new Set() });
    this.#inProgress.set(this.#shown.size);
    this.#memory.set({ scenario }, header.memoryBytes);
    if (header.downtimeLimitMs !== undefined) this.#limit.set({ scenario }, header.downtimeLimitMs / 1000);
  }

  /** A followed run told something. */
  note(header: FeedHeader, event: FeedEvent): void {
    const scenario = this.#scenarios.label(header.scenario);
    switch (event.type) {
      case "read":
        this.#noteRead(header, scenario, event);
        return;
      case "round":
        this.#noteRound(scenario, event.round);
        return;
      case "progress":
        this.#round.set({ scenario }, event.round);
        this.#remaining.set({ scenario }, event.remainingBytes);
        this.#throughput.set({ scenario }, event.bytesPerSecond);
        if (event.expectedDowntimeMs !== null) this.#expected.set({ scenario }, event.expectedDowntimeMs / 1000);
        return;
      case "lost":
        this.#lost.inc(event.events);
        return;
      case "phase":
        return;
    }
  }

  /** A followed run is over. @param ended null: nobody knows how */
  end(header: FeedHeader, ended: EndedRun | null): void {
    const shown = this.#shown.get(header.run);
    this.#shown.delete(header.run);
    this.#inProgress.set(this.#shown.size);
    const scenario = this.#scenarios.label(header.scenario);
    this.#runs.inc({ scenario, result: ended?.result ?? "unknown" });
    if (ended?.downtimeMs != null) this.#downtime.observe({ scenario }, ended.downtimeMs / 1000);
    if (ended?.totalMs != null) this.#total.observe({ scenario }, ended.totalMs / 1000);
    if (shown === undefined || [...this.#shown.values()].some((other) => other.scenario === scenario)) return;
    for (const gauge of [this.#round, this.#remaining, this.#throughput, this.#expected, this.#limit, this.#memory]) {
      gauge.remove({ scenario });
    }
    for (const key of shown.devices) this.#dirtyRate.remove(JSON.parse(key));
  }

  #noteRead(header: FeedHeader, scenario: string, { owners, elapsedMs }: ReadEvent): void {
    for (const [owner, { reported, exclusive, readMs }] of Object.entries(owners)) {
      const labels = { scenario, device: this.#ownerLabel(scenario, owner), tracker: trackerOf(header, owner) };
      this.#reads.inc(labels);
      this.#readSeconds.inc(labels, readMs / 1000);
      this.#pages.inc(labels, reported);
      this.#exclusive.inc(labels, exclusive);
      this.#dirtyRate.set(labels, (reported * PAGE_SIZE) / (Math.max(elapsedMs, 1) / 1000));
      this.#shown.get(header.run)?.devices.add(JSON.stringify(labels));
    }
  }

  #noteRound(scenario: string, { phase, pages, bytes, remaining }: RoundReport): void {
    this.#rounds.inc({ scenario, phase });
    this.#sentBytes.inc({ scenario }, bytes);
    this.#sentPages.inc({ scenario }, pages);
    this.#remaining.set({ scenario }, remaining);
  }

  #ownerLabel(scenario: string, owner: string): string {
    const bound = this.#owners.get(scenario) ?? new LabelBound(MAX_OWNERS);
    this.#owners.set(scenario, bound);
    return bound.label(owner);
  }

  #counter<Label extends string>(name: string, help: string, labelNames: readonly Label[]): Counter<Label> {
    return new Counter({ name, help, labelNames, registers: [this.registry] });
  }

  #gauge<Label extends string>(name: string, help: string, labelNames: readonly Label[]): Gauge<Label> {
    return new Gauge({ name, help, labelNames, registers: [this.registry] });
  }

  #histogram(name: string, help: string, buckets: number[]): Histogram<"scenario"> {
    return new Histogram({ name, help, labelNames: SCENARIO, buckets, registers: [this.registry] });
  }
}

/** The tracker of an owner: of devices that share a domain it is the domain's. */
function trackerOf({ devices }: FeedHeader, owner: string): string {
  if (owner === "cpu" || owner === "container") return owner;
  if (owner.startsWith("domain:")) return "iommu";
  return devices.find(({ id }) => id === owner)?.tracker ?? "unknown";
}
