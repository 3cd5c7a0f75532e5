import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type MigrationReport, movingMs } from "../src/migration/report.js";
import { scenarioNames } from "../src/scenario/scenario.js";

/*
 * What `migrate --predict` foretold beside what then happened, over the scenarios that come with Dirtmap, by the program
 * itself. Each scenario is migrated once before, so that the store knows what stopping takes on this machine.
 */

export interface PredictBenchOptions {
  /** Default: all that come with Dirtmap. */
  readonly scenarios?: readonly string[];
  /** Predicted migrations of each. */
  readonly repetitions?: number;
}

/** One migration that was predicted. */
export interface PredictRow {
  readonly bench: "predict";
  readonly scenario: string;
  readonly predictedDowntimeMs: number | null;
  readonly downtimeMs: number | null;
  /** Predicted over actual, less 1; null where one of them has none. */
  readonly downtimeError: number | null;
  readonly predictedRounds: number;
  readonly rounds: number;
  readonly predictedMovingMs: number | null;
  readonly movingMs: number;
  /** Within 20 % of the downtime and within one round; where it doesn't converge: both say so. */
  readonly met: boolean;
}

const PROGRAM = fileURLToPath(new URL("../../bin/dirtmap.js", import.meta.url));
/** A migration that takes longer than this has gone wrong. */
const LIMIT_MS = 120_000;
const AIM = { downtime: 0.2, rounds: 1 } as const;

export async function run({
  scenarios = scenarioNames(),
  repetitions = 1,
}: PredictBenchOptions = {}): Promise<PredictRow[]> {
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
  try {
    const rows: PredictRow[] = [];
    for (const scenario of scenarios) {
      process.stderr.write(`  ${scenario}\n`);
      await migrate(scenario, folder, []);
      for (let n = 0; n < repetitions; n++) rows.push(rowOf(scenario, await migrate(scenario, folder, ["--predict"])));
    }
    return rows;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** How many of the migrations met the aim. */
export function metShare(rows: readonly PredictRow[]): number {
  return rows.length === 0 ? 0 : rows.filter(({ met }) => met).length / rows.length;
}

function rowOf(scenario: string, report: MigrationReport): PredictRow {
  const { predicted, downtimeMs, rounds, result } = report;
  if (predicted === null) throw new Error(`the migration of ${scenario} was not predicted`);
  const completed = result === "completed" && downtimeMs !== null;
  const error =
    completed && predicted.downtimeMs !== null ? predicted.downtimeMs / Math.max(downtimeMs, 0.001) - 1 : null;
  return {
    bench: "predict",
    scenario,
    predictedDowntimeMs: predicted.downtimeMs,
    downtimeMs: completed ? downtimeMs : null,
    downtimeError: error,
    predictedRounds: predicted.rounds,
    rounds: rounds.length,
    predictedMovingMs: predicted.movingMs,
    movingMs: movingMs(report),
    met:
      error === null
        ? !completed && !predicted.converges
        : Math.abs(error) <= AIM.downtime && Math.abs(predicted.rounds - rounds.length) <= AIM.rounds,
  };
}

async function migrate(scenario: string, folder: string, options: readonly string[]): Promise<MigrationReport> {
  const store = ["--store", join(folder, "evidence.db"), "--journal", join(folder, "journal")];
  const child = spawn(
    process.execPath,
    [PROGRAM, "migrate", "--scenario", scenario, "--json", "--quiet", ...store, ...options],
    { stdio: ["ignore", "pipe", "inherit"], timeout: LIMIT_MS },
  );
  const [text] = await Promise.all([child.stdout.setEncoding("utf8").toArray(), once(child, "exit")]);
  const report = JSON.parse(text.join("")) as MigrationReport;
  if (report.result === "completed" || report.error?.code === "DOES_NOT_CONVERGE") return report;
  throw new Error(`the migration of ${scenario} ended with ${report.result}: ${report.error?.message ?? ""}`);
}
