import { dirname, join } from "node:path";
import { type Command, Option } from "commander";
import { DEFAULTS } from "../../../defaults.js";
import { explain, UsageError } from "../../../errors.js";
import type { DesignsResult } from "../../../evidence/designs/result.js";
import { WORKLOAD_TEXT, WORKLOADS, type WorkloadName } from "../../../evidence/designs/workloads.js";
import { reportPath } from "../../../evidence/report/write-report.js";
import { safeStrings } from "../../../safe-text.js";
import { checkWritable, writeOutput } from "../../../sys/output-file.js";
import { parseBandwidth, parseSize, writeBandwidth, writeSize } from "../../../units.js";
import { EXIT_CODES, exitCodesHelp } from "../../exit-codes.js";
import {
  addStoreOption,
  argument,
  oneOf,
  openStoreOf,
  orElse,
  type StoreOption,
  wholeNumber,
} from "../../input/options.js";
import { leaveReport } from "../../kept/leave-report.js";
import { printText, runCommand, note as tell } from "../../output.js";

interface BenchDesignsOptions extends StoreOption {
  readonly devices?: readonly number[];
  readonly workload?: readonly WorkloadName[];
  readonly memory?: number;
  readonly migrate?: readonly number[];
  readonly bandwidth: number;
  readonly repetitions?: number;
  readonly quick?: boolean;
  readonly from?: string;
  readonly output?: string;
  readonly report?: string;
  readonly figures?: string;
  readonly only?: readonly string[];
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** Devices that one machine may have here: what the designs are compared up to. */
const MAX_DEVICES = 64;

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

const EXAMPLES = `
Workloads:
${Object.entries(WORKLOAD_TEXT)
  .map(([name, text]) => `  ${name.padEnd(13)} ${text}`)
  .join("\n")}

Examples:
  dirtmap bench designs --quick
  dirtmap bench designs --devices 1,8,64 --workload b,B --migrate 0
  dirtmap bench designs --output designs.json --report designs.html
  dirtmap bench designs --from designs.json --figures figures

The devices are models and the kernel's side is emulated: this measures the model, and says so. Devices write a known set of
pages, stop, and are read, so that processor time is the read's alone.
`;

/** How help names a default that `--quick` changes. */
function orQuick(typed: (settings: (typeof DEFAULTS.designs)["full" | "quick"]) => string): string {
  return orElse(`${typed(DEFAULTS.designs.full)}; with --quick ${typed(DEFAULTS.designs.quick)}`);
}

/** `dirtmap bench designs`: the four designs on the same workloads. */
export function addBenchDesigns(bench: Command): void {
  const command = bench
    .command("designs")
    .description("Compares who merges dirty pages: split, type1, aggregated, iterating, from 1 to 64 devices")
    .option(
      "--devices <numbers>",
      `numbers of devices, as 1,2,4${orQuick(({ devices }) => devices.join(","))}`,
      argument(counts(1)),
    )
    .option("--workload <names>", "workloads, as a,b,B (default: all)", argument(workloads))
    .option(
      "--memory <size>",
      `guest memory whose trackers are read${orQuick(({ memoryBytes }) => writeSize(memoryBytes))}`,
      argument(parseSize),
    )
    .option(
      "--migrate <numbers>",
      `numbers of devices of machines that are migrated as a whole; 0: none${orQuick(({ migrate }) => migrate.join(","))}`,
      argument(counts(0)),
    )
    .addOption(
      new Option("--bandwidth <rate>", "of these migrations")
        .argParser(argument(parseBandwidth))
        .default(DEFAULTS.linkBandwidth, writeBandwidth(DEFAULTS.linkBandwidth)),
    )
    .option(
      "--repetitions <number>",
      `of each measurement${orQuick(({ repetitions }) => String(repetitions))}`,
      wholeNumber(1, 1000),
    )
    .option("--quick", "fewer devices and repetitions, in about a minute")
    .option("--from <file>", "measure nothing: show what --output kept")
    .option("--output <file>", "write the result as JSON")
    .option("--report <file>", "write a report with plots: FILE.md or FILE.html", argument(reportPath))
    .option("--figures <folder>", "write each plot as NAME.svg")
    .option("--only <names>", "of the plots only these, as cpu-case-b,memory-pair-b", (text) => text.split(","));
  addStoreOption(command, { optional: true })
    .option("--json", "print the result as JSON")
    .option("-q, --quiet", "show nothing while it runs")
    .addHelpText("after", `${EXAMPLES}\n${exitCodesHelp()}`)
    .action(run);
}

async function run(options: BenchDesignsOptions): Promise<void> {
  const { json = false, quiet = false, from, output, report, figures } = options;
  await runCommand({ json }, async (signal) => {
    const [{ resultText }, { designsDocument, designsText }] = await Promise.all([
      import("../../../evidence/designs/result.js"),
      import("../../text/designs-text.js"),
    ]);
    const note = (text: string) => {
      if (!quiet) tell(text);
    };
    // What can't be kept is found out before it is measured.
    for (const path of [output, report]) if (path !== undefined) checkWritable(dirname(path));
    if (figures !== undefined) checkWritable(figures);
    const { checkStore } = await import("../../kept/record-run.js");
    const store = from === undefined ? await checkStore(options, note) : { store: false as const };
    const result = from === undefined ? await measure(options, note, signal) : await readAgain(from);
    await keep(store, result, note);
    if (output !== undefined) note(`wrote ${writeOutput(output, resultText(result))}`);
    if (report !== undefined) leaveReport(report, designsDocument(result), note);
    if (figures !== undefined) {
      const { designFigures } = await import("../../../evidence/designs/figures.js");
      const all = chosen(designFigures(result), options.only);
      for (const { name, svg } of all) writeOutput(join(figures, `${name}.svg`), `${svg}\n`);
      note(`wrote ${all.length} figures to ${figures}`);
    }
    printText(json ? resultText(result).trimEnd() : designsText(safeStrings(result)));
    return EXIT_CODES.done.code;
  });
}

async function measure(
  options: BenchDesignsOptions,
  note: (text: string) => void,
  signal: AbortSignal,
): Promise<DesignsResult> {
  const defaults = options.quick === true ? DEFAULTS.designs.quick : DEFAULTS.designs.full;
  const { reads, countedReads } = options.quick === true ? QUICK_READS : FULL_READS;
  const { workload: names = WORKLOADS, devices = defaults.devices, memory = defaults.memoryBytes, bandwidth } = options;
  const repetitions = options.repetitions ?? defaults.repetitions;
  const migrated = (options.migrate ?? defaults.migrate).filter((count) => count > 0);
  const { population } = await import("../../../evidence/designs/workloads.js");
  const { checkMemory } = await import("../../input/settings.js");
  const { checkWorkload } = await import("../../sites/hosts.js");
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
  const [{ benchDesigns }, { openScripted }, { migrateOnce }] = await Promise.all([
    import("../../../evidence/designs/bench.js"),
    import("../../sites/hosts.js"),
    import("../../run/shared/migrate-once.js"),
  ]);
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
async function readAgain(path: string): Promise<DesignsResult> {
  const [{ readDesignsResult }, { findCrossings }] = await Promise.all([
    import("../../../evidence/designs/result.js"),
    import("../../../evidence/designs/crossings.js"),
  ]);
  const result = readDesignsResult(path);
  return { ...result, crossings: findCrossings(result.reads) };
}

/** The mailing list thread's cases and pairs have one letter. */
function isOfThread(workload: WorkloadName): boolean {
  return workload.length === 1;
}

/** Keeps the result; where it can't be kept, hours of measuring are not lost for it. */
async function keep(options: StoreOption, result: DesignsResult, note: (text: string) => void): Promise<void> {
  try {
    using store = await openStoreOf(options);
    const { kind, host, machine, takenAt } = result;
    const id = store?.saveBenchmark({ kind, host, scenario: "designs", machine, takenAt, result });
    if (store !== null) note(`kept as benchmark ${id} in ${store.path}`);
  } catch (error) {
    note(`not kept: ${explain(error)}`);
  }
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

/** Numbers of devices: `1,2,4`, ascending. */
function counts(least: number): (text: string) => number[] {
  return (text) => {
    const numbers = text.split(",").map((part) => (/^\d{1,9}$/.test(part.trim()) ? Number(part) : -1));
    if (numbers.every((number) => number >= least && number <= MAX_DEVICES)) {
      return [...new Set(numbers)].sort((a, b) => a - b);
    }
    throw new UsageError(`'${text}' is no list of numbers of devices`, {
      code: "BAD_OPTION",
      remedy: `give numbers from ${least} to ${MAX_DEVICES}, as 1,8,64`,
    });
  };
}

function workloads(text: string): WorkloadName[] {
  return [...new Set(text.split(",").map((name) => oneOf(WORKLOADS, "workload")(name.trim())))];
}
