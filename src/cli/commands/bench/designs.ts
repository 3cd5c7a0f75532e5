import type { Command } from "commander";
import { DEFAULTS } from "../../../defaults.js";
import { UsageError } from "../../../errors.js";
import { WORKLOAD_TEXT, WORKLOADS, type WorkloadName } from "../../../evidence/designs/workload-names.js";
import { parseSize, writeBandwidth, writeSize } from "../../../units.js";
import { exitCodesHelp } from "../../exit-codes.js";
import { addBandwidthOption } from "../../input/options/migration.js";
import { addReportOption, addStoreOption, type ReportOption, type StoreOption } from "../../input/options/places.js";
import { argument, oneOf, orElse, wholeNumber } from "../../input/options/values.js";
import { runBy } from "../../run-command.js";

export interface BenchDesignsInput extends StoreOption, ReportOption {
  readonly devices?: readonly number[];
  readonly workload?: readonly WorkloadName[];
  readonly memory?: number;
  readonly migrate?: readonly number[];
  readonly bandwidth?: number;
  readonly repetitions?: number;
  readonly quick?: boolean;
  readonly from?: string;
  readonly output?: string;
  readonly figures?: string;
  readonly plots?: readonly string[];
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** Devices that one machine may have here: what the designs are compared up to. */
const MAX_DEVICES = 64;

const NOTES = `
Workloads:
${Object.entries(WORKLOAD_TEXT)
  .map(([name, text]) => `  ${name.padEnd(13)} ${text}`)
  .join("\n")}

Examples:
  dirtmap bench designs --quick
  dirtmap bench designs --devices 1,8,64 --workload b,B --migrate 0
  dirtmap bench designs --output designs.json --report designs.html
  dirtmap bench designs --from designs.json --figures figures

The devices are models and the kernel's side is emulated: this measures the model, and says so. The devices write a known
set of pages, stop, and are read, so the processor time is that of the read alone.
`;

/** How help names a default that `--quick` changes. */
function orQuick(typed: (settings: (typeof DEFAULTS.designs)["full" | "quick"]) => string): string {
  return orElse(`${typed(DEFAULTS.designs.full)}; with --quick ${typed(DEFAULTS.designs.quick)}`);
}

/** `dirtmap bench designs`: the four designs on the same workloads. */
export function declareBenchDesigns(bench: Command): Command {
  const command = bench
    .command("designs")
    .description(
      "compare the designs that merge dirty pages: split, type1, aggregated, iterating, from 1 to 64 devices",
    )
    .option(
      "--devices <numbers>",
      `measure machines with these numbers of devices, as 1,2,4${orQuick(({ devices }) => devices.join(","))}`,
      argument(counts(1)),
    )
    .option("--workload <names>", "measure these workloads, as a,b,B (default: all)", argument(workloads))
    .option(
      "--memory <size>",
      `set the guest memory: 512M, 1G …${orQuick(({ memoryBytes }) => writeSize(memoryBytes))}`,
      argument(parseSize),
    )
    .option(
      "--migrate <numbers>",
      `also migrate machines with these numbers of devices; 0: none${orQuick(({ migrate }) => migrate.join(","))}`,
      argument(counts(0)),
    );
  addBandwidthOption(command, orElse(writeBandwidth(DEFAULTS.linkBandwidth)))
    .option(
      "--repetitions <number>",
      `repeat each measurement this often${orQuick(({ repetitions }) => String(repetitions))}`,
      wholeNumber(1, 1000),
    )
    .option("--quick", "measure fewer devices with fewer repetitions, in about a minute")
    .option("--from <file>", "use the result in this file, and measure nothing")
    .option("-o, --output <file>", "write the result to this file, for --from")
    .option("--figures <folder>", "write each plot to this folder, as NAME.svg")
    .option("--plots <names>", "write only these plots, as cpu-case-b,memory-pair-b (default: all)", (text) =>
      text.split(","),
    );
  addReportOption(addStoreOption(command, { optional: true }))
    .option("--json", "print the result as JSON")
    .option("-q, --quiet", "show nothing while it runs")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`);
  return runBy<BenchDesignsInput>(command, () => import("../../run/bench/designs.js"));
}

/** Numbers of devices: `1,2,4`, ascending. */
function counts(least: number): (text: string) => number[] {
  return (text) => {
    const numbers = text.split(",").map((part) => (/^\d{1,9}$/.test(part.trim()) ? Number(part) : -1));
    if (numbers.every((number) => number >= least && number <= MAX_DEVICES)) {
      return [...new Set(numbers)].sort((a, b) => a - b);
    }
    throw new UsageError(`'${text}' is not a list of numbers of devices`, {
      code: "BAD_OPTION",
      remedy: `give numbers from ${least} to ${MAX_DEVICES}, as 1,8,64`,
    });
  };
}

function workloads(text: string): WorkloadName[] {
  return [...new Set(text.split(",").map((name) => oneOf(WORKLOADS, "workload")(name.trim())))];
}
