import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { RoundReport } from "../../migration/report.js";
import type { FeedEvent, FeedHeader } from "../feed/schema.js";
import { afterEvent, ownersRead, type RunState, startOfRun } from "../run-state.js";
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
  /** Runs in progress, each with what is known of it, and the labels of owners' gauges that it set. */
  readonly #shown = new Map<string, { scenario: string; state: RunState; devices: Set<string> }>();

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
    this.#shown.set(header.run, { scenario, state: startOfRun(header.devices), devices: new Set() });
    this.#inProgress.set(this.#shown.size);
    this.#memory.set({ scenario }, header.memoryBytes);
    if (header.downtimeLimitMs !== undefined) this.#limit.set({ scenario }, header.downtimeLimitMs / 1000);
  }

  /** A followed run told something. */
  note({ run }: Pick<FeedHeader, "run">, event: FeedEvent): void {
    const shown = this.#shown.get(run);
    if (shown === undefined) return;
    shown.state = afterEvent(shown.state, event);
    if (event.type === "read") this.#noteRead(shown);
    if (event.type === "round") this.#noteRound(shown.scenario, event.round);
    if (event.type === "lost") this.#lost.inc(event.events);
    this.#show(shown);
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

  /** Brings the gauges of a run up to date. */
  #show({ scenario, state }: { scenario: string; state: RunState }): void {
    const { round, remainingBytes, bytesPerSecond, expectedDowntimeMs } = state;
    if (round !== null) this.#round.set({ scenario }, round);
    if (remainingBytes !== null) this.#remaining.set({ scenario }, remainingBytes);
    if (bytesPerSecond !== null) this.#throughput.set({ scenario }, bytesPerSecond);
    if (expectedDowntimeMs !== null) this.#expected.set({ scenario }, expectedDowntimeMs / 1000);
  }

  #noteRead({ scenario, state, devices }: { scenario: string; state: RunState; devices: Set<string> }): void {
    for (const { name, tracker, last } of ownersRead(state)) {
      const labels = { scenario, device: this.#ownerLabel(scenario, name), tracker };
      this.#reads.inc(labels);
      this.#readSeconds.inc(labels, last.readMs / 1000);
      this.#pages.inc(labels, last.reported);
      this.#exclusive.inc(labels, last.exclusive);
      this.#dirtyRate.set(labels, last.bytesPerSecond);
      devices.add(JSON.stringify(labels));
    }
  }

  #noteRound(scenario: string, { phase, pages, bytes }: RoundReport): void {
    this.#rounds.inc({ scenario, phase });
    this.#sentBytes.inc({ scenario }, bytes);
    this.#sentPages.inc({ scenario }, pages);
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
