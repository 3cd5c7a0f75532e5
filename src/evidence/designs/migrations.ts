import { DirtmapError } from "../../errors.js";
import type { MachineDescription } from "../../host/description.js";
import type { MigrationReport } from "../../migration/report.js";
import type { Policy } from "../../tracking/choice.js";
import { TRACKING_DESIGNS, type TrackingDesign } from "../../tracking/choice.js";
import { interleave, summarize } from "../statistics.js";
import type { MigrationRow } from "./result.js";
import type { WorkloadName } from "./workload-names.js";
import { population } from "./workloads.js";

/*
 * What becomes of a design's answers: whole migrations, of machines whose devices write all the time, to another process.
 */

/** Moves one machine. */
export interface MigrationRequest {
  readonly description: MachineDescription;
  readonly policy: Policy;
  readonly design: TrackingDesign;
  /** Bytes per second. */
  readonly bandwidth: number;
  readonly downtimeLimitMs: number;
  readonly signal: AbortSignal;
}

export interface MigrationsOptions {
  readonly workloads: readonly WorkloadName[];
  readonly devices: readonly number[];
  readonly memory: number;
  readonly footprint: number;
  /** Megabytes (10^6) per second that each device writes. */
  readonly rate: number;
  readonly bandwidth: number;
  readonly downtimeLimitMs: number;
  readonly repetitions: number;
  migrate(request: MigrationRequest): Promise<MigrationReport>;
  onProgress?(text: string): void;
  readonly signal: AbortSignal;
}

/** Share of memory that isn't zero, and so has to be sent once. */
const FILL = 0.5;

const MOVING = new Set(["pre-copy", "pausing", "stop-copy", "handover"]);

/**
 * Migrates each workload in each design, in turn.
 * @param rows where what was measured goes, workload by workload: it stays where a later one fails
 * @throws DirtmapError `MIGRATION_FAILED` for a migration that was not completed, or lost a write
 */
export async function measureMigrations(options: MigrationsOptions, rows: MigrationRow[]): Promise<void> {
  const { workloads, devices, memory, footprint, rate, bandwidth, downtimeLimitMs, repetitions, signal } = options;
  for (const workload of workloads) {
    for (const count of devices) {
      const { description, policy } = population(workload, { devices: count, memory, footprint, rate, fill: FILL });
      const samples = await interleave(
        TRACKING_DESIGNS.map((design) => async () => {
          signal.throwIfAborted();
          options.onProgress?.(`migrations: ${workload}, ${count} devices, ${design}`);
          const request = { description, policy, design, bandwidth, downtimeLimitMs, signal };
          return sampleOf(await options.migrate(request), workload);
        }),
        repetitions,
        // Each migration is a process' first: there is nothing to warm up but files, and the first of all has done that.
        rows.length === 0,
      );
      TRACKING_DESIGNS.forEach((design, index) => {
        const all = samples[index];
        rows.push({
          workload,
          devices: count,
          design,
          downtimeMs: summarize(all.map((sample) => sample.downtimeMs)),
          movingMs: summarize(all.map((sample) => sample.movingMs)),
          bytes: summarize(all.map((sample) => sample.bytes)),
          lastRoundPages: summarize(all.map((sample) => sample.lastRoundPages)),
          rounds: summarize(all.map((sample) => sample.rounds)),
        });
      });
    }
  }
}

function sampleOf(report: MigrationReport, workload: WorkloadName) {
  const { result, verified, downtimeMs, error } = report;
  if (result !== "completed" || verified !== true || downtimeMs === null) {
    const why = error?.message ?? (verified === false ? "writes were lost" : "it was not verified");
    throw new DirtmapError(`workload ${workload}, design ${report.design}: the migration ended ${result}: ${why}`, {
      code: "MIGRATION_FAILED",
      // What a migration would need (a longer limit, another tracker) is fixed here, so that designs can be compared.
      remedy: "leave migrations out (--migrate 0)",
    });
  }
  return {
    downtimeMs,
    movingMs: report.phases.reduce((sum, { phase, ms }) => sum + (MOVING.has(phase) ? ms : 0), 0),
    bytes: report.bytes,
    lastRoundPages: report.rounds.at(-1)?.pages ?? 0,
    rounds: report.rounds.length,
  };
}
