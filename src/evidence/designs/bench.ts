import { explain } from "../../errors.js";
import { watchMachine } from "../machine.js";
import { type Summary, spread, WIDE_SPREAD } from "../statistics.js";
import { findCrossings } from "./crossings.js";
import { type MigrationsOptions, measureMigrations } from "./migrations.js";
import { measureReads, type ReadsOptions } from "./reads.js";
import type { DesignsResult, MigrationRow, ReadRow } from "./result.js";

export interface DesignsBenchOptions {
  /** Whose devices: "emulated". */
  readonly host: string;
  readonly reads: Omit<ReadsOptions, "signal" | "onProgress">;
  /** null: no machine is migrated. */
  readonly migrations: Omit<MigrationsOptions, "signal" | "onProgress"> | null;
  onProgress?(text: string): void;
  readonly signal: AbortSignal;
}

const MEASURES =
  "the emulated host: TypeScript and WebAssembly on this machine's processor, where a system call is a function call, a " +
  "device's log lies in main memory and an IOMMU is software; no figure is a hardware's or a kernel's";

/** Runs the benchmark of the designs, and finds where their curves cross. */
export async function benchDesigns(options: DesignsBenchOptions): Promise<DesignsResult> {
  const { host, signal, onProgress } = options;
  const watch = { signal, ...(onProgress === undefined ? {} : { onProgress }) };
  const describe = watchMachine();
  const takenAt = new Date().toISOString();
  const reads = await measureReads({ ...options.reads, ...watch });
  const migrations: MigrationRow[] = [];
  const failures: string[] = [];
  try {
    if (options.migrations !== null) await measureMigrations({ ...options.migrations, ...watch }, migrations);
  } catch (error) {
    // What was measured is not lost for it.
    signal.throwIfAborted();
    failures.push(`the migrations ended early: ${explain(error)}`);
  }
  const machine = describe();
  return {
    schemaVersion: 1,
    kind: "designs",
    measures: MEASURES,
    host,
    takenAt,
    machine,
    settings: settingsOf(options),
    reads,
    migrations,
    crossings: findCrossings(reads),
    warnings: [...failures, ...warningsOf(reads, migrations, machine)],
  };
}

function settingsOf({ reads, migrations }: DesignsBenchOptions): DesignsResult["settings"] {
  return {
    memoryBytes: reads.memory,
    footprintPages: reads.footprint,
    devices: [...reads.devices],
    repetitions: reads.repetitions,
    reads: reads.reads,
    migrations:
      migrations === null
        ? null
        : {
            memoryBytes: migrations.memory,
            devices: [...migrations.devices],
            repetitions: migrations.repetitions,
            bandwidth: migrations.bandwidth,
            downtimeLimitMs: migrations.downtimeLimitMs,
            rate: migrations.rate,
          },
  };
}

/** What a reader must know before trusting the figures. */
function warningsOf(
  reads: readonly ReadRow[],
  migrations: readonly MigrationRow[],
  machine: DesignsResult["machine"],
): string[] {
  const warnings: string[] = [];
  const wide = (what: string, rows: readonly { readonly name: string; readonly summary: Summary }[]) => {
    const found = rows.filter(({ summary }) => spread(summary) > WIDE_SPREAD);
    if (found.length === 0) return;
    const worst = found.toSorted((a, b) => spread(b.summary) - spread(a.summary)).slice(0, 3);
    warnings.push(
      `${what}: of ${found.length} of ${rows.length} figures the middle half is wider than half the median, too wide to ` +
        `decide by them; the worst: ${worst.map(({ name }) => name).join("; ")}`,
    );
  };
  const name = ({ workload, devices, design }: ReadRow | MigrationRow) => `${workload}, ${devices} devices, ${design}`;
  wide(
    "processor time of a read",
    reads.map((row) => ({ name: name(row), summary: row.cpuMs })),
  );
  wide(
    "downtime",
    migrations.map((row) => ({ name: name(row), summary: row.downtimeMs })),
  );
  const fewest = Math.min(...reads.map(({ cpuMs }) => cpuMs.count));
  if (fewest < 5) warnings.push(`only ${fewest} repetitions: medians of so few say little`);
  if (machine.load > machine.cores) {
    warnings.push(`others kept the machine busy: a load of ${machine.load.toFixed(1)} on ${machine.cores} processors`);
  }
  return warnings;
}
