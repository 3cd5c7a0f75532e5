import { dirname, join } from "node:path";
import { DEFAULTS } from "../../../defaults.js";
import { explain } from "../../../errors.js";
import { benchDesigns } from "../../../evidence/designs/bench.js";
import { findCrossings } from "../../../evidence/designs/crossings.js";
import { designFigures } from "../../../evidence/designs/figures.js";
import { type DesignsResult, readDesignsResult, resultText } from "../../../evidence/designs/result.js";
import { WORKLOADS, type WorkloadName } from "../../../evidence/designs/workload-names.js";
import { population } from "../../../evidence/designs/workloads.js";
import { safeStrings } from "../../../safe-text.js";
import { checkWritable, writeOutput } from "../../../sys/output-file.js";
import type { BenchDesignsInput } from "../../commands/bench/designs.js";
import { oneOf } from "../../input/options/values.js";
import { leaveReport } from "../../kept/leave-report.js";
import { keepBenchmark, storeOrNone } from "../../kept/store.js";
import { printText, note as tell } from "../../output.js";
import type { Run } from "../../run-command.js";
import { checkMemory } from "../../sites/emulated/check-memory.js";
import { checkWorkload, openScripted } from "../../sites/hosts.js";
import { designsDocument, designsText } from "../../text/designs-text.js";
import { migrateOnce } from "../shared/migrate-once.js";

/** Reads of a repetition: those that are timed, and those whose calls are counted. */
const FULL_READS = { reads: 3, countedReads: 5 };
const QUICK_READS = { reads: 2, countedReads: 2 };

/** Pages that each device writes before a read, and in a migration over and over. */
const FOOTPRINT = 256;
/** Guest memory of a machine that is migrated: it is there twice. */
const MIGRATED_BYTES = 2 ** 28;
/**
 * A migration takes seconds, so there are fewer repetitions. The limit lets every design stop after its first round, also one
 * that names all of memory again and again: compared is what is left to move then.
 */
const MIGRATIONS = { most: 5, rate: 2, downtimeLimitMs: 30_000 };

export const run: Run<BenchDesignsInput> = async (input, { signal }) => {
  const { json = false, quiet = false, from, output, report, figures } = input;
  const note = (text: string) => {
    if (!quiet) tell(text);
  };
  // What can't be kept is found out before it is measured.
  for (const path of [output, report]) if (path !== undefined) checkWritable(dirname(path));
  if (figures !== undefined) checkWritable(figures);
  const store = from === undefined ? storeOrNone(input, note) : { store: false as const };
  const result = from === undefined ? await measure(input, note, signal) : readAgain(from);
  const { kind, host, machine, takenAt } = result;
  try {
    keepBenchmark(store, { kind, host, scenario: "designs", machine, takenAt, result }, note);
  } catch (error) {
    // Hours of measuring are not lost for it.
    note(`not kept: ${explain(error)}`);
  }
  if (output !== undefined) note(`wrote ${writeOutput(output, resultText(result))}`);
  if (report !== undefined) leaveReport(report, designsDocument(result), note);
  if (figures !== undefined) {
    const all = chosen(designFigures(result), input.plots);
    for (const { name, svg } of all) writeOutput(join(figures, `${name}.svg`), `${svg}\n`);
    note(`wrote ${all.length} figures to ${figures}`);
  }
  printText(json ? resultText(result).trimEnd() : designsText(safeStrings(result)));
};

async function measure(
  input: BenchDesignsInput,
  note: (text: string) => void,
  signal: AbortSignal,
): Promise<DesignsResult> {
  const defaults = input.quick === true ? DEFAULTS.designs.quick : DEFAULTS.designs.full;
  const { reads, countedReads } = input.quick === true ? QUICK_READS : FULL_READS;
  const { workload: names = WORKLOADS, devices = defaults.devices, memory = defaults.memoryBytes } = input;
  const { repetitions = defaults.repetitions, bandwidth = DEFAULTS.linkBandwidth } = input;
  const migrated = (input.migrate ?? defaults.migrate).filter((count) => count > 0);
  // All that may be wrong with what was asked for is found out before anything is started.
  const machineOf = (devices: readonly number[], memory: number) => {
    return population(names[0], { devices: Math.max(...devices), memory, footprint: FOOTPRINT, rate: 0 }).description;
  };
  const read = machineOf(devices, memory);
  await checkWorkload(read);
  checkMemory(read, 1);
  if (migrated.length > 0) {
    const moved = machineOf(migrated, MIGRATED_BYTES);
    await checkWorkload(moved);
    checkMemory(moved, 2, "leave migrations out (--migrate 0)");
  }
  return await benchDesigns({
    host: "emulated",
    signal,
    onProgress: note,
    reads: {
      workloads: names,
      devices,
      memory,
      footprint: FOOTPRINT,
      repetitions,
      reads,
      countedReads,
      openMachine: openScripted,
    },
    migrations:
      migrated.length === 0
        ? null
        : {
            workloads: names.filter(isOfThread),
            devices: migrated,
            memory: MIGRATED_BYTES,
            footprint: FOOTPRINT,
            rate: MIGRATIONS.rate,
            bandwidth,
            downtimeLimitMs: MIGRATIONS.downtimeLimitMs,
            repetitions: Math.min(repetitions, MIGRATIONS.most),
            migrate: migrateOnce,
          },
  });
}

/** What was kept, with the comparisons that are made of it today. */
function readAgain(path: string): DesignsResult {
  const result = readDesignsResult(path);
  return { ...result, crossings: findCrossings(result.reads) };
}

/** The mailing list thread's cases and pairs have one letter. */
function isOfThread(workload: WorkloadName): boolean {
  return workload.length === 1;
}

/** @throws UsageError `BAD_OPTION` for a name that no plot has */
function chosen<Named extends { readonly name: string }>(
  all: readonly Named[],
  only?: readonly string[],
): readonly Named[] {
  const names = all.map(({ name }) => name);
  for (const name of only ?? []) oneOf(names, "plot")(name);
  return only === undefined ? all : all.filter(({ name }) => only.includes(name));
}
